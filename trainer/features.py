"""Features of whole videos for temporal localisation: sliding windows, many videos at once, one file each.

A video's file does not depend on which others shared its batches. Reading is `trainer.frame_stream`'s.
"""

from __future__ import annotations

import io
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch

from pipeline import dataset
from pipeline.outcome import Failed
from pipeline.sources import named_video
from pipeline.sources.directory import VIDEO_SUFFIXES, walk
from pipeline.storage import Storage, open_storage
from trainer import ensemble, frame_stream
from trainer.choices import ConfigurationError
from trainer.data.decoding import Undecodable
from trainer.data.reading import Reader, SampleError
from trainer.data.rows import Rows, RowsError, input_for, open_rows
from trainer.ensemble import Clip, Ensemble
from trainer.frame_stream import FrameStream
from trainer.options import FeaturesOptions
from trainer.stream_models import precision_for

SETTINGS, FAILED = "features.json", "failed.jsonl"
"""The settings of a folder's files, and the inputs that failed in its last run."""

_READERS = 8
_MACHINE = ("environment", "storage")  # classes of failures that are not the video's


@dataclass(frozen=True)
class Source:
    """One video."""

    name: str  # of its files, without suffix
    shown: str  # as a person calls it
    open: Callable[[Path, int], FrameStream] = field(repr=False)  # a folder to fetch to, threads for the flow


@dataclass(frozen=True)
class Outcome:
    """Files written, files there before, and a sentence for each failed input."""

    written: int
    kept: int
    failed: dict[str, str]


def extract(options: FeaturesOptions) -> Outcome:
    """Writes the features of every input that has none in the folder yet.

    Raises CheckpointError, ConfigurationError (also for a folder of other features), RowsError, and Failed
    where the folder cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = ensemble.load(options.checkpoints).to(device)
    if why := models.refusal(options.window):
        raise ConfigurationError(f"{why}: give --window {models.span}, as it was trained")
    sources = find(options.inputs, models)
    storage = open_storage(options.output)
    _settle(storage, options, models)
    missing = [source for source in sources if not storage.exists(f"{source.name}.npy")]
    precision = precision_for(device, options.precision)
    writing = _Writing(storage, options, models.rate)
    for items in _batches(_windows(missing, options, models), options.batch_size):
        clips = [item.clip for item in items if item.clip is not None]
        scale = np.array([item.scale for item in items if item.clip is not None], np.float32)
        rows = iter(models.features(clips, scale, device, precision) if clips else ())
        for item in items:
            if item.clip is None:
                writing.finish(item.source, item.failure)
            else:
                writing.add(item.source, next(rows))
    lines = [json.dumps({"input": shown, "reason": why}) + "\n" for shown, why in writing.failed.items()]
    if lines or storage.exists(FAILED):
        storage.write(FAILED, "".join(lines).encode())
    return Outcome(writing.written, len(sources) - len(missing), writing.failed)


def find(inputs: Iterable[str], models: Ensemble) -> list[Source]:
    """The videos that inputs name: files, folders of files, addresses, YouTube ids, published data sets.

    Raises ConfigurationError for an input that is nothing or two that would be written to one file, RowsError
    for a data set that does not go with the models.
    """
    found: dict[str, Source] = {}
    for name in inputs:
        some = list(_in_root(name, models) if _is_root(name) else _raw(name, models))
        if not some:
            raise ConfigurationError(f"{name} holds no video: name a video, a folder of them or a data set")
        for source in some:
            if not source.name.isprintable() or "\\" in source.name:
                wrong = f"{source.shown!r} cannot be the name of a file of features"
                raise ConfigurationError(f"{wrong}: rename it")
            for file in (f"{source.name}.npy", f"{source.name}.times.npy"):
                if file in found:
                    both = f"{found[file].shown} and {source.shown} would both be written to {file}"
                    raise ConfigurationError(f"{both}: give them an --output each")
                found[file] = source
    return [source for file, source in found.items() if file == f"{source.name}.npy"]


def _is_root(name: str) -> bool:
    if name.startswith(("http://", "https://")) or (not os.path.isdir(name) and "://" not in name):
        return False
    return open_storage(name).exists("dataset.json")


def _raw(name: str, models: Ensemble) -> Iterator[Source]:
    inputs = models.stream_inputs

    def opener(path: str) -> Callable[[Path, int], FrameStream]:
        local = named_video.local_file
        return lambda folder, threads: frame_stream.of_file(local(path, folder), inputs, threads)

    if os.path.isdir(name):
        found = sorted(Path(path) for path in walk(name))
        for path in (p for p in found if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()):
            yield Source(str(path.relative_to(name).with_suffix("")), str(path), opener(str(path)))
    elif os.path.exists(name) or named_video.source_of(name):
        yield Source(named_video.title(name), name, opener(name))
    else:
        raise ConfigurationError(f"{name} is not there: name a video, a folder of them or a data set")


def _in_root(root: str, models: Ensemble) -> Iterator[Source]:
    for split in dataset.open(root).splits:
        rows = open_rows([root], split, models.streams)
        for input in models.stream_inputs.values():
            input_for(rows, input)
        step, rest = divmod(rows.rate, models.rate)
        if rest:
            raise RowsError(
                f"{root} has {rows.rate} frames a second and the network wants {models.rate}: "
                f"prepare one with --rate {models.rate}"
            )
        reader = Reader(rows, models.streams)
        for row in np.flatnonzero(~rows.removed).tolist():
            key = rows.keys[row].as_py()
            yield Source(f"{split}/{key}", f"{root}: {key}", _opener(rows, row, reader, models, step))


def _opener(
    rows: Rows, row: int, reader: Reader, models: Ensemble, step: int
) -> Callable[[Path, int], FrameStream]:
    size, wanted, inputs = rows.size(row), range(0, int(rows.frames[row]), step), models.stream_inputs
    return lambda _, threads: frame_stream.of_sample(reader.read(row), wanted, size, rows.rate, inputs)


@dataclass(frozen=True)
class _Item:
    """A window of a video; without a clip, the video's end, with the reason where it failed."""

    source: Source
    clip: Clip | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    failure: str | None = None


