"""Checkpoints: self-contained files, written whole or not at all, read without running code."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.outcome import CallError
from pipeline.recipe import unknown
from pipeline.storage import Sync, replacing
from trainer.data.batches import Input, current_names

FORMAT = 2
KEPT = 2  # of a run: the newest and the one before it
BEST = "best.pt"  # of a run that evaluates: the checkpoint that scored highest

_SEAL = re.compile(rb"sha256:([0-9a-f]{64})\Z")
_SEAL_SIZE = len("sha256:") + 64
_ZIP_END_SIZE = 22  # bytes of a zip file's last record, whose last two are the length of the comment after it


class CheckpointError(RuntimeError):
    """The file is no checkpoint of ours, or not one for this use; one sentence."""


class UnfitError(CheckpointError, CallError):
    """The named checkpoint is absent, or is for another use: the call is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with everything needed to use it, and to resume its training."""

    network: str
    options: Mapping[str, Any]  # of the network's builder
    input: Input
    classes: tuple[str, ...]  # names, in the order of the logits
    generations: tuple[tuple[str, ...], ...]  # of each data set, those it was trained on
    configuration: Mapping[str, Any]  # the run's, as in RUN/configuration.json
    state: Mapping[str, int]  # seed, epoch and step within the epoch of the next batch
    steps: int  # taken so far
    weights: Mapping[str, Mapping[str, Tensor]]  # stream -> state dict
    optimiser: Mapping[str, Any] | None = None  # its state dict; None in an imported checkpoint
    fingerprint: str = ""  # `Rows.fingerprint` of its training data; empty where imported


def save(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes RUN/checkpoint-<steps>.pt and removes all but the newest `KEPT`."""
    path = run / f"checkpoint-{checkpoint.steps:09d}.pt"
    write(path, checkpoint)
    for old in _in_run(run)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def keep_best(run: Path) -> None:
    """Makes RUN/best.pt the newest checkpoint; later checkpoints do not remove it."""
    temporary = run / f".{BEST}.{os.getpid()}"
    try:
        newest = find(run)
        try:
            os.link(newest, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(newest, temporary)
        temporary.replace(run / BEST)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `path` whole or not at all: a temporary file, fsync, rename. It ends with its own sha256."""
    plain = {"format": FORMAT, **vars(checkpoint), "input": dict(vars(checkpoint.input))}
    plain["towers"] = plain.pop("weights")  # as all files have it
    plain |= {"classes": list(checkpoint.classes), "generations": list(map(list, checkpoint.generations))}
    with replacing(path, Sync.NAME) as temporary, temporary.open("w+b") as stream:
        torch.save(plain, stream)
        _seal(stream)


def find(path: str | Path) -> Path:
    """The checkpoint file at `path`: itself, or the newest of a RUN folder. Raises UnfitError."""
    path = Path(path)
    if path.is_dir():
        if found := _in_run(path):
            return found[0]
        raise UnfitError(f"{path} holds no checkpoint: name the --output of a training run")
    if not path.is_file():
        raise UnfitError(f"{path} is not there: name a checkpoint or the folder of a training run")
    return path


def resolve(named: Sequence[tuple[str, str | None]]) -> tuple[tuple[str, str | None], ...]:
    """Replaces RUN folders by files, looking at each once: a run may write newer ones meanwhile."""
    files = {path: str(find(path)) for path, _ in named}
    return tuple((files[path], stream) for path, stream in named)


def load(path: str | Path) -> Checkpoint:
    """The checkpoint at `path` (a file or a RUN folder), tensors on the CPU; a hostile file can run nothing.

    Raises CheckpointError, also for a file that is cut short or in which a byte has changed.
    """
    return read(path)[0]


def read(path: str | Path) -> tuple[Checkpoint, str]:
    """`load`, and the sha256 in hex of the file."""
    file = find(path)
    try:
        with file.open("rb") as stream:
            digest = _check_seal(file, stream)
            stream.seek(0)
            return _parse(file, stream), digest
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): look at its disk") from error


def _parse(file: Path, stream: BufferedReader) -> Checkpoint:
    try:
        plain = torch.load(stream, map_location="cpu", weights_only=True)
        if plain["format"] != FORMAT:
            raise CheckpointError(
                f"{file} has format {plain['format']}, this version reads {FORMAT}: upgrade quovadis"
            )
        plain["weights"] = plain.pop("towers")
        plain["input"] = current_names(plain["input"])
        known = {*Checkpoint.__dataclass_fields__, "format"}
        if newer := next((n for n in plain if n not in known), None) or unknown(Input, plain["input"]):
            raise CheckpointError(f"{file} has {newer}, which this version does not know: upgrade quovadis")
        plain["input"], plain["classes"] = Input(**plain["input"]), tuple(plain["classes"])
        plain["generations"] = tuple(map(tuple, plain["generations"]))
        return Checkpoint(**{name: plain[name] for name in Checkpoint.__dataclass_fields__})
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        said = str(error).strip().split("\n")[0][:120]
        raise CheckpointError(
            f"{file} is damaged or no checkpoint of this trainer ({type(error).__name__}: {said}): "
            "take another, or train again"
        ) from error


def newest(run: Path) -> tuple[Checkpoint | None, str | None]:
    """The newest readable checkpoint of a run (None: there is none), and a sentence where newer are damaged.

    Raises CheckpointError when none can be read.
    """
    damage: CheckpointError | None = None
    for file in _in_run(run):
        try:
            return load(file), f"{damage}; going on from {file.name}" if damage else None
        except CheckpointError as error:
            damage = damage or error
    if damage:
        raise damage
    return None, None


def set_aside(run: Path, steps: int) -> None:
    """Renames the damaged checkpoints after `steps`, so that none takes the place of a whole one."""
    for file in _in_run(run):
        if int(file.stem.rpartition("-")[2]) > steps:
            file.rename(file.with_name(f"{file.name}.damaged"))


def sweep(run: Path) -> None:
    """Removes half-written files of killed processes; nothing may be writing there now."""
    for file in run.glob(".*"):
        if re.fullmatch(rf"\.(checkpoint-\d+\.pt|{re.escape(BEST)})\.(\d+|.*\.tmp)", file.name):
            file.unlink(missing_ok=True)


def clear(run: Path) -> None:
    """Removes a run's checkpoints."""
    for file in (*_in_run(run), run / BEST):
        file.unlink(missing_ok=True)


def _in_run(run: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    return sorted((p for p in run.glob("checkpoint-*.pt") if re.search(r"-\d+\.pt$", p.name)), reverse=True)


def _seal(stream: BufferedRandom) -> None:
    """Appends the file's sha256 as a zip comment, which readers ignore."""
    stream.seek(-_ZIP_END_SIZE, os.SEEK_END)
    end = stream.read()
    if not (end.startswith(b"PK\5\6") and end.endswith(b"\0\0")):
        raise CheckpointError("this torch writes no zip files: install torch 2.13 or newer")
    stream.seek(-2, os.SEEK_END)
    stream.write(_SEAL_SIZE.to_bytes(2, "little"))
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    stream.seek(0, os.SEEK_END)
    stream.write(f"sha256:{digest}".encode())


def _check_seal(file: Path, stream: BufferedReader) -> str:
    """The sha256 of the whole file, in hex. Raises CheckpointError unless its seal fits."""
    digest = hashlib.sha256()
    left = os.fstat(stream.fileno()).st_size - _SEAL_SIZE
    while left > 0 and (part := stream.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    end = stream.read()
    seal = _SEAL.match(end)
    if seal is None:
        raise CheckpointError(
            f"{file} is cut short, or no checkpoint of this trainer: take another, or make one of another "
            "program's weights with `python -m trainer import`"
        )
    if seal[1].decode() != digest.hexdigest():
        raise CheckpointError(f"{file} is damaged, its bytes are not those that were written: take another")
    digest.update(end)
    return digest.hexdigest()
