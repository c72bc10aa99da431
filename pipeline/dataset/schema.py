"""The published format: names, schemas, and the checks that make an untrusted data set safe to read by.

Sizes are limited, paths must be the ones this format writes, offsets must lie inside their shard.
Reading samples belongs to `pipeline.dataset`, writing them to `pipeline.dataset.shards` and
`pipeline.dataset.publish`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import KEY
from pipeline.media.recipe import EncodeRecipe
from pipeline.recipe import Recipe, unknown
from pipeline.storage import Storage

FORMAT = "quovadis/1"
SPLITS = ("train", "val", "test")
UNKNOWN_SPLIT = "unknown"  # of a malformed manifest row
MEDIA = {"rgb": "mp4", "flow": "flow.mp4"}
"""Name of a media member in the index -> its suffix in the tar."""
MEMBERS = ("cls", "flow.mp4", "json", "mp4")
"""Suffixes of a sample's members, in their order in the tar."""
REMOVED_MEMBER = "__removed__"
REMOVED_LOG = "removed.jsonl"
"""The log of takedowns, with time and reason: one JSON object a line."""
REMOVING_LOG = "removing.jsonl"
"""The same for a takedown that was interrupted."""

FLOW_BOUND = 20.0  # pixels a frame; what lies beyond was clipped
FLOW_ZERO = 128  # the luma value that stands for no motion
FLOW_SCALE = 127  # luma steps from zero to the bound: v = (g - 128) * 20 / 127

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("class_index", pa.int32()),
        pa.field("youtube_id", pa.string(), nullable=False),
        pa.field("time_start", pa.float64(), nullable=False),
        pa.field("time_end", pa.float64(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("sample_offset", pa.int64(), nullable=False),
        pa.field("sample_size", pa.int64(), nullable=False),
        pa.field("rgb_offset", pa.int64(), nullable=False),
        pa.field("rgb_size", pa.int64(), nullable=False),
        pa.field("rgb_sha256", pa.string(), nullable=False),
        pa.field("flow_offset", pa.int64()),
        pa.field("flow_size", pa.int64()),
        pa.field("flow_sha256", pa.string()),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("flow_saturation", pa.float64()),
        pa.field("removed", pa.bool_(), nullable=False),
    ]
)
"""One row a sample. Offsets from the tar's start and sizes in bytes, times in seconds."""

OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("manifest", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("youtube_id", pa.string()),
        pa.field("time_start", pa.float64()),
        pa.field("time_end", pa.float64()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("excluded_for", pa.string()),
        pa.field("failure_class", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("retry_after", pa.timestamp("us", tz="UTC")),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("yielded_to", pa.string()),
        pa.field("generation", pa.string()),
    ]
)
"""One row for each manifest row decided in a generation; field for field `pipeline.outcome.Outcome`."""

META_FILE = "dataset.json"
MAX_SAMPLE = 1 << 30  # bytes
_MAX_META = 1 << 26
_GENERATION = re.compile(r"[0-9]{5}")
SHARD = re.compile(r"shards/(train|val|test)-([0-9]{5})-[0-9]{5}\.tar")
"""Path of a shard; its groups are split and generation."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DatasetError(ValueError):
    """A folder holds no data set, or a damaged one: one sentence that names the file."""


@dataclass(frozen=True)
class ShardInfo:
    """A shard as dataset.json names it: path relative to ROOT, samples, size in bytes, sha256 in hex."""

    path: str
    split: str
    generation: str
    samples: int
    size: int
    sha256: str


def index_path(split: str, generation: str) -> str:
    """Where a split's samples of one generation are listed; absent where there are none."""
    return f"index/{split}-{generation}.parquet"


def outcome_path(generation: str) -> str:
    """Where a generation's outcomes are listed."""
    return f"outcomes/{generation}.parquet"


def shard_path(split: str, generation: str, number: int) -> str:
    """``shards/<split>-<generation>-<number>.tar``, five digits each."""
    return f"shards/{split}-{generation}-{number:05d}.tar"


def generation_name(number: int) -> str:
    """Five digits, counted from 00000: `--wave` may publish many."""
    return f"{number:05d}"


def read_meta(storage: Storage) -> dict[str, Any] | None:
    """dataset.json, checked; None where there is none. Raises DatasetError for an unfit one."""
    where = storage.where(META_FILE)
    try:
        meta = json.loads(storage.read_bytes(META_FILE, _MAX_META))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON: {error}") from None
    if problem := problem_with(meta):
        raise DatasetError(f"{where}: {problem}")
    return meta


def problem_with(meta: Any) -> str | None:
    """The first fault of a dataset.json, None where there is none."""
    if not isinstance(meta, dict):
        return "not an object"
    if (found := meta.get("format")) != FORMAT:
        later = re.fullmatch(r"quovadis/[1-9][0-9]*", str(found))
        remedy = "a newer version made it: upgrade quovadis" if later else "it is no data set of quovadis"
        return f"format {str(found)[:40]!r} is not {FORMAT!r}: {remedy}"
    classes: Any = meta.get("classes")
    counts, shards = meta.get("counts"), meta.get("shards")
    generations: Any = meta.get("generations")
    if not _strings(classes) or len(set(classes)) != len(classes):
        return "classes is no list of distinct names"
    if not isinstance(meta.get("recipe"), dict):
        return "recipe is no object"
    if not isinstance(meta.get("pyarrow", {}), dict):
        return "pyarrow is no object"
    if newer := unknown(Recipe, meta["recipe"]):
        return f"its recipe has {newer}, which this version does not know: upgrade quovadis"
    if not isinstance(meta["recipe"].get("encode", {}), dict) or not all(
        _count(number) and number > 0 for number in (rate(meta), short_side(meta))
    ):
        return "its recipe has no rate and short side that are whole numbers above 0"
    if not isinstance(counts, dict) or not all(
        split in (*SPLITS, UNKNOWN_SPLIT) and isinstance(row, dict) and all(_count(n) for n in row.values())
        for split, row in counts.items()
    ):
        return "counts is no table of split and outcome"
    if not _strings(generations) or generations != sorted(set(generations)):
        return "generations is no ascending list of names"
    if not all(_GENERATION.fullmatch(g) for g in generations):
        return "generations holds a name that is not five digits"
    if not isinstance(shards, list):
        return "shards is no list"
    seen: set[str] = set()
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or not _shard_is_sane(shard, generations) or shard["path"] in seen:
            return f"entry {number} of shards is not one that this format has"
        seen.add(shard["path"])
    return None


def rate(meta: dict[str, Any]) -> int:
    """Frames a second of a data set's clips and flow."""
    return meta["recipe"].get("encode", {}).get("rate", EncodeRecipe.rate)


def short_side(meta: dict[str, Any]) -> int:
    """Pixels of the short side of a data set's clips."""
    return meta["recipe"].get("encode", {}).get("short_side", EncodeRecipe.short_side)


def _shard_is_sane(shard: dict[str, Any], generations: list[str]) -> bool:
    path, sha256 = shard.get("path"), shard.get("sha256")
    match = SHARD.fullmatch(path) if isinstance(path, str) else None
    return (
        match is not None
        and match.groups() == (shard.get("split"), shard.get("generation"))
        and shard["generation"] in generations
        and _count(shard.get("samples"))
        and _count(shard.get("size"))
        and isinstance(sha256, str)
        and _SHA256.fullmatch(sha256) is not None
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def check_offsets(table: pa.Table, shards: dict[str, ShardInfo], split: str, where: str) -> None:
    """Raise DatasetError unless every row is of this split, in one of these shards, and inside it."""
    paths = pa.array(list(shards), pa.string())
    place = pc.index_in(table["shard"], paths)
    if place.null_count:
        raise DatasetError(f"{where} names a shard that dataset.json does not")
    if not pc.all(pc.equal(table["split"], split), min_count=0).as_py():
        raise DatasetError(f"{where} has rows of another split")
    if not pc.all(pc.match_substring_regex(table["key"], f"^(?:{KEY.pattern})$"), min_count=0).as_py():
        raise DatasetError(f"{where} has a key that is no plain name")
    ends = pc.take(pa.array([s.size for s in shards.values()], pa.int64()), place)
    begin, size = table["sample_offset"], table["sample_size"]
    small = pc.all(pc.less_equal(size, MAX_SAMPLE), min_count=0).as_py()
    if not small or not _within(begin, size, pa.scalar(0, pa.int64()), ends):
        raise DatasetError(f"{where} points outside its shards")
    sample_end = pc.add(begin, size)
    for name in MEDIA:
        if not _within(table[f"{name}_offset"], table[f"{name}_size"], begin, sample_end):
            raise DatasetError(f"{where} has a {name} member outside its sample")


def _within(offset: Any, size: Any, low: Any, high: Any) -> bool:
    """Whether low <= offset, 0 <= size and offset + size <= high in every row that has them (no overflow)."""
    checks = (
        pc.less_equal(low, offset),
        pc.greater_equal(size, 0),
        pc.less_equal(size, high),
        pc.less_equal(offset, pc.subtract(high, size)),
    )
    return all(pc.all(c, min_count=0).as_py() for c in checks)
