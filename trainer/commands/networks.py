"""``networks``: the table of networks."""

from __future__ import annotations

import json

from pipeline.command_line import Answer, Command
from trainer import choices


def _run(call: Answer) -> int:
    rows = choices.network_table()
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'network':<18} {'stream':<6} {'input':<14} {'parameters':>12} {'GMACs':>8}  Kinetics-400 top-1")
    for row in rows:
        size = "x".join(map(str, row["input"]))
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1f} %"
        print(
            f"{row['name']:<18} {row['stream']:<6} {size:<14} {row['parameters']:>12,} {row['gmacs']:>8.2f}  "
            f"{accuracy:<7} {row['source']}"
        )
    return 0


COMMAND = Command("networks", "every network: input, size, cost, published accuracy", Answer, _run)
