"""A run's settings: the network's default configuration, then ``--config FILE``, then the flags.

Owns reading, merging and comparing; each part is a frozen dataclass beside the code that obeys it.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.command_line import nearest
from trainer import networks
from trainer.choices import ConfigurationError, configurations
from trainer.data.batches import Input, current_names
from trainer.optimisation import Optimisation, Run

FOLDER = Path(__file__).parent / "configurations"
FREE = {f"run.{n}" for n in ("workers", "micro_batch", "evaluate_every", "checkpoint_every", "max_failures")}
FREE |= {"input.test_views"}
"""Settings that a resume may change: they do not change what is learned, except `micro_batch`, over which
batch normalisation takes its statistics; a run keeps its own unless the call names one."""
BY_DATA = ("input.clip_side", "input.flow_bound")
"""Settings that the data set decides."""
FED = ("mean", "std", "rate", "stride")
"""Input settings that belong to weights and are taken from them, unless the call names others."""


@dataclass(frozen=True)
class Network:
    """A network's name and the options of its builder (dropout, bn_momentum, ...)."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """All settings of a run; `as_dict` is the content of RUN/configuration.json."""

    network: Network
    input: Input
    optimisation: Optimisation
    run: Run
    # Settings of `input` that the call's file or flags give:
    named: tuple[str, ...] = field(default=(), compare=False)
    # Settings such as "run.seed" that a flag or a file of the caller's gives:
    own: tuple[str, ...] = field(default=(), compare=False, repr=False)
    # Settings that the trainer gained after the run began: at their default, and not recorded:
    later: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values, in the sections of a configuration file; none of what is `later`."""
        sections = {
            "network": {"name": self.network.name, **self.network.options},
            "input": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.input).items()},
            "optimisation": {**asdict(self.optimisation), "milestones": list(self.optimisation.milestones)},
            "run": asdict(self.run),
        }
        for section, name in (setting.split(".") for setting in self.later):
            del sections[section][name]
        return sections

    @property
    def model_streams(self) -> tuple[str, ...]:
        """The streams that get a model of their own: ("both",) for a network that takes both at once."""
        entry = networks.entry(self.network.name)
        return self.input.streams if entry.separate_streams else (self.input.stream,)


Sections = Mapping[str, Mapping[str, Any]]
_PARTS = {"input": Input, "optimisation": Optimisation, "run": Run}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes"}


def resolve(file: str | None, flags: Sections) -> Configuration:
    """The settings of a run. Raises ConfigurationError for what is not there or cannot be.

    Args:
        file: a TOML file of the sections network, input, optimisation and run, or the name of one that comes
            with the trainer ("i3d", "quick"); None for the network's default alone.
        flags: sections again; what is None there was not given.
    """
    named = read(file) if file else {}
    given = {section: {k: v for k, v in values.items() if v is not None} for section, values in flags.items()}
    name = given.get("network", {}).get("name") or named.get("network", {}).get("name") or "i3d"
    try:
        default = read(networks.entry(_checked("network.name", name, str)).configuration)
    except KeyError as error:
        raise ConfigurationError(f"{error.args[0]}") from None
    own = (given,) if file is None or _comes_with_trainer(file) else (named, given)
    return replace(
        from_dict(_over(_over(default, named), given)),
        named=tuple(sorted({*named.get("input", {}), *given.get("input", {})})),
        own=tuple(f"{section}.{n}" for layer in own for section, values in layer.items() for n in values),
    )


def read(file: str) -> dict[str, dict[str, Any]]:
    """The sections of a configuration file, or of the one of that name in trainer/configurations."""
    path = FOLDER / f"{file}.toml" if _comes_with_trainer(file) else Path(file)
    try:
        with path.open("rb") as stream:
            sections = tomllib.load(stream)
    except OSError as error:
        remedy = f"name a TOML file{nearest(file, configurations())}"
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}): {remedy}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is no TOML file: {error}") from None
    for section, values in sections.items():
        if section not in ("network", *_PARTS) or not isinstance(values, dict):
            raise ConfigurationError(
                f"{file}: there is no section [{section}]; there are network, {', '.join(_PARTS)}"
            )
    return with_current_names(sections)


def with_current_names(sections: Sections) -> dict[str, dict[str, Any]]:
    """The sections of a file that an earlier version may have written, under the present names."""
    found = {name: dict(values) for name, values in sections.items()}
    if "input" in found:
        found["input"] = current_names(found["input"])
    return found


def from_dict(sections: Sections) -> Configuration:
    """The configuration of complete `sections`. Raises ConfigurationError."""
    parts: dict[str, Any] = {}
    for section, part in _PARTS.items():
        values = dict(sections.get(section, {}))
        kinds = get_type_hints(part)
        if unknown := sorted(set(values) - kinds.keys()):
            raise ConfigurationError(f"[{section}] has no setting {unknown[0]!r}; it has {_listed(kinds)}")
        for name, value in values.items():
            _checked(f"{section}.{name}", value, kinds[name])
        try:
            parts[section] = part(**values)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"[{section}]: {error}") from None
    options = dict(sections["network"])
    configuration = Configuration(network=Network(options.pop("name"), options), **parts)
    streams = networks.entry(configuration.network.name).streams
    if configuration.optimisation.schedule == "plateau" and not configuration.run.evaluate_every:
        raise ConfigurationError(
            "the schedule plateau follows the validation loss: give --evaluate-every, or another --schedule"
        )
    if configuration.input.stream not in streams:
        raise ConfigurationError(
            f"{configuration.network.name} has no stream {configuration.input.stream!r}: "
            f"choose --stream {_listed(streams)}"
        )
    return configuration


@dataclass(frozen=True)
class Difference:
    """A setting that differs from the run's, as a phrase; and the remedy that resumes the run, if any."""

    phrase: str
    remedy: str | None = None


