"""`import`: others' weights as one of our checkpoints, which evaluate, features, predict and --init take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer import checkpoint as checkpoints
from trainer import configuration, networks
from trainer.checkpoint import Checkpoint
from trainer.choices import ConfigurationError
from trainer.options import ImportOptions
from trainer.weights import Description, load

LABEL_MAPS = {400: "kinetics-400.txt", 600: "kinetics-600.txt"}
"""Names of classes in the order of the published networks' logits, by their number."""


def run(options: ImportOptions) -> str:
    """Writes the checkpoint; returns a sentence about what is in it.

    Raises WeightsError, ConfigurationError.
    """
    loaded = [load(file, options.format, options.network) for file in options.files]
    described = [description for _, description in loaded]
    for file, description in zip(options.files, described, strict=True):
        if options.stream not in (None, description.stream):
            raise ConfigurationError(
                f"{file} is of {description.stream}: leave out --stream {options.stream}"
            )
    first = described[0]
    _go_together(options.files, described)
    classes, told = _classes(options, first)
    stream = first.stream if len(described) == 1 else "both"
    network = {"name": first.network, **first.options}
    settings = configuration.resolve(
        options.config, {"network": network, "input": {"stream": stream, **first.input}}
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(
        options.output,
        Checkpoint(
            network=first.network,
            options=dict(settings.network.options),
            input=settings.input,
            classes=classes,
            generations=(),
            configuration=settings.as_dict(),
            state={},
            steps=0,
            weights={d.stream: state for state, d in sorted(loaded, key=lambda x: x[1].stream, reverse=True)},
        ),
    )
    what = ", ".join(f"{d.stream} from {d.format}'s weights" for d in described)
    return f"{options.output}: {first.network}, {what}; {told}"


def _go_together(files: Sequence[str], described: Sequence[Description]) -> None:
    """Raises ConfigurationError unless the files are streams of one network."""
    first = described[0]
    file_of: dict[str, str] = {}
    for file, other in zip(files, described, strict=True):
        alike = (other.network, other.classes) == (first.network, first.classes)
        if not alike or dict(other.options) != dict(first.options):
            raise ConfigurationError(f"{file} and {files[0]} are of different networks: import each alone")
        if other.stream in file_of:
            both = f"{file_of[other.stream]} and {file} are both of {other.stream}"
            raise ConfigurationError(f"{both}: name one of each stream")
        file_of[other.stream] = file
    if len(file_of) > 1 and not networks.entry(first.network).separate_streams:
        raise ConfigurationError(f"{first.network} has one tower: import one file")


def _classes(options: ImportOptions, description: Description) -> tuple[tuple[str, ...], str]:
    """The names of the classes, and a phrase about where they are from."""
    count = description.classes
    if options.classes is not None:
        return _read_classes(options.classes, count), f"{count} classes from {options.classes}"
    if count in LABEL_MAPS:
        names = (Path(__file__).parent / LABEL_MAPS[count]).read_text(encoding="utf-8").splitlines()
        return tuple(names), f"{count} classes, taken to be Kinetics-{count}'s (--classes names others)"
    numbered = tuple(f"class {number}" for number in range(count))
    return numbered, f"the names of its {count} classes are not known: give them with --classes FILE"


def _read_classes(file: str, count: int) -> tuple[str, ...]:
    try:
        names = tuple(Path(file).read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        said = f"{file} cannot be read ({why}): give a text file, one name a line"
        raise ConfigurationError(said) from None
    if len(names) != count or len(set(names)) != count or not all(map(str.strip, names)):
        raise ConfigurationError(
            f"{file} names {len(set(names))} classes, the weights are of {count}: give each one a line"
        )
    return names
