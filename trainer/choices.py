"""Words that the command line offers, and its error. Imports nothing heavy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.outcome import CallError

FOLDER = Path(__file__).parent

DATA, NETWORK, RUN = "data", "network", "run and where"  # groups of options in help
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PRECISION = "number format of the network; auto is bf16 where the processor computes in it, else fp32"

FORMATS = {
    "deepmind": "deepmind",
    "piergiaj": "piergiaj",
    "hassony2": "hassony2",
    "torchvision": "torchvision",
    "vmz": "torchvision",
    "tsm": "tsm",
    "pyslowfast": "pyslowfast",
    "pytorchvideo": "pytorchvideo",
    "hara": "hara",
    "bninception": "bninception",
}
"""Publishers of weights, and the module of `trainer.weights.formats` that reads theirs."""


class ConfigurationError(CallError, ValueError):
    """The settings cannot be run: one sentence with the remedy; the program ends with 2."""


def networks() -> list[str]:
    """The names of all networks."""
    return list(dict.fromkeys(row["name"] for row in network_table()))


def network_table() -> list[dict[str, Any]]:
    """The rows that `trainer.networks.describe` makes; a test compares them."""
    return json.loads((FOLDER / "networks" / "table.json").read_text(encoding="utf-8"))


def configurations() -> list[str]:
    """The names of the configurations that come with the trainer."""
    return sorted(path.stem for path in (FOLDER / "configurations").glob("*.toml"))


def views(text: str) -> tuple[int, ...]:
    """Clips and crops of CLIPSxCROPS; () of "whole"."""
    if text == "whole":
        return ()
    clips, _, crops = text.partition("x")
    if not (clips.isdigit() and crops.isdigit() and int(clips) > 0 and crops in ("1", "3")):
        raise argparse.ArgumentTypeError(
            f"{text} is neither whole nor CLIPSxCROPS such as 10x3 (crops: 1 or 3)"
        )
    return int(clips), int(crops)