def difference(mine: Configuration, theirs: Sections) -> Difference | None:
    """The first setting that differs from the resumed run's record `theirs`; None where none does.

    A longer run is the same run where the learning rate does not depend on the length. A setting that
    `theirs` lacks came later and had its default. The remedy names all settings that a file can restore.
    """
    now, was = _flat(mine.as_dict()), _flat({section: theirs.get(section, {}) for section in mine.as_dict()})
    free = _free(mine)
    found = [s for s in (now | was) if s not in free and now.get(s) != was.get(s)]
    found.sort(key=lambda s: not s.startswith("network."))
    if not found:
        return None
    settled = {*mine.own, "run.epochs", "run.steps", *BY_DATA}
    mended = [s for s in found if was.get(s) is not None and s not in settled]
    remedy = ", ".join(f"{s} = {json.dumps(was[s])}" for s in mended)
    return Difference(
        f"{found[0]} is {now.get(found[0])!r}, the run's is {was.get(found[0])!r}",
        f"set {remedy} in a --config file of your own to go on with it" if found[0] in mended else None,
    )


def as_begun(mine: Configuration, theirs: Sections) -> Configuration:
    """The settings for resuming a run of the record `theirs`, maybe of an earlier version.

    A setting that `theirs` lacks keeps its default and stays unrecorded, unless the call names it or it is
    free. The micro-batch stays too, unless the call names one. Raises ConfigurationError where these
    settings do not go together.
    """
    sections, kept = mine.as_dict(), {*mine.own, *_free(mine)}
    if "run.micro_batch" not in mine.own:
        sections["run"]["micro_batch"] = theirs.get("run", {}).get("micro_batch", mine.run.micro_batch)
    later = []
    for section, values in sections.items():
        for name in [name for name in values if name not in theirs.get(section, values)]:
            if f"{section}.{name}" not in kept:
                del values[name]
                if section in _PARTS:
                    later.append(f"{section}.{name}")
    return replace(from_dict(sections), named=mine.named, own=mine.own, later=tuple(later))


def _free(mine: Configuration) -> set[str]:
    """The settings in which a resume may differ from its run."""
    free = FREE if mine.optimisation.depends_on_length else FREE | {"run.epochs", "run.steps"}
    if mine.optimisation.schedule == "plateau":  # follows the evaluations
        free = free - {"run.evaluate_every", "input.test_views"}
    return free


def _flat(sections: Sections) -> dict[str, Any]:
    """Settings by their full names ("run.seed"), absent ones at their defaults; lists as in `as_dict`."""
    defaults = {f"{s}.{f.name}": f.default for s, part in _PARTS.items() for f in fields(part)}
    given = {f"{s}.{name}": value for s, values in sections.items() for name, value in values.items()}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in (defaults | given).items()}


def with_data(configuration: Configuration, short_side: int, flow_bound: float | None) -> Configuration:
    """The same settings for a data set of clips of `short_side` and flow up to `flow_bound`, pixels both."""
    bound = configuration.input.flow_bound if flow_bound is None else flow_bound
    return replace(configuration, input=replace(configuration.input, clip_side=short_side, flow_bound=bound))


def fed_as(configuration: Configuration, weights: Input) -> Configuration:
    """The settings with `FED` taken from the input of `weights`, except what the call names.

    Raises ConfigurationError where the data set's flow bound differs from theirs and the call names none.
    """
    own, named = configuration.input, configuration.named
    if "flow" in own.streams and "flow_bound" not in named and weights.flow_bound != own.flow_bound:
        raise ConfigurationError(
            f"the weights were fed flow of up to {weights.flow_bound:g} pixels, the data set has "
            f"{own.flow_bound:g}: prepare one with theirs, or set flow_bound = {own.flow_bound:g} in --config"
        )
    taken = {name: getattr(weights, name) for name in FED if name not in named}
    return replace(configuration, input=replace(own, **taken))


def _over(below: Sections, above: Sections) -> dict[str, dict[str, Any]]:
    merged = {section: {**values, **above.get(section, {})} for section, values in below.items()}
    for section in above.keys() - below.keys():
        merged[section] = dict(above[section])
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if above.get("run", {}).get(one) is not None and other not in above["run"]:
            merged["run"].pop(other, None)
    return merged


def _checked(setting: str, value: Any, kind: Any) -> Any:
    """`value`, where it is of the annotation `kind`; else raises ConfigurationError."""
    if _is(value, kind):
        return value
    several = get_origin(kind) is tuple
    one = next(k for k in (get_args(kind) or (kind,)) if k in _WORDS)
    words = f"a list in brackets, each {_WORDS[one]}" if several else _WORDS[one]
    raise ConfigurationError(f"{setting} is {value!r}: give {words}")


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_is(v, get_args(kind)[0]) for v in value)
    if isinstance(kind, UnionType):
        return any(_is(value, k) for k in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _comes_with_trainer(file: str) -> bool:
    return (FOLDER / f"{file}.toml").is_file()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
