"""Options of the trainer's commands, one dataclass each, from which the command line is made.

The sections of a configuration stand beside the code that uses them. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.command_line import option
from trainer import choices
from trainer.choices import DATA, NETWORK, PRECISION, PRECISIONS, RUN, ConfigurationError

if TYPE_CHECKING:
    from trainer.configuration import Configuration
    from trainer.data.cache import Cache
    from trainer.data.split_files import Lists


Named = Sequence[tuple[str, str | None]]
"""Checkpoints or RUN folders, each with the stream whose model is wanted; None for all that it has."""


def _check_least(options: object, **least: int) -> None:
    for name, low in least.items():
        if getattr(options, name) < low:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least {low}")


@dataclass(frozen=True)
class Data:
    """Data sets to read, and how."""

    data: tuple[str, ...] = option("published data sets", unit="ROOT", group=DATA)
    split_file: tuple[str, ...] = option(
        "UCF-101's or HMDB-51's lists of one split, which say what trains and what tests", (), "FILE", DATA
    )
    cache: str | None = option(
        "folder that keeps a copy of remote data on this machine", None, "FOLDER", DATA
    )
    cache_gib: float = option("most that the cache holds", 50.0, "GiB", DATA, shown="50 GiB")

    def open_cache(self) -> Cache | None:
        """The cache that was named, if any. Raises CacheError."""
        from trainer.data.cache import Cache

        return Cache.open(self.cache, self.cache_gib) if self.cache else None

    def read_lists(self) -> Lists | None:
        """The clips that train and test by the lists that were named, if any. Raises ListError."""
        from trainer.data.split_files import read

        return read(self.split_file) if self.split_file else None


@dataclass(frozen=True)
class Checkpoints:
    """Trained models, by stream or all of one checkpoint."""

    rgb: str | None = option("run or checkpoint whose RGB model to take", None, "RUN", NETWORK)
    flow: str | None = option("run or checkpoint whose flow model to take", None, "RUN", NETWORK)
    checkpoint: str | None = option("run or checkpoint all of whose models to take", None, "RUN", NETWORK)

    def named(self) -> Named:
        """The checkpoints. Raises ConfigurationError where none or too many are named."""
        if not (self.checkpoint or self.rgb or self.flow):
            raise ConfigurationError(
                "name --rgb, --flow or both, or --checkpoint; DeepMind's I3D is published in "
                "github.com/google-deepmind/kinetics-i3d, data/checkpoints, and "
                "python -m trainer import --format deepmind PATH --output CKPT makes a checkpoint of it"
            )
        if self.checkpoint and (self.rgb or self.flow):
            raise ConfigurationError("name either --checkpoint, or --rgb, --flow or both")
        named = [(self.checkpoint, None), (self.rgb, "rgb"), (self.flow, "flow")]
        return tuple((path, stream) for path, stream in named if path)


@dataclass(frozen=True)
class TrainOptions:
    """One call of ``train``: what, on which data sets, into which folder, from where."""

    configuration: Configuration
    data: tuple[str, ...]
    output: Path = option("folder of this run", unit="RUN", group=RUN)
    resume: Literal["auto", "none"] = option("go on with RUN, or start it over", "auto", group=RUN)
    init: str | None = option(
        "start from the weights of a checkpoint; imagenet:FILE inflates those of an image network",
        None,
        "CHECKPOINT",
        NETWORK,
        shown="random weights",
    )
    cache: Cache | None = None  # of what is read from elsewhere
    lists: Lists | None = None  # published lists of what trains and what tests, instead of the splits
    generations: Literal["kept", "latest"] = option(
        "keep the generations that RUN began with, or let new ones join as an epoch begins",
        "kept",
        group=DATA,
    )


@dataclass(frozen=True)
class EvaluateOptions:
    """One call of ``evaluate``: which checkpoints, which clips, and how."""

    checkpoints: Named
    data: tuple[str, ...]
    split: str = option("part of the data sets", "val", group=DATA, choices=("train", "val", "test"))
    views: tuple[int, ...] | None = option(
        "clips and crops of each clip whose logits are averaged, such as 10x3",
        None,
        "CLIPSxCROPS|whole",
        "input",
        shown="as the network was published",
        parse=choices.views,
    )
    repeat_frame: bool = option(
        "show one frame of each clip, repeated: what motion is worth", False, group="input"
    )
    workers: int = option("loader processes of a rank", 2, "N", RUN)
    precision: str = option(PRECISION, "fp32", group=RUN, choices=PRECISIONS)
    cache: Cache | None = None
    lists: Lists | None = None  # whose test part is taken instead of a split

    def __post_init__(self) -> None:
        _check_least(self, workers=0)


@dataclass(frozen=True)
class FeaturesOptions:
    """One call of ``features``: which models, over which inputs, how, into which folder."""

    checkpoints: Named
    inputs: tuple[str, ...] = option(
        "a video (a file, an http address or a YouTube id), a folder of videos, or a published ROOT",
        unit="INPUT",
        flag="inputs",
    )
    output: str = option("gets one .npy and .times.npy a video", unit="FOLDER", group=RUN)
    window: int = option("length of a window, at the network's rate", 16, "frames", "input")
    stride: int = option("from one window to the next", 8, "frames", "input")
    batch_size: int = option("windows computed at a time", 8, "windows", RUN)
    workers: int = option("videos read at once", 0, "N", RUN, shown="one for each core, 8 at most")
    precision: str = option(PRECISION, "fp32", group=RUN, choices=PRECISIONS)

    def __post_init__(self) -> None:
        _check_least(self, window=1, stride=1, batch_size=1, workers=0)


@dataclass(frozen=True)
class PredictOptions:
    """One call of ``predict``."""

    checkpoints: Named
    videos: tuple[str, ...] = option("a file, an http address or a YouTube id", unit="VIDEO", flag="videos")
    top: int = option("classes to print", 5, unit="N")
    annotate: Path | None = option("write the video with each moment's classes over it", None, unit="OUT.mp4")
    threads: int = option("threads for the flow", 0, "N", RUN, shown="one for each core")
    precision: str = option(PRECISION, "fp32", group=RUN, choices=PRECISIONS)

    def __post_init__(self) -> None:
        _check_least(self, top=1, threads=0)
        if self.annotate and len(self.videos) > 1:
            raise ConfigurationError("--annotate writes one video: name one VIDEO")


@dataclass(frozen=True)
class ImportOptions:
    """One call of ``import``: the files, one for each model, and what is said of them."""

    files: tuple[str, ...] = option(
        "of weights, one for each model; of TensorFlow's any part", unit="FILE", flag="files"
    )
    output: Path = option("checkpoint to write", unit="CHECKPOINT")
    format: str = option("who published them", "auto", shown="recognised", choices=("auto", *choices.FORMATS))
    network: str | None = option(
        "network that they are of", None, unit="NAME", shown="recognised", complete=choices.networks
    )
    stream: Literal["rgb", "flow"] | None = option("refuse weights of another stream", None, shown="either")
    classes: str | None = option(
        "names of the classes, one a line, in the order of the logits", None, unit="FILE", shown="those known"
    )
    config: str | None = option(
        "settings over the network's own, such as tsm-dense",
        None,
        unit="FILE",
        shown="the network's",
        complete=choices.configurations,
    )
