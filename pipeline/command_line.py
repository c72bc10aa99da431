"""Makes command lines of dataclasses: an option's default, type, help, unit and group stand in one field.

Serves both halves, and runs their commands. Imports nothing heavy: --help and completion answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pipeline import __version__, plain_text

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_CALL = 0, 1, 2
EXIT_CLOSED_PIPE = 141
"""A shell's exit code for a program that was ended because nobody read its output any more."""

ANSWERS = "answers"
"""The group of options that every command has; it comes last."""

EXTRAS = {
    "torch": "train",
    "tensorboard": "train",
    "s3fs": "s3",
    "gcsfs": "gcp",
    "google": "gcp",
    "pyspark": "spark",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
"""Packages that not every installation has, and the extra of setup.py that brings each."""


@dataclass(frozen=True)
class _Option:
    """One option: the facts that `option` is given, and those that follow from its field."""

    help: str
    unit: str = ""  # of the value: "seconds" in lower case also follows the default, "FILE" does not
    group: str = ""  # heading of the options among which help lists it
    shown: str | None = None  # the default in words, where the value itself does not say it
    flag: str = ""  # else --name-of-the-field; a flag without dashes is a positional argument
    parse: Callable[[str], Any] | None = None  # of one word; raises argparse.ArgumentTypeError
    complete: Callable[[], Iterable[str]] | None = None  # words that a shell offers
    choices: Sequence[str] = ()  # the words that it takes, where the annotation does not say so

    name: str = field(default="", kw_only=True)  # of the field, after those of the fields that hold it
    hint: Any = field(default=None, kw_only=True)
    required: bool = field(default=False, kw_only=True)

    @property
    def positional(self) -> bool:
        return not self.flag.startswith("-")

    @property
    def several(self) -> bool:
        return get_origin(self.hint) in (tuple, Mapping)

    @property
    def metavar(self) -> str:
        return self.unit.upper().replace(" ", "_") if self.unit.islower() else self.unit


def option(
    help: str,
    default: Any = MISSING,
    unit: str = "",
    group: str = "",
    *,
    shown: str | None = None,
    flag: str = "",
    parse: Callable[[str], Any] | None = None,
    complete: Callable[[], Iterable[str]] | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field that is an option on the command line; see `_Option` for its facts.

    Required if it has no `default`. The annotation decides what it takes: a bool is a switch,
    ``bool | None`` a pair of switches, a Literal one of its words, a tuple or a Mapping one or more words.
    """
    metadata = {"option": _Option(help, unit, group, shown, flag, parse, complete, choices)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(part: type, default: str | None = None) -> Any:
    """A field for the options of the dataclass `part`: a dict of those that were given.

    Args:
        default: what decides where an option is not given, as help says it ("the network's"); None: `part`.
    """
    return field(metadata={"part": part, "default": default})


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    debug: bool = option("show logs and tracebacks", False, group=ANSWERS)


@dataclass(frozen=True, kw_only=True)
class Answer(Common):
    """Options of a command whose answer a program may read."""

    json: bool = option("print the answer as JSON", False, group=ANSWERS)


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        about: one line for help.
        options: dataclass of its options, a subclass of `Common`.
        run: gets these, and returns the exit code. If there is a `rest`, it also gets the unknown words.
        rest: what happens to unknown words, for help; empty: they are refused.
        interrupted: how to go on after an interruption, for the user.
    """

    name: str
    about: str
    options: type[Common]
    run: Callable[..., int]
    rest: str = ""
    interrupted: str = ""


@dataclass(frozen=True)
class Group:
    """Commands under one title of help; `guard` calls what runs one, and turns exceptions into exit codes."""

    title: str
    commands: tuple[Command, ...]
    guard: Callable[[Command, bool, Callable[[], int]], int]  # command, --debug, what runs it


class _ClosedPipe(BaseException):
    """Nobody reads standard output any more. Not an Exception: no command may take it for a failure."""


def main(prog: str, about: str, groups: Sequence[Group], words: Sequence[str] | None = None) -> int:
    """Runs the command that `words` name, by default those of the process; returns its exit code.

    Raises:
        SystemExit: after --help and --version, and with 2 where the words are no call of a command.
    """
    top = parser(prog, about, groups)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(top)
    try:
        try:
            with plain_text.shown():
                return _run_shown(top, words)
        finally:
            _flush()
    except (_ClosedPipe, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return EXIT_CLOSED_PIPE


def _run_shown(top: _Parser, words: Sequence[str] | None) -> int:
    """`_run`, with a traceback (--debug) printed as all else is, and not by the interpreter afterwards."""
    try:
        return _run(top, words)
    except BrokenPipeError:
        raise
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED


def _run(top: _Parser, words: Sequence[str] | None) -> int:
    found, rest = top.parse_known_args(words)
    values = vars(found)
    command, guard, chosen = values["_command"], values["_guard"], values["_parser"]
    chosen.check(values, rest, command)

    def run() -> int:
        try:
            options = command.options(**_given(command.options, values))
            code = command.run(options, rest) if command.rest else command.run(options)
            _flush()
            return code
        except BrokenPipeError:
            if _nobody_reads():
                raise _ClosedPipe from None
            raise

    return guard(command, values.get("debug", False), run)


def _flush() -> None:
    if sys.stdout is not None:  # None where the caller has closed it
        sys.stdout.flush()


def _nobody_reads() -> bool:
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _given(options: Any, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of the dataclass `options` that the parsed `values` fill; any other has its default."""
    made: dict[str, Any] = {}
    for each in fields(options):
        name, hint = prefix + each.name, _hint(options, each)
        if part := each.metadata.get("part"):
            made[each.name] = _given(part, values, f"{name}.")
        elif name in values:
            kind = {tuple: tuple, Mapping: dict}.get(get_origin(hint))
            made[each.name] = kind(values[name]) if kind else values[name]
        elif isinstance(hint, type) and is_dataclass(hint) and any(_options(hint)):
            made[each.name] = hint(**_given(hint, values, f"{name}."))
    return made


def _hint(options: type, each: Field[Any]) -> Any:
    """The annotation of a field; None where it names what is imported for type checking only."""
    owner = next(c for c in options.__mro__ if each.name in inspect.get_annotations(c))
    if not isinstance(each.type, str):
        return each.type
    try:
        return eval(each.type, vars(sys.modules[owner.__module__]))
    except NameError:
        return None


def missing_package(error: ImportError) -> str | None:
    """A sentence for an import of a package that only an extra brings, else None."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return f"this needs the package {package}, which is not installed; {install(EXTRAS[package])}"


def install(extra: str) -> str:
    """How to install an extra, for the user."""
    return f"in a checkout of this project, pip install '.[{extra}]' brings it"


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """The end of a sentence that refuses `word`: names the known word that is nearest, if any is near."""
    found = difflib.get_close_matches(word, list(known), 1, likeness)
    return f"; did you mean {found[0]}?" if found else ""


def flags(options: type) -> list[str]:
    """The flags of a dataclass of options."""
    return [each.flag for each in _options(options) if not each.positional]


def _options(options: Any, prefix: str = "", default: str | None = None) -> Iterator[_Option]:
    """The options of a dataclass and of those in its fields; `default` decides before those of the fields."""
    for each in fields(options):
        name, hint = prefix + each.name, _hint(options, each)
        if part := each.metadata.get("part"):
            yield from _options(part, f"{name}.", each.metadata["default"])
        elif about := each.metadata.get("option"):
            flag = about.flag or f"--{each.name.replace('_', '-')}"
            required = default is None and each.default is MISSING and each.default_factory is MISSING
            shown = _in_words(each.default, about.unit) if about.shown is None else about.shown
            if default:
                shown = default if each.default is None else f"{default}, else {shown}"
            yield replace(about, name=name, hint=hint, flag=flag, shown=shown, required=required)
        elif is_dataclass(hint):
            yield from _options(hint, f"{name}.")


def _in_words(value: Any, unit: str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value is MISSING or value == ():
        return "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}" if unit.islower() else text


def parser(prog: str, about: str, groups: Sequence[Group]) -> _Parser:
    """The parser of all commands; it sets `_command`, `_guard` and `_parser` to those of the one chosen."""
    lines = [about]
    for group in groups:
        lines += ["", f"{group.title}:", *(f"  {c.name:<10} {c.about}" for c in group.commands)]
    lines += ["", f"{prog} COMMAND --help describes a command's options."]
    top = _Parser(prog=prog, description="\n".join(lines), usage=f"{prog} COMMAND ...")
    top.add_argument("--version", action="version", version=f"quovadis {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for group in groups:
        for command in group.commands:
            options = sorted(_options(command.options), key=lambda each: each.group == ANSWERS)
            words = []
            for each in filter(lambda each: each.required, options):
                value = each.metavar + ("..." if each.several else "")
                words.append(value if each.positional else f"{each.flag} {value}")
            sub = commands.add_parser(
                command.name,
                prog=f"{prog} {command.name}",
                description=command.about,
                usage=" ".join([f"{prog} {command.name}", *words, "[options]"]),
                epilog=command.rest,
            )
            sub.enter(options)
            sub.set_defaults(_command=command, _guard=group.guard, _parser=sub)
    return top


class _Parser(argparse.ArgumentParser):
    """Refuses wrong words in one line that names the nearest right one."""

    def __init__(self, **settings: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(**settings, allow_abbrev=False, formatter_class=formatter)
        self.color = False  # `plain_text` shows the colours of Python 3.14 as escapes
        self.options: list[_Option] = []

    def enter(self, options: list[_Option]) -> None:
        """Adds the options of a command."""
        self.options = options
        groups: dict[str, Any] = {"": self}
        for each in options:
            group, hint, text = each.group, each.hint, each.help
            settings: dict[str, Any] = {"default": argparse.SUPPRESS}
            if each.positional:
                group = ""
            else:
                settings["dest"] = each.name
                text += " (required)" if each.required else f" (default: {each.shown})"
            if get_origin(hint) in (UnionType, Union):
                hint = next(kind for kind in get_args(hint) if kind is not type(None))
            if hint is bool:
                pair = each.hint is not bool
                settings["action"] = argparse.BooleanOptionalAction if pair else "store_true"
            else:
                settings["metavar"] = each.metavar or None
                if each.several:
                    settings |= {"nargs": "+", "action": "extend"}
                    hint = get_args(hint)[0]
                if choices := get_args(hint) if get_origin(hint) is Literal else each.choices:
                    settings |= {"choices": choices, "metavar": None}
                else:
                    settings["type"] = each.parse or hint
            if group not in groups:
                groups[group] = self.add_argument_group(group)
            name = each.name if each.positional else each.flag
            action = groups[group].add_argument(name, help=text.replace("%", "%%"), **settings)
            if each.complete:
                action.completer = _completer(each.complete)

    def check(self, values: Mapping[str, Any], rest: Sequence[str], command: Command) -> None:
        """Ends the program with 2 where a word of `rest` is wrong or a required option is missing."""
        missing = [each.flag for each in self.options if each.required and each.name not in values]
        if rest and not command.rest:
            self.refuse(rest[0])
        if missing:  # one of the words that go elsewhere may be a misspelt one of ours
            for word in rest:
                if nearest(word.partition("=")[0], missing, 0.75):
                    self.refuse(word)
            self.error(f"{' and '.join(missing)} must be given")

    def refuse(self, word: str) -> NoReturn:
        """Ends the program with 2, because of a word that is none of ours."""
        if not word.startswith("-"):
            self.error(f"{word!r} belongs to no option")
        name = word.partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings]
        self.error(f"there is no option {name}{nearest(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = nearest(str(value), choices)
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(choices)}{near}")

    def error(self, message: str) -> NoReturn:
        """Ends the program with 2 and one sentence."""
        self.exit(EXIT_WRONG_CALL, f"{self.prog}: {message} ({self.prog} --help shows what there is)\n")


def _completer(words: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    return lambda prefix="", **_: [word for word in words() if word.startswith(prefix)]


def natural(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no positive number")


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    if (value := positive(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1")
    return value


def key_and_value(text: str) -> tuple[str, Any]:
    """The name and the value of KEY=VALUE, whose value is JSON."""
    name, sign, value = text.partition("=")
    with contextlib.suppress(ValueError):
        if sign and name.isidentifier():
            return name, json.loads(value)
    raise argparse.ArgumentTypeError(
        f"{text!r} is not KEY=VALUE with a value in JSON, such as ratelimit=1000000"
    )
