"""A small data set for the tests, published through the ordinary functions from videos made on the spot."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
import pyarrow as pa

from pipeline.dataset import publish, shards
from pipeline.dataset.schema import OUTCOME_SCHEMA, ShardInfo, shard_path
from pipeline.flow.recipe import FlowRecipe
from pipeline.lists.plan import SCHEMA as PLAN_SCHEMA
from pipeline.media.recipe import EncodeRecipe
from pipeline.recipe import Recipe
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage import Storage, open_storage
from pipeline.storage.work_store import WorkStore

SECONDS = 2
CLASSES = ["jump", "walk"]
RECIPE = Recipe(FetchRecipe(), EncodeRecipe(encoder="test"), FlowRecipe()).as_dict()
_X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "16", "-pix_fmt", "yuv420p", "-an"]


@functools.cache
def video(number: int, flow: bool = False, options: tuple[str, ...] = (), size: str = "320x256") -> Path:
    """A clip (320x256, limited range) or a flow video (320x512, full range, chroma 128) of two seconds."""
    size = "320x512" if flow else size
    name = hashlib.sha256(repr((number, flow, options, size)).encode()).hexdigest()[:16]
    target = _folder() / f"{name}.mp4"
    if target.exists():
        return target
    if flow:
        source = f"testsrc=size={size}:rate=25,hue=h={number},format=gray,format=yuvj420p"
        extra = ["-color_range", "pc", "-pix_fmt", "yuvj420p"]
    else:
        source, extra = f"testsrc=size={size}:rate=25,hue=h={number},format=yuv420p", ["-color_range", "tv"]
    inputs = ["-f", "lavfi", "-t", str(SECONDS), "-i", source]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *inputs]
    made = target.with_suffix(f".{os.getpid()}.mp4")
    subprocess.run([*command, *_X264, *extra, *options, str(made)], check=True)
    made.rename(target)
    return target


def _folder() -> Path:
    """One folder for this process and the ones it starts."""
    if "QUOVADIS_TEST_VIDEOS" not in os.environ:
        os.environ["QUOVADIS_TEST_VIDEOS"] = folder = tempfile.mkdtemp(prefix="quovadis-test-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(os.environ["QUOVADIS_TEST_VIDEOS"])


@dataclass(frozen=True)
class Row:
    """A manifest row of the small data set and what is to become of it."""

    name: str
    split: str = "train"
    label: str | None = "walk"
    decision: str = "process"
    outcome: str = "ready"
    why: str | None = None  # excluded_for or failure_class


ROWS = (
    Row("aaaaaaaaaa1"),
    Row("bbbbbbbbbb2", label="jump"),
    Row("-cccccccc_3"),
    Row("dddddddddd4", split="val", label="jump"),
    Row("eeeeeeeeee5", split="test", label=None),
    Row("aaaaaaaaaa1", decision="excluded", outcome="excluded", why="duplicate"),
    Row("ffffffffff6", outcome="failed", why="network"),
    Row("", split="unknown", label=None, decision="failed", outcome="failed", why="manifest"),
)


@dataclass
class Generation:
    """All that `publish.publish` wants."""

    storage: Storage
    plan: pa.Table
    outcomes: list[pa.Table]
    packed: list[tuple[ShardInfo, pa.Table]]
    recipe: dict = field(default_factory=lambda: RECIPE)
    classes: list[str] = field(default_factory=lambda: CLASSES)
    generation: str = "00000"

    def publish(self) -> dict:
        arguments = {name: value for name, value in vars(self).items() if name != "storage"}
        return publish.publish(self.storage, **arguments)


def key(name: str) -> str:
    return f"{name}_000001_000003"


def sample(work: WorkStore, row: Row, number: int, with_flow: bool = True) -> shards.PackedSample:
    """A ready clip with its members in the work store."""
    members = {"mp4": work.put_file("encode", "0", key(row.name), ".mp4", video(number))}
    meta: dict = {
        "key": key(row.name),
        "frames": 25 * SECONDS,
        "width": 320,
        "height": 256,
        "note": None,
        "source": {"kind": "dir", "codec": "h264", "width": 1, "height": 1, "rate": 30.0, "duration": 10.0},
    }
    if with_flow:
        members["flow.mp4"] = work.put_file("flow", "0", key(row.name), ".flow.mp4", video(number, True))
        meta["flow"] = {"bound": 20.0, "saturation": 0.25, "tvl1": {"tau": 0.25}}
    index = CLASSES.index(row.label) if row.label else None
    return shards.PackedSample(
        key(row.name), row.label, index, row.split, row.name, 1.0, 1.0 + SECONDS, meta, members
    )


def prepare(
    root: Path | str,
    rows: tuple[Row, ...] = ROWS,
    generation: str = "00000",
    with_flow: bool = True,
    first_row: int = 2,
) -> Generation:
    """Pack the ready rows into ROOT/shards, two clips a shard, and gather what publishing needs."""
    storage, work = open_storage(root), WorkStore(f"{root}/work")
    plan, outcomes = [], []
    ready: dict[str, list[shards.PackedSample]] = {}
    for number, row in enumerate(rows):
        known = bool(row.name)
        fields = {
            "manifest": "list.csv",
            "row": first_row + number,
            "key": key(row.name) if known else None,
            "youtube_id": row.name if known else None,
            "time_start": 1.0 if known else None,
            "time_end": 1.0 + SECONDS if known else None,
            "label": row.label,
            "split": row.split,
            "excluded_for": row.why if row.outcome == "excluded" else None,
            "failure_class": row.why if row.outcome == "failed" else None,
            "reason": None if row.outcome == "ready" else f"because of {row.why}",
        }
        early = (
            dict.fromkeys(("excluded_for", "failure_class", "reason")) if row.decision == "process" else {}
        )
        index = CLASSES.index(row.label) if row.label else None
        plan.append(fields | early | {"decision": row.decision, "class_index": index})
        if row.decision == "process":
            outcomes.append(fields | {"outcome": row.outcome, "attempts": 1})
        if row.outcome == "ready":
            ready.setdefault(row.split, []).append(sample(work, row, number, with_flow))
    packed = []
    for split, samples in ready.items():
        samples.sort(key=lambda s: shards.order(s.key))
        for first in range(0, len(samples), 2):
            path = shard_path(split, generation, first // 2)
            info, index_rows = shards.pack(samples[first : first + 2], work.storage, storage, path)
            part = f"packed/{path}.parquet"
            shards.write_part(work.storage, part, info, index_rows)
            packed.append(shards.read_part(work.storage, part))
    recipe = RECIPE if with_flow else RECIPE | {"flow": None}
    return Generation(
        storage,
        pa.Table.from_pylist(plan, schema=PLAN_SCHEMA),
        [
            pa.Table.from_pylist(outcomes[i : i + 3], schema=OUTCOME_SCHEMA)
            for i in range(0, len(outcomes), 3)
        ],
        packed,
        recipe,
        generation=generation,
    )
