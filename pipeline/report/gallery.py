"""Chooses clips and writes their media: contact sheets, videos, flow in colours.

The files lie in one flat folder, named by key or class index only; `page` arranges them.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.dataset import Dataset, Sample, decode_flow
from pipeline.flow import coding
from pipeline.media import clip, subprocesses
from pipeline.outcome import Failed, FailureClass
from pipeline.report.colours import code_table, colour, legend

TILE = 128  # pixels a side, on a contact sheet
LEGEND = "wheel.jpg"
_ENCODE_SECONDS = 300.0


@dataclass(frozen=True)
class Limits:
    """Limits how much is shown: contact sheets and playing clips (classes take turns)."""

    classes: int = 1000
    frames_a_class: int = 6
    clips_a_class: int = 3
    clips: int = 48


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: one class's frames side by side, their flow below; `file` is in the media folder."""

    label: str
    file: str
    width: int
    height: int
    frames: int
    flow: bool


@dataclass(frozen=True)
class Playing:
    """A clip of the gallery: <key>.mp4 with a picture <key>.jpg in the media folder.

    With flow also <key>.flow.mp4, and in colours <key>.colours.mp4 and .jpg.
    """

    row: dict[str, Any]  # of the index
    meta: dict[str, Any]  # of <key>.json
    longest: float | None  # pixels: flow of this length has full colour; None without flow


def make(data: Dataset, folder: Path, limits: Limits) -> tuple[list[Sheet], list[Playing]]:
    """Write sheets, posters and videos into `folder`, in parallel. The choice depends on the keys only."""
    chosen = _choose(data, max(limits.frames_a_class, limits.clips_a_class))
    chosen = dict(list(chosen.items())[: limits.classes])
    turns = range(limits.clips_a_class)
    playing = [rows[i] for i in turns for rows in chosen.values() if i < len(rows)][: limits.clips]
    playing.sort(key=lambda row: (row["class_index"] is None, row["class_index"], row["key"]))
    _picture(folder / LEGEND, legend())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        strips = [rows[: limits.frames_a_class] for rows in chosen.values()]
        sheets = pool.map(lambda i: _sheet(data, i, strips[i], folder), range(len(strips)))
        clips = pool.map(lambda row: _play(data, row, folder), playing)
        return list(sheets), list(clips)


def _choose(data: Dataset, count: int) -> dict[int | None, list[dict[str, Any]]]:
    """Up to `count` index rows of each class, in the order of their keys' hashes; unlabelled ones last."""
    found: dict[int | None, list[tuple[str, str, int]]] = {}
    tables = {split: data.index(split) for split in data.splits}
    for split, table in tables.items():
        columns = (table[name].to_pylist() for name in ("key", "class_index", "removed"))
        for number, (key, index, removed) in enumerate(zip(*columns, strict=True)):
            if not removed:
                order = hashlib.sha256(key.encode()).hexdigest()
                found.setdefault(index, []).append((order, split, number))
    return {
        index: [tables[split].slice(number, 1).to_pylist()[0] for _, split, number in sorted(places)[:count]]
        for index, places in sorted(found.items(), key=lambda item: (item[0] is None, item[0]))
    }


def _sheet(data: Dataset, number: int, rows: list[dict[str, Any]], folder: Path) -> Sheet:
    """The middle frames of one class's clips beside each other, their flow below."""
    samples = [data.read_row(row) for row in rows]
    middles = [range(row["frames"] // 2, row["frames"] // 2 + 1) for row in rows]
    pairs = zip(samples, middles, strict=True)
    strips = [[_tile(clip.decode(s.members["mp4"], middle)[0]) for s, middle in pairs]]
    if all("flow.mp4" in s.members for s in samples):
        flows = [decode_flow(s.members["flow.mp4"], m)[0] for s, m in zip(samples, middles, strict=True)]
        strips.append([_tile(colour(flow, _longest(flow))) for flow in flows])
    sheet = np.concatenate([np.concatenate(strip, axis=1) for strip in strips])
    name = f"class-{number:05d}.jpg"
    _picture(folder / name, sheet)
    label = rows[0]["label"] or ""
    return Sheet(label, name, sheet.shape[1], sheet.shape[0], len(rows), len(strips) == 2)


def _play(data: Dataset, row: dict[str, Any], folder: Path) -> Playing:
    """Write the videos of one clip as stored, and its flow in colours."""
    sample = data.read_row(row)
    key, middle = row["key"], row["frames"] // 2
    (folder / f"{key}.mp4").write_bytes(sample.members["mp4"])
    _picture(folder / f"{key}.jpg", clip.decode(sample.members["mp4"], range(middle, middle + 1))[0])
    if sample.flow is None:
        return Playing(row, sample.meta, None)
    (folder / f"{key}.flow.mp4").write_bytes(sample.members["flow.mp4"])
    longest = _longest(sample.flow)
    _picture(folder / f"{key}.colours.jpg", colour(sample.flow[middle], longest))
    _video(folder / f"{key}.colours.mp4", sample, longest, data.rate)
    return Playing(row, sample.meta, longest)


def _longest(flow: np.ndarray) -> float:
    """The length in pixels that gets full colour: the 98th percentile, at least one pixel."""
    thinned = flow[..., ::4, ::4, :]
    return max(1.0, float(np.percentile(np.hypot(thinned[..., 0], thinned[..., 1]), 98)))


def _tile(picture: np.ndarray) -> np.ndarray:
    """The middle of a uint8 (H, W, 3) picture as a square of TILE pixels."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = np.ascontiguousarray(picture[top : top + side, left : left + side])
    frame = av.VideoFrame.from_ndarray(square, format="rgb24")
    return frame.reformat(TILE, TILE, interpolation="AREA").to_ndarray(format="rgb24")


def _picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a JPEG with full colour resolution, which keeps thin coloured edges."""
    height, width, _ = picture.shape
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, "yuvj444p"
    codec.time_base = Fraction(1)
    codec.options = {"qmin": "3", "qmax": "3"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    packets = [*codec.encode(frame.reformat(format="yuvj444p")), *codec.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))


def _video(path: Path, sample: Sample, longest: float, rate: int) -> None:
    """Write a sample's flow in colours, as many frames as its RGB. Raises Failed(environment)."""
    flow = sample.flow
    assert flow is not None
    frames, height, width, _ = flow.shape
    options = (
        f"-hide_banner -loglevel error -y -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i pipe:0 "
        f"-frames:v {frames} -vf scale=out_color_matrix=bt709:out_range=tv,format=yuv420p -color_range tv "
        "-colorspace bt709 -color_primaries bt709 -color_trc bt709 "
        "-c:v libx264 -preset veryfast -crf 20 -g 16 -threads 1 -movflags +faststart -f mp4"
    )
    command = [clip.ffmpeg_binary(), *options.split(), os.fspath(path)]
    shown = code_table(longest)
    codes = (coding.quantise(frame) for frame in flow)
    pictures = (shown[code[..., 1], code[..., 0]].tobytes() for code in codes)
    done = subprocesses.run(command, timeout=_ENCODE_SECONDS, stdin=pictures)
    if done.returncode:
        words = done.stderr.strip()[-300:] or f"exit status {done.returncode}"
        raise Failed(FailureClass.ENVIRONMENT, f"ffmpeg could not write {path.name}: {words}")
