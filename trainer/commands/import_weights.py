"""``import``: others' weights as a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.choices import FORMATS
from trainer.commands import command


def add(commands) -> None:
    """Enters the command."""
    others = command(commands, "import", _run, "make a checkpoint of weights that others have published")
    others.add_argument(
        "files", nargs="+", metavar="FILE", help="of weights, one for each tower; of TensorFlow's any part"
    )
    others.add_argument("--output", type=Path, required=True, metavar="CHECKPOINT", help="file to write")
    others.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="default: recognised")
    others.add_argument("--network", metavar="NAME", help="default: the one whose weights they are")
    others.add_argument("--stream", choices=("rgb", "flow"), help="refuse weights of another")
    others.add_argument("--config", metavar="FILE", help="settings over the network's own, such as tsm-dense")
    others.add_argument("--classes", metavar="FILE", help="their names, one a line, in the logits' order")


def _run(options: argparse.Namespace) -> int:
    from trainer.weights import importing

    job = importing.ImportOptions(
        files=tuple(options.files),
        output=options.output,
        format=options.format,
        network=options.network,
        stream=options.stream,
        classes=options.classes,
        config=options.config,
    )
    print(importing.run(job), file=sys.stderr)
    return 0
