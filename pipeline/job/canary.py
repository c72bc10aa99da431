"""The canary: a small test encode and flow by which each worker proves that it gives the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading

import numpy as np

from pipeline.flow import device_class, tvl1_clip
from pipeline.media import clip, subprocesses
from pipeline.outcome import Failed, FailureClass
from pipeline.recipe import Recipe, stage_hash
from pipeline.storage import AlreadyExists, scratch
from pipeline.storage.work_store import WorkStore


def canary(recipe: Recipe, ffmpeg: str) -> dict[str, str]:
    """Encodes a fixed second of video and solves a fixed pair of frames on this machine: sha256 by stage."""
    frames = _canary_frames()
    found = {}
    with scratch.folder() as folder:
        source, out = folder / "canary.mkv", folder / "canary.mp4"
        height, width = frames.shape[1:]
        given = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", "30", "-i", "-"]
        made = subprocesses.run(
            [ffmpeg, "-v", "error", *given, "-pix_fmt", "yuv420p", "-c:v", "ffv1", str(source)],
            timeout=60,
            stdin=[frames.tobytes()],
        )
        if made.returncode:
            code = made.returncode
            ended = f"exit status {code}" if code > 0 else signal.Signals(-code).name
            said = (made.stderr.strip().splitlines() or [ended])[-1]
            raise Failed(FailureClass.STORAGE, f"{ffmpeg} cannot write to {folder}: {said}")
        clip.cut(source, 0.5, 1.5, recipe.encode, out, ffmpeg=ffmpeg, timeout=60)
        found["encode"] = hashlib.sha256(out.read_bytes()).hexdigest()
    if recipe.flow is not None:
        device = "cuda" if recipe.flow.device == "cuda" else "cpu"
        flow = tvl1_clip(frames[:2], recipe.flow.solver, device=device)
        found["flow"] = hashlib.sha256(np.ascontiguousarray(flow).tobytes()).hexdigest()
    return found


def check_canary(recipe: Recipe, ffmpeg: str, store: WorkStore) -> None:
    """Compare this worker's canary with the first worker's, which stands in the work store.

    A process computes it once.

    Raises:
        Failed: class environment, when this machine gives other bytes, or has another encoder or another
            kind of processor than the recipe names.
    """
    path = store.path("canary", stage_hash(recipe.encode, recipe.flow), "canary", ".json")
    proof = (store.storage.url, path, ffmpeg)
    with _proving:
        if proof not in _proven:
            _check_kind(recipe, ffmpeg)
            _compare(canary(recipe, ffmpeg), store, path)
            _proven.add(proof)


def _check_kind(recipe: Recipe, ffmpeg: str) -> None:
    """Raise `Failed` where this machine lacks the encoder or the kind of processor that the recipe names."""

    here = os.uname().nodename
    encoder = clip.encoder_version(ffmpeg)
    if encoder != recipe.encode.encoder:
        raise Failed(
            FailureClass.ENVIRONMENT,
            f"{here} encodes with {encoder!r}, the recipe with {recipe.encode.encoder!r}; install the same "
            "imageio-ffmpeg on the launching machine and on all workers, or name one that all have: --ffmpeg",
        )
    if recipe.flow is None:
        return
    device = device_class("cuda" if recipe.flow.device == "cuda" else "cpu")
    if device != recipe.flow.device:
        raise Failed(
            FailureClass.ENVIRONMENT,
            f"{here} is a machine of the kind {device!r}, the recipe's flow is of {recipe.flow.device!r}; "
            "use workers of that kind, or launch from a machine of the workers' kind into another --output",
        )


def _compare(mine: dict[str, str], store: WorkStore, path: str) -> None:
    with contextlib.suppress(AlreadyExists):
        store.storage.create(path, json.dumps(mine, sort_keys=True).encode())
    first = json.loads(store.storage.read_bytes(path))
    if other := [stage for stage in mine if mine[stage] != first.get(stage)]:
        raise Failed(
            FailureClass.ENVIRONMENT,
            f"{os.uname().nodename} gives other bytes for {' and '.join(other)} than the first worker of "
            "this data set; use machines of one kind with the same ffmpeg, or another --work and --output",
        )


_proving = threading.Lock()
_proven: set[tuple[str, str, str]] = set()  # by this process: work store, canary, encoder


def _canary_frames() -> np.ndarray:
    """Two seconds of drifting texture at 30 fps, uint8 (60, 128, 160), made of integers only."""
    y, x, t = np.mgrid[0:128, 0:160, 0:60].transpose(0, 3, 1, 2)
    texture = ((x + t) * (y + 2 * t) // 16 + 7 * (x + t) + 13 * y) % 200 + 20
    return texture.astype(np.uint8)
