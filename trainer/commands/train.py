"""``train``: a run, alone or under torchrun."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from pipeline.command_line import Command, Common, option, section
from trainer import choices
from trainer.choices import NETWORK
from trainer.data.batches import Input
from trainer.optimisation import Optimisation, Run
from trainer.options import Data, TrainOptions

OF_NETWORK = "the network's"  # default of a setting that a network's configuration, or --config, decides


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """Options of train."""

    data: Data
    network: str | None = option(
        "see the command networks", None, "NAME", NETWORK, shown="i3d", complete=choices.networks
    )
    config: str | None = option(
        "TOML file, or a configuration that comes with the trainer, such as i3d (as published) or quick",
        None,
        "FILE",
        NETWORK,
        shown=OF_NETWORK,
        complete=choices.configurations,
    )
    input: dict[str, Any] = section(Input, OF_NETWORK)
    optimisation: dict[str, Any] = section(Optimisation, OF_NETWORK)
    run: dict[str, Any] = section(Run, OF_NETWORK)
    options: dict[str, Any] = section(TrainOptions)


def _run(call: Train) -> int:
    from trainer import configuration
    from trainer.train import train

    flags = {name: getattr(call, name) for name in ("input", "optimisation", "run")}
    options = TrainOptions(
        configuration.resolve(call.config, {"network": {"name": call.network}, **flags}),
        call.data.data,
        cache=call.data.open_cache(),
        lists=call.data.read_lists(),
        **call.options,
    )
    path = train(options)
    if int(os.environ.get("RANK", 0)) == 0:
        print(path, file=sys.stderr)
    return 0


COMMAND = Command(
    "train",
    "train a network; also under torchrun, on any number of ranks",
    Train,
    _run,
    interrupted="the same command goes on where the last checkpoint was",
)
