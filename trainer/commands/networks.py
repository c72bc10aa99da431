"""``networks``: the table of networks."""

from __future__ import annotations

import argparse
import json

from trainer.commands import command


def add(commands) -> None:
    """Enters the command."""
    networks = command(commands, "networks", _run, "every network: input, size, cost, published accuracy")
    networks.add_argument("--json", action="store_true")


def _run(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from trainer import networks

    rows = [row for name in networks.names() for row in networks.describe(name)]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    print(f"{'network':<18} {'stream':<6} {'input':<14} {'parameters':>12} {'GMACs':>8}  Kinetics-400 top-1")
    for row in rows:
        size = "x".join(map(str, row.input))
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.1f} %"
        print(
            f"{row.name:<18} {row.stream:<6} {size:<14} {row.parameters:>12,} {row.gmacs:>8.2f}  "
            f"{accuracy:<7} {row.source}"
        )
    return 0
