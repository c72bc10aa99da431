"""A small published data set for the trainer's tests: packed by the pipeline, encoded by the bundled ffmpeg.

Each class moves a random texture in its own direction; nothing else tells the classes apart.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import schema, shards
from pipeline.flow.recipe import FlowRecipe
from pipeline.media.recipe import EncodeRecipe
from pipeline.recipe import Recipe
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage import Storage, open_storage
from pipeline.storage.tables import write_table
from pipeline.storage.work_store import Stored, canonical_json

MOTIONS = ((2, 0), (-2, 0), (0, 2), (0, -2))
"""(u, v) in pixels a frame, by class."""

Picture = Callable[[int, int], np.ndarray]


def publish(
    root: Path,
    samples: dict[str, int] | None = None,
    *,
    frames: Sequence[int] = (40,),
    size: tuple[int, int] = (96, 64),
    classes: int = 4,
    flow: bool = True,
    shard_size: int = 5,
    picture: Picture | None = None,
    motion: Picture | None = None,
    generation: str = "00000",
    append: bool = False,
    rate: int = 25,
    short_side: int = 256,
) -> Path:
    """Publish a data set under `root` and return it.

    Args:
        samples: split -> clips, the classes in turn; 12 for train and 6 for val by default.
        frames: length of each clip, in turn.
        size: (width, height) in pixels, both even.
        picture: (clip, frame) -> uint8 (H, W, 3) instead of the moving texture.
        motion: (clip, frame) -> float32 (H, W, 2) in pixels instead of the class's motion.
        generation, append: add a generation to the data set that is there.
        rate, short_side: of the recipe; clips have the rate, and the size of `size`.
    """
    storage, work = open_storage(root), open_storage(root / "work")
    infos: list[shards.ShardInfo] = []
    for split, count in (samples or {"train": 12, "val": 6}).items():
        packed = [
            _sample(
                work,
                f"{split}{generation[-1]}-{i:03d}",
                split,
                i,
                i % classes,
                frames,
                size,
                flow,
                picture,
                motion,
                rate,
            )
            for i in range(count)
        ]
        rows: list[dict] = []
        for number, first in enumerate(range(0, count, shard_size)):
            part = packed[first : first + shard_size]
            info, added = shards.pack(part, work, storage, schema.shard_path(split, generation, number))
            infos.append(info)
            rows += added
        table = pa.Table.from_pylist(rows, schema=schema.INDEX_SCHEMA)
        write_table(storage, schema.index_path(split, generation), table)
    before = schema.read_meta(storage) if append else None
    recipe = Recipe(
        FetchRecipe(), EncodeRecipe(rate=rate, short_side=short_side), FlowRecipe() if flow else None
    )
    meta = {
        "format": schema.FORMAT,
        "recipe": recipe.as_dict(),
        "classes": [f"motion {c}" for c in range(classes)],
        "counts": {},
        "generations": [*(before["generations"] if before else []), generation],
        "shards": [*(before["shards"] if before else []), *map(asdict, infos)],
    }
    storage.write(schema.META_FILE, canonical_json(meta))
    return root


def spoil(root: Path, split: str, keys: Iterable[str], stream: str = "rgb") -> None:
    """Zero the payload of some members: readable as a tar, not as a video."""
    for key in keys:
        table = pq.read_table(root / f"index/{split}-00000.parquet").to_pylist()
        row = next(r for r in table if r["key"] == key)
        with open(root / row["shard"], "r+b") as file:
            file.seek(row[f"{stream}_offset"])
            file.write(bytes(row[f"{stream}_size"]))


def remove(root: Path, split: str, keys: set[str]) -> None:
    """Mark rows as removed, as a takedown does."""
    path = root / f"index/{split}-00000.parquet"
    table = pq.read_table(path)
    rows = [row | {"removed": row["key"] in keys} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def moving_texture(clip: int, frame: int, motion: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A blocky random texture of its own for each clip, moved by `motion` a frame: uint8 (H, W, 3)."""
    width, height = size
    blocks = np.random.default_rng(clip).integers(30, 225, (height // 8, width // 8, 3), np.uint8)
    texture = blocks.repeat(8, 0).repeat(8, 1)
    shift = (motion[1] * frame, motion[0] * frame)
    return np.roll(texture, shift, (0, 1))


def encode(
    pictures: Sequence[np.ndarray], path: Path, matrix: str = "bt601", tag: str | None = None, rate: int = 25
) -> None:
    """uint8 (H, W, 3) pictures -> H.264, a keyframe every 16, limited range."""
    height, width = pictures[0].shape[:2]
    colour = f"scale=out_color_matrix={matrix}:out_range=tv:flags=accurate_rnd+bitexact,format=yuv420p"
    picture = ["-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    tags = ["-colorspace", tag] if tag else []
    _run(picture, b"".join(p.tobytes() for p in pictures), ["-vf", colour, *tags], path, rate)


def encode_flow(motions: Sequence[np.ndarray], path: Path, bound: float = 20.0, rate: int = 25) -> None:
    """float32 (H, W, 2) in pixels -> the contract's flow video: u above v, full range, 128 for zero."""
    height, width = motions[0].shape[:2]
    data = bytearray()
    for flow in motions:
        g = np.clip(np.rint(flow * (127 / bound)) + 128, 1, 255).astype(np.uint8)
        data += g[..., 0].tobytes() + g[..., 1].tobytes() + bytes([128]) * (height * width)
    picture = ["-pix_fmt", "yuv420p", "-color_range", "pc", "-s", f"{width}x{2 * height}"]
    _run(picture, bytes(data), ["-color_range", "pc"], path, rate)


def _run(picture: list[str], data: bytes, options: list[str], path: Path, rate: int) -> None:
    source = ["-f", "rawvideo", *picture, "-r", str(rate), "-i", "-"]
    coding = ["-c:v", "libx264", "-preset", "fast", "-crf", "12", "-g", "16", "-threads", "1"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *options, *coding]
    subprocess.run([*command, "-movflags", "+faststart", str(path)], input=data, check=True)


def _sample(
    work: Storage,
    key: str,
    split: str,
    number: int,
    class_index: int,
    frames: Sequence[int],
    size: tuple[int, int],
    flow: bool,
    picture: Picture | None,
    motion: Picture | None,
    rate: int,
) -> shards.PackedSample:
    length, (width, height) = frames[number % len(frames)], size
    moved = MOTIONS[class_index % len(MOTIONS)]
    seed = number + 1000 * schema.SPLITS.index(split)
    clip = [picture(number, t) if picture else moving_texture(seed, t, moved, size) for t in range(length)]
    members = {"mp4": _stored(work, f"{key}.mp4", lambda path: encode(clip, path, rate=rate))}
    if flow:
        still = np.broadcast_to(np.float32(moved), (height, width, 2))
        motions = [motion(number, t) if motion else still for t in range(length)]
        members["flow.mp4"] = _stored(
            work, f"{key}.flow.mp4", lambda path: encode_flow(motions, path, rate=rate)
        )
    meta = {"key": key, "frames": length, "width": width, "height": height}
    meta |= {"flow": {"saturation": 0.0}} if flow else {}
    label = f"motion {class_index}"
    return shards.PackedSample(key, label, class_index, split, key, 0.0, length / rate, meta, members)


def _stored(work: Storage, name: str, write: Callable[[Path], None]) -> Stored:
    path = work.local(f"media/{name}")
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    data = path.read_bytes()
    return Stored(f"media/{name}", len(data), hashlib.sha256(data).hexdigest())
