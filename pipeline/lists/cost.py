"""Estimates the cost of a plan: site requests, core hours, bytes, and time at a budget of videos.

The measured costs of a clip stand here only: ``prepare --plan`` and docs/cost.md are computed from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.outcome import PROCESS


@dataclass(frozen=True)
class Costs:
    """The cost of a second of video, measured unless called assumed; replace it by your own figures.

    Encode and flow: 1.1 to 1.5 core seconds, and 250 pairs of 15 to 32 ms, for a 10 s clip of
    340x256 on one AVX-512 core. Bytes: Kinetics-400, 306,245 clips of 10 s, is about 0.45 TB of clips
    and flow, of which flow 0.7 MB a clip. Sources: assumed, H.264 of 360 lines at 0.7 Mbit/s.
    """

    encode_core_seconds: float = 0.13  # core seconds a second of video
    flow_core_seconds: float = 0.55
    clip_bytes: float = 77_000  # bytes a second of video, in the shard and in the work store
    flow_bytes: float = 70_000
    source_bytes: float = 88_000
    source_margin: float = 4.0  # seconds fetched round each clip
    job_core_seconds: float = 0.01  # core seconds a clip for the job itself: benchmarks/scale.py
    store_puts: float = 6.0  # requests to an object store a clip: benchmarks/scale.py --store
    store_gets: float = 7.0


def estimate(table: pa.Table, **choices: Any) -> dict[str, Any]:
    """The cost of carrying out a plan with the choices that `of` takes, if every video is still there."""
    planned = pc.equal(table["decision"], PROCESS)

    def chosen(*names: str) -> pa.Table:  # few columns at a time: all of Kinetics in little memory
        return table.select(names).filter(planned)

    times = chosen("time_start", "time_end")
    seconds = float(pc.sum(pc.subtract(times["time_end"], times["time_start"])).as_py() or 0.0)
    shards = chosen("split", "shard").group_by(["split", "shard"], use_threads=False).aggregate([])
    return {
        "rows": table.num_rows,
        "by_split": _counts(chosen("split"), "split"),
        "excluded": _counts(table, "excluded_for"),
        "failed": sum(_counts(table, "failure_class").values()),
        "shards": shards.num_rows,
        **of(times.num_rows, pc.count_distinct(chosen("video")["video"]).as_py(), seconds, **choices),
    }


def of(
    clips: int,
    videos: int,
    seconds: float,
    *,
    flow: bool = True,
    network: bool = True,
    keep_sources: bool = True,
    budget: float | None = 300.0,
    pixels: float = 1.0,
    costs: Costs | None = None,
) -> dict[str, Any]:
    """The cost of so many clips out of so many videos, of `seconds` in all.

    Args:
        flow, network, keep_sources: whether flow is computed, videos are asked for over the network, and
            fetched videos are kept.
        budget: videos an hour; 300 is what a video site lets a guest have; None where nothing limits it.
        pixels: a second, as a multiple of the default recipe's.
    """
    costs = costs or Costs()
    data_set = seconds * pixels * (costs.clip_bytes + flow * costs.flow_bytes)
    sources = (seconds + costs.source_margin * clips) * costs.source_bytes * network * keep_sources
    hours = {
        "encode_core_hours": seconds * pixels * costs.encode_core_seconds / 3600,
        "flow_core_hours": seconds * pixels * costs.flow_core_seconds / 3600 * flow,
        "job_core_hours": clips * costs.job_core_seconds / 3600,
    }
    return {
        "clips": clips,
        "videos": videos,
        "requests": videos * network,
        "budget": budget,
        "hours": videos / budget * network if budget else None,
        "footage_hours": seconds / 3600,
        **hours,
        "core_hours": sum(hours.values()),
        "store_puts": round(clips * costs.store_puts),
        "store_gets": round(clips * costs.store_gets),
        "data_set_bytes": round(data_set),
        "work_bytes": round(data_set),
        "source_bytes": round(sources),
        "disk_bytes": round(2 * data_set + sources),
    }


def describe(costs: dict[str, Any]) -> str:
    """An `estimate` as the lines that ``prepare --plan`` prints."""

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"

    def size(number: int) -> str:
        return f"{number / 1e12:,.2f} TB" if number >= 1e11 else f"{number / 1e9:,.2f} GB"

    c = costs
    time = ""
    if c["hours"]:
        time = f"{c['hours']:,.1f} hours ({c['hours'] / 24:,.1f} days) at {c['budget']:,.0f} videos an hour"
    lines = [
        ("rows", f"{c['rows']:,}: {c['clips']:,} clips to prepare ({listed(c['by_split'])})"),
        ("excluded", f"{sum(c['excluded'].values()):,} ({listed(c['excluded'])})"),
        ("failed", f"{c['failed']:,} (bad rows of the manifests)"),
        ("videos", f"{c['videos']:,}, each asked for once: {c['requests']:,} requests or more, with retries"),
        ("time", time),
        (
            "computing",
            f"{c['core_hours']:,.1f} core hours (encode {c['encode_core_hours']:,.1f}, "
            f"flow {c['flow_core_hours']:,.1f}, the job itself {c['job_core_hours']:,.1f}) "
            f"for {c['footage_hours']:,.1f} hours of video",
        ),
        ("data set", f"{size(c['data_set_bytes'])} in {c['shards']:,} shards"),
        (
            "disk",
            f"{size(c['disk_bytes'])}: data set {size(c['data_set_bytes'])}, work store "
            f"{size(c['work_bytes'])}, kept sources {size(c['source_bytes'])}",
        ),
    ]
    return "\n".join(f"{name:<10} {text}" for name, text in lines if text)


def _counts(table: pa.Table, name: str) -> dict[str, int]:
    counts = {c["values"]: c["counts"] for c in pc.value_counts(table[name]).to_pylist() if c["values"]}
    return dict(sorted(counts.items()))
