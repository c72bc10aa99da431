"""Time and peak memory of planning 650,000 synthetic manifest rows: ``python benchmarks/plan.py [ROWS]``.

Three lists of the published form, with 5 % repeated rows and videos that stand in several splits, are
read and planned in a process of their own; prints one JSON line. Claim: at most 20 s and 512 MiB.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.storage import open_storage

ROWS = 650_000
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def synthesise(folder: Path, rows: int, seed: int = 0) -> list[Path]:
    """Writes train, validate and test lists of that many rows together, without their headers."""
    draw = random.Random(seed)
    labels = [f"action number {i}" for i in range(700)]
    known: list[str] = []
    paths = []
    for split, share, header in (
        ("train", 0.84, "label,youtube_id,time_start,time_end,split,is_cc"),
        ("validate", 0.05, "label,youtube_id,time_start,time_end,split"),
        ("test", 0.11, "youtube_id,time_start,time_end,split"),
    ):
        lines, here = [header], []
        for _ in range(round(rows * share)):
            chance = draw.random()
            if chance < 0.05 and here:
                lines.append(draw.choice(here))
                continue
            if chance < 0.08 and known:
                name = draw.choice(known)
            else:
                name = "".join(draw.choices(ALPHABET, k=11))
                known.append(name)
            start = draw.randrange(600)
            line = f"{name},{start},{start + 10},{split}"
            if split != "test":
                line = f'"{draw.choice(labels)}",{line}'
            line += ",0" if split == "train" else ""
            here.append(line)
            lines.append(line)
        paths.append(folder / f"{split}.csv")
        paths[-1].write_text("\n".join(lines) + "\n")
    return paths


def peak_mib() -> int:
    """Peak resident memory of this program; getrusage would count what the process was before exec."""
    status = Path("/proc/self/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def measure(paths: list[str]) -> dict:
    """Reads and plans in this process: seconds, peak MiB of the process, and what was decided."""
    started = time.perf_counter()
    from pipeline.lists import cost, manifest, plan

    tables = [manifest.read(path) for path in paths]
    after_read = peak_mib()
    read = time.perf_counter()
    table = plan.make(tables, plan.PlanOptions())
    after_make = peak_mib()
    made = time.perf_counter()
    plan.write(table, open_storage(Path(paths[0]).parent), "plan.parquet")
    digest = plan.digest(table)
    costs = cost.estimate(table)  # as in a job: --plan estimates, and a run alone makes parts
    parts = plan.parts(table, 64)
    done = time.perf_counter()
    return {
        "rows": table.num_rows,
        "seconds": round(done - started, 2),
        "core_seconds": round(time.process_time(), 2),
        "read_seconds": round(read - started, 2),
        "make_seconds": round(made - read, 2),
        "write_digest_parts_seconds": round(done - made, 2),
        "peak_mib_read_make": [after_read, after_make],
        "peak_mib": peak_mib(),
        "clips": sum(part.num_rows for part in parts),
        "excluded": costs["excluded"],
        "digest": digest[:16],
    }


def run(rows: int = ROWS) -> dict:
    """Synthesises lists and measures in a fresh process, so that only planning counts."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in synthesise(Path(folder), rows)]
        command = [sys.executable, __file__, "--measure", *paths]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="?", type=int, default=ROWS, help=f"of all lists (default {ROWS:,})")
    parser.add_argument("--measure", nargs="+", metavar="LIST", help="plan these lists in this process")
    options = parser.parse_args()
    print(json.dumps(measure(options.measure) if options.measure else run(options.rows)))
