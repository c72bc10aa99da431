"""The table of docs/cost.md, by `pipeline.lists.cost`: ``python benchmarks/cost.py``."""

from __future__ import annotations

import argparse

from pipeline.lists.cost import Costs, of

SECONDS = 10.0  # a clip
EDITIONS = {  # clips as their papers count them; nearly every one is of a video of its own
    "Kinetics-400": 306_245,
    "Kinetics-600": 495_547,
    "Kinetics-700": 650_317,
}
BUDGETS = (300.0, 3_000.0, 30_000.0)  # videos an hour


def table() -> str:
    """In Markdown."""
    costs = {name: of(clips, clips, SECONDS * clips, budget=BUDGETS[0]) for name, clips in EDITIONS.items()}
    rows = [
        ("clips", lambda c: f"{c['clips']:,}"),
        ("hours of video", lambda c: f"{c['footage_hours']:,.0f}"),
        ("core hours", lambda c: f"{c['core_hours']:,.0f}"),
        ("of which encode", lambda c: f"{c['encode_core_hours']:,.0f}"),
        ("of which flow", lambda c: f"{c['flow_core_hours']:,.0f}"),
        ("of which the job itself", lambda c: f"{c['job_core_hours']:,.1f}"),
        ("hours on 64 cores", lambda c: f"{c['core_hours'] / 64:,.1f}"),
        ("requests to the site, at least", lambda c: f"{c['requests']:,}"),
        *[
            (f"days at {budget:,.0f} videos an hour", lambda c, b=budget: f"{c['videos'] / b / 24:,.1f}")
            for budget in BUDGETS
        ],
        ("data set, TB", lambda c: f"{c['data_set_bytes'] / 1e12:.2f}"),
        ("work store, TB", lambda c: f"{c['work_bytes'] / 1e12:.2f}"),
        ("kept sources, TB", lambda c: f"{c['source_bytes'] / 1e12:.2f}"),
        ("object store, million PUT", lambda c: f"{c['store_puts'] / 1e6:.1f}"),
        ("object store, million GET", lambda c: f"{c['store_gets'] / 1e6:.1f}"),
    ]
    lines = ["| | " + " | ".join(costs) + " |", "|---" * (1 + len(costs)) + "|"]
    lines += [f"| {name} | " + " | ".join(say(c) for c in costs.values()) + " |" for name, say in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(table())
    print(f"\n{Costs()}")
