"""Core seconds of `pipeline.media.clip.cut` beside the bare ffmpeg command for the same 10 s, one thread
each.

    python benchmarks/encode.py VIDEO... [--runs 7] [--json]

The bare command trims, resamples to 25 frames a second, scales and encodes with the same x264 settings,
and gives no planes; ours also probes the file, gives the luma planes for the flow, judges the result and
writes it atomically. They run by turns; medians of CPU time (own and children's) are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.media.clip import cut, ffmpeg_binary, probe
from pipeline.media.recipe import EncodeRecipe


def cpu_seconds() -> float:
    """User and system time of this process and of all its ended children."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)


def bare(source: Path, seconds: float, size: tuple[int, int], out: Path, ffmpeg: str) -> None:
    """The bare ffmpeg command: `seconds` from the start of `source` at 25 frames a second and `size`."""
    recipe = EncodeRecipe()
    command = [ffmpeg, "-v", "error", "-nostdin", "-y", "-ss", "0", "-t", f"{seconds:g}", "-threads", "1"]
    command += ["-i", str(source), "-an", "-filter_threads", "1"]
    command += ["-vf", f"fps={recipe.rate},scale={size[0]}:{size[1]}", "-pix_fmt", "yuv420p"]
    command += ["-c:v", "libx264", "-preset", recipe.preset, "-crf", str(recipe.crf)]
    command += ["-g", str(recipe.keyframe_interval), "-threads", "1", "-movflags", "+faststart", str(out)]
    subprocess.run(command, check=True)


def measure(source: Path, runs: int, folder: Path) -> dict[str, object]:
    """Median core seconds of both, and the median of the runs' ratios."""
    ffmpeg, recipe, info = ffmpeg_binary(), EncodeRecipe(), probe(source)
    seconds = min(10.0, info.end or 10.0)
    size = info.output_size(recipe.short_side)
    theirs, ours = [], []
    for turn in range(runs + 1):  # the first only warms the caches
        before = cpu_seconds()
        bare(source, seconds, size, folder / "bare.mp4", ffmpeg)
        between = cpu_seconds()
        piece = cut(source, 0.0, seconds, recipe, folder / "ours.mp4", ffmpeg=ffmpeg, timeout=600)
        after = cpu_seconds()
        if turn:
            theirs.append(between - before)
            ours.append(after - between)
    ratios = [mine / his for mine, his in zip(ours, theirs, strict=True)]
    return {
        "video": source.name,
        "size": f"{piece.width}x{piece.height}",
        "frames": piece.frames,
        "bare": round(statistics.median(theirs), 3),
        "ours": round(statistics.median(ours), 3),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--runs", type=int, default=7, help="of each (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(video, arguments.runs, Path(folder)) for video in arguments.videos]
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    columns = {"video": 30, "size": 9, "frames": 7, "bare": 8, "ours": 8, "ratio": 7}
    print(*(f"{name:>{width}}" for name, width in columns.items()))
    for row in rows:
        print(*(f"{row[name]!s:>{width}}" for name, width in columns.items()))


if __name__ == "__main__":
    main()
