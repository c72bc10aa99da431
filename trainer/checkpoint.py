"""Checkpoints: files that stand alone, written so that none is ever half there, read without running code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.data.batch import Input

FORMAT = 1
KEPT = 2  # of a run: the newest and the one before it


class CheckpointError(RuntimeError):
    """A file that is no checkpoint of ours, or not one for this use; one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all it takes to use it, and with what it takes to go on.

    Attributes:
        network, options: name and builder's options.
        input: what the network is fed, with stream, normalisation and flow bound.
        classes: the names, in the order of the logits.
        generations: of each data set, those it was trained on.
        configuration: the run's, as in RUN/configuration.json.
        state: seed, epoch and step within the epoch of the next batch.
        steps: taken so far.
        towers: stream -> state dict.
        optimiser: its state dict; None in a checkpoint that only stands for its weights.
    """

    network: str
    options: Mapping[str, Any]
    input: Input
    classes: tuple[str, ...]
    generations: tuple[tuple[str, ...], ...]
    configuration: Mapping[str, Any]
    state: Mapping[str, int]
    steps: int
    towers: Mapping[str, Mapping[str, Tensor]]
    optimiser: Mapping[str, Any] | None = None


def save(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes RUN/checkpoint-<steps>.pt and removes those before the previous one."""
    path = run / f"checkpoint-{checkpoint.steps:09d}.pt"
    write(path, checkpoint)
    for old in _in_run(run)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `path` whole or not at all: a temporary file, fsync, rename."""
    plain = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    plain["input"] = dict(vars(checkpoint.input))
    plain["classes"] = list(checkpoint.classes)
    plain["generations"] = [list(names) for names in checkpoint.generations]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            torch.save({"format": FORMAT, **plain}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def find(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a RUN folder. Raises CheckpointError."""
    path = Path(path)
    if path.is_dir():
        if found := _in_run(path):
            return found[0]
        raise CheckpointError(f"{path} holds no checkpoint: name the --output of a training run")
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: name a checkpoint or the folder of a training run")
    return path


def load(path: str | Path) -> Checkpoint:
    """The checkpoint at `path` (a file or a RUN folder), tensors on the CPU.

    Only tensors and plain values are read, so a hostile file can run nothing. Raises CheckpointError.
    """
    file = find(path)
    try:
        plain = torch.load(file, map_location="cpu", weights_only=True)
        if plain["format"] != FORMAT:
            raise CheckpointError(
                f"{file} has format {plain['format']}, this trainer reads {FORMAT}: update it"
            )
        values = {name: plain[name] for name in Checkpoint.__dataclass_fields__}
        values["input"] = Input(**values["input"])
        values["classes"] = tuple(values["classes"])
        values["generations"] = tuple(tuple(names) for names in values["generations"])
        return Checkpoint(**values)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        said = str(error).strip().split("\n")[0][:120]
        raise CheckpointError(
            f"{file} is damaged or no checkpoint of this trainer ({type(error).__name__}: {said}): "
            "take another, or train again"
        ) from error


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that can be read; None where there is none at all.

    Raises CheckpointError when there are some and none can be read.
    """
    damage: CheckpointError | None = None
    for file in _in_run(run):
        try:
            return load(file)
        except CheckpointError as error:
            damage = damage or error
    if damage:
        raise damage
    return None


def clear(run: Path) -> None:
    """Removes a run's checkpoints."""
    for file in _in_run(run):
        file.unlink(missing_ok=True)


def _in_run(run: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    return sorted((p for p in run.glob("checkpoint-*.pt") if re.search(r"-\d+\.pt$", p.name)), reverse=True)