def _windows(sources: Sequence[Source], options: FeaturesOptions, models: Ensemble) -> Iterator[_Item]:
    """The windows of all videos, each video's in order and then its end, read by several threads."""
    cores = os.cpu_count() or 1
    readers = min(options.workers or min(cores, _READERS), max(1, len(sources)))
    waiting = iter(sources)  # each thread takes its next one
    ready: queue.SimpleQueue[_Item | BaseException] = queue.SimpleQueue()
    room = threading.Semaphore(2 * options.batch_size)
    stop = threading.Event()

    def work() -> None:
        try:
            for source in waiting:
                for item in _windows_of(source, options, models, max(1, cores // readers)):
                    room.acquire()
                    if stop.is_set():
                        return
                    ready.put(item)
        except BaseException as error:  # of a kind that is not the video's fault: goes to the caller
            ready.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(readers)]
    for thread in threads:
        thread.start()
    try:
        left = len(sources)
        while left:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            room.release()
            left -= item.clip is None
            yield item
    finally:
        stop.set()
        room.release(readers)
        for thread in threads:
            thread.join(timeout=5)  # they are daemons, and one may be fetching for an hour


def _windows_of(source: Source, options: FeaturesOptions, models: Ensemble, threads: int) -> Iterator[_Item]:
    failure = None
    with tempfile.TemporaryDirectory(prefix="quovadis-") as folder:
        try:
            shown = source.open(Path(folder), threads)
            inputs = models.stream_inputs
            for clip in frame_stream.windows(shown.frames, options.window, options.stride, inputs):
                yield _Item(source, clip, shown.scale)
        except Failed as error:
            if str(error.failure_class) in _MACHINE:
                raise
            failure = error.reason
        except (Undecodable, SampleError) as error:
            failure = str(error)
    yield _Item(source, failure=failure)


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of `size` windows (the last of fewer) of whatever videos, each video's end after its windows."""
    batch: list[_Item] = []
    windows = 0
    for item in items:
        if item.clip is None and all(other.source is not item.source for other in batch):
            yield [item]
            continue
        batch.append(item)
        windows += item.clip is not None
        if windows == size:
            yield batch
            batch, windows = [], 0
    if batch:
        yield batch


class _Writing:
    """Files under way: rows are kept on disk until their video ends, then a .npy appears whole."""

    def __init__(self, storage: Storage, options: FeaturesOptions, rate: int):
        self.storage, self.options, self.rate = storage, options, rate
        self.written = 0
        self.failed: dict[str, str] = {}
        self._rows: dict[str, tuple[IO[bytes], int]] = {}

    def add(self, source: Source, row: np.ndarray) -> None:
        file, count = self._rows.get(source.name) or (tempfile.TemporaryFile(), 0)  # noqa: SIM115
        file.write(row.astype("<f4").tobytes())
        self._rows[source.name] = file, count + 1

    def finish(self, source: Source, failure: str | None) -> None:
        """Publishes the video's files, the times first, or notes why there are none."""
        file, count = self._rows.pop(source.name, (io.BytesIO(), 0))
        with file:
            if failure or not count:
                self.failed[source.shown] = failure = failure or "there is no frame in it"
                print(f"{source.shown}: {failure}", file=sys.stderr)
                return
            width = file.tell() // (4 * count)
            times, buffer = np.arange(count) * self.options.stride + self.options.window / 2, io.BytesIO()
            np.save(buffer, (times / self.rate).astype("<f8"))
            self.storage.write(f"{source.name}.times.npy", buffer.getvalue())
            file.seek(0)
            with self.storage.writer(f"{source.name}.npy") as out:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
                np.lib.format.write_array_header_1_0(out, header)
                shutil.copyfileobj(file, out, 1 << 20)
        self.written += 1
        print(f"{source.shown}: {count} windows", file=sys.stderr)


def _settle(storage: Storage, options: FeaturesOptions, models: Ensemble) -> None:
    """Records the settings of the folder's features; raises ConfigurationError where it holds others."""
    mine = {
        "rate": models.rate,
        "window": options.window,
        "stride": options.stride,
        "precision": options.precision,
        "towers": [
            {"stream": stream, "network": member.checkpoint.network, "sha256": member.sha256}
            for stream, member in models.members.items()
        ],
    }
    if storage.exists(SETTINGS):
        try:
            theirs = dict(json.loads(storage.read_bytes(SETTINGS)))
            for model in theirs["towers"]:
                model.pop("input", None)  # once written too; the checkpoint's sha256 says it
        except (ValueError, TypeError, KeyError, AttributeError):
            theirs = {}
        if other := [name for name in mine if theirs.get(name) != mine[name]]:
            raise ConfigurationError(
                f"{storage.url} holds features of another {' and '.join(other)}: take another --output"
            )
    storage.write(SETTINGS, json.dumps(mine, indent=2).encode() + b"\n")
