"""Every parameter that changes bytes, its hash by stage, and the canary that proves a machine.

A stage's files are keyed by the hash of its own part alone, so that another flow parameter fetches
nothing and another encoder setting fetches nothing. No location, host or time stands in a recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from pipeline.flow.parameters import TVL1, FlowCoding
from pipeline.outcome import Failed, FailureClass
from pipeline.storage import AlreadyExists

if TYPE_CHECKING:
    import numpy as np

    from pipeline.storage.work_store import WorkStore


@dataclass(frozen=True)
class FetchRecipe:
    """What is asked of a site: which format, and how much round the section."""

    short_side: int = 256  # pixels; the smallest format that has at least this is asked for
    codec: str = "h264"  # preferred, not required
    before: float = 3.0  # seconds kept before the section: room for the encode's pre-roll
    after: float = 1.0  # seconds kept after it: the frame that follows the last


@dataclass(frozen=True)
class EncodeRecipe:
    """The clip: see facts of the one ffmpeg pass in `pipeline.media.clip`."""

    rate: int = 25  # frames a second
    short_side: int = 256  # pixels
    crf: int = 18
    preset: str = "fast"
    keyframe_interval: int = 16  # frames
    encoder: str = ""  # first line of `ffmpeg -version`; filled in by `pipeline.media.clip.encoder_version`


@dataclass(frozen=True)
class FlowRecipe:
    """The flow: its solver, its coding as video, and the kind of machine that computes it."""

    solver: TVL1 = field(default_factory=TVL1)
    coding: FlowCoding = field(default_factory=FlowCoding)
    device: str = "x86-64-v3"  # x86-64-v3 | cuda | other: machines of one class give the same bytes
    encoder: str = ""


@dataclass(frozen=True)
class Recipe:
    """All three parts; `flow` is None with ``--flow none``."""

    fetch: FetchRecipe
    encode: EncodeRecipe
    flow: FlowRecipe | None

    def as_dict(self) -> dict:
        """Nested plain values, as they stand in dataset.json."""
        return asdict(self)


def stage_hash(*parts: object) -> str:
    """16 hex digits over frozen dataclasses (or None), the same in every process and on every machine."""
    plain = [None if p is None else {"part": type(p).__name__, **asdict(p)} for p in parts]  # type: ignore[call-overload]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canary(recipe: Recipe, ffmpeg: str) -> dict[str, str]:
    """What this machine makes of a fixed second of video and a fixed pair of frames: sha256 by stage."""
    import numpy as np

    from pipeline.flow import tvl1_clip
    from pipeline.media import clip, subprocesses
    from pipeline.storage import scratch

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
    """Compare this worker's canary with the campaign's; the first worker's becomes the campaign's.

    A process that has proven itself is not asked again.

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
    """Raise `Failed` where the recipe, made by the launching machine, names what this machine has not."""
    from pipeline.flow import device_class
    from pipeline.media import clip

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
_proven: set[tuple[str, str, str]] = set()  # what this process has proven: work store, canary, encoder


def _canary_frames() -> np.ndarray:
    """Two seconds of drifting texture at 30 fps, uint8 (60, 128, 160), made of integers only."""
    import numpy as np

    y, x, t = np.mgrid[0:128, 0:160, 0:60].transpose(0, 3, 1, 2)
    texture = ((x + t) * (y + 2 * t) // 16 + 7 * (x + t) + 13 * y) % 200 + 20
    return texture.astype(np.uint8)
