"""Promises of the command line of both halves: help, defaults, nearest names, completion, pipes, packages."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import pipeline
from pipeline import command_line
from pipeline.command_line import Answer, Command, Group, natural, option, section
from trainer import choices, networks, quovadis

GROUPS = [quovadis.PREPARE, *quovadis.GROUPS]
COMMANDS = [command.name for group in GROUPS for command in group.commands]
QUOVADIS = "import sys; from trainer.quovadis import main"


@dataclass(frozen=True)
class Part:
    size: int = option("of a part", 4, unit="pixels", group="parts", parse=natural)
    inner: int = 7


@dataclass(frozen=True)
class Given:
    length: int = option("of a part", 5, unit="frames")
    lower: bool = option("it", False)


@dataclass(frozen=True, kw_only=True)
class Options(Answer):
    name: str = option("of it", unit="NAME", flag="name")
    files: tuple[str, ...] = option("to read", unit="FILE", flag="--file")
    kind: Literal["red", "green"] | None = option("of it", None, shown="any")
    keep: bool | None = option("it", None, shown="yes for files")
    extra: Mapping[str, Any] = option(
        "more", {}, unit="KEY=VALUE", flag="--extra", parse=command_line.key_and_value
    )
    part: Part
    given: dict[str, Any] = section(Given, "another's")


def called(words: list[str], rest: str = "") -> tuple[Any, ...]:
    """The arguments that a command of `Options` gets for these words."""
    found: list[Any] = []

    def run(*given: Any) -> int:
        found.extend(given)
        return 0

    group = Group("All", (Command("do", "it", Options, run, rest=rest),), lambda _, __, call: call())
    assert command_line.main("program", "does it", [group], ["do", *words]) == 0
    return tuple(found)


def refused(capsys, run: Callable[[], Any]) -> str:
    """The one line that refuses a call."""
    with pytest.raises(SystemExit) as ended:
        run()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


def test_options_are_built_with_their_defaults_in_one_place():
    (options,) = called(["x", "--file", "a", "b", "--file", "c"])
    assert options == Options(name="x", files=("a", "b", "c"), part=Part(), given={})
    words = ["x", "--file=a", "--no-keep", "--kind", "red", "--extra", "n=1", "m=[2]", "--json"]
    (options,) = called([*words, "--size", "8", "--length", "3"])
    assert (options.keep, options.kind, options.extra, options.json) == (
        False,
        "red",
        {"n": 1, "m": [2]},
        True,
    )
    assert (options.part, options.given) == (Part(size=8), {"length": 3})


def test_words_that_are_not_ours_go_on_only_where_a_command_takes_them(capsys):
    assert called(["x", "--file", "a", "--theirs", "1"], rest="goes on")[1] == ["--theirs", "1"]
    assert "no option --theirs" in refused(capsys, lambda: called(["x", "--file", "a", "--theirs", "1"]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_has_a_help_text_with_its_default(name, capsys):
    with pytest.raises(SystemExit) as ended:
        quovadis.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    options = re.split(r"\n  (?=-|[A-Z]{2,})", shown)[1:]
    assert len(options) > 2
    for text in options:
        entry = " ".join(text.split("\n\n")[0].split())
        if not entry.startswith(("-h, --help", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")):
            assert re.search(r"[a-z]{2,}.*\((default: .+|required)\)$", entry), entry


def test_help_groups_the_commands_and_the_version_is_the_packages(capsys):
    for words in (["--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            quovadis.main(words)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        if words == ["--version"]:
            assert shown == f"quovadis {pipeline.__version__}\n"
        else:
            assert [line for line in shown.splitlines() if line in ("Prepare:", "Train:", "Use:")] != []
            assert all(f"\n  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["preprae"], "did you mean prepare?"),
        (["prepare", "--manifets", "a", "--output", "b"], "did you mean --manifest?"),
        (["verify", "root", "--sampel=1"], "did you mean --sample?"),
        (["prepare", "--manifest", "a", "--output", "b", "--flow", "tlv1"], "did you mean tvl1?"),
        (["import", "f", "--output", "c", "--format", "deepmid"], "did you mean deepmind?"),
        (["train", "--data", "a", "--output", "b", "--batchsize", "1"], "did you mean --batch-size?"),
    ],
)
def test_a_mistyped_word_names_the_nearest(words, near, capsys):
    assert near in refused(capsys, lambda: quovadis.main(words))


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["prepare", "--manifest", "a", "--output", "b", "--flwo", "none"], "did you mean --flow?"),
        (["prepare", "--manifest", "a", "--output", "b", "--runer", "x"], "did you mean --runner?"),
        (["train", "--data", "a", "--output", "b", "--network", "i4d"], "did you mean i3d?"),
        (["train", "--data", "a", "--output", "b", "--config", "quik"], "did you mean quick?"),
    ],
)
def test_a_mistyped_name_that_a_command_looks_up_names_the_nearest(words, near, capsys, monkeypatch):
    monkeypatch.setattr("logging.disable", lambda _: None)
    assert quovadis.main(words) == 2
    said = capsys.readouterr().err
    assert near in said
    assert said.count("\n") == 1


def test_the_table_of_networks_is_that_of_the_built_ones():
    built = [dataclasses.asdict(row) for name in choices.networks() for row in networks.describe(name)]
    assert json.loads(json.dumps(built)) == choices.network_table(), (
        "run: python -c 'import pathlib, trainer.networks as n; "
        'n.write_table(pathlib.Path("trainer/networks/table.json"))\''
    )
    assert set(networks.names()) - {"small"} == set(choices.networks())


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.quovadis", "networks"],
        ["trainer", "networks", "--json"],
        ["trainer.quovadis", "prepare", "--help"],
        ["pipeline", "--help"],
    ],
)
def test_nobody_reading_ends_in_silence(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.stderr == ""
    # argparse itself passes over a help that nobody reads, where Python's output is unbuffered
    assert done.returncode in ((0, 141) if "--help" in words else (141,))


def test_networks_answers_at_once_and_imports_no_torch():
    code = f"{QUOVADIS}; main(['networks']); sys.exit('torch' in sys.modules)"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    after = os.times()
    assert done.returncode == 0
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 2


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["evaluate", "--data", "a", "--checkpoint", "b"], "torch", "train"),
        (["verify", "s3://bucket/root"], "s3fs", "s3"),
        (["verify", "gs://bucket/root"], "gcsfs", "gcp"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(words, package, extra):
    code = f"import sys; sys.modules[{package!r}] = None; {QUOVADIS}; sys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert f"pip install '.[{extra}]'" in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("\n") == 1


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("quovadis pre", {"prepare ", "predict "}),
        ("quovadis prepare --manif", {"--manifest "}),
        ("quovadis prepare --flow-device c", {"cpu ", "cuda "}),
        ("quovadis train --network slowfast-8", {"slowfast-8x8-r50 "}),
        ("quovadis train --config qu", {"quick "}),
    ],
)
def test_a_shell_is_offered_commands_options_and_names(line, offered, tmp_path):
    out = tmp_path / "offered"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    call = [sys.executable, "-m", "trainer.quovadis"]
    began = time.monotonic()
    subprocess.run(call, env={**os.environ, **environment}, capture_output=True, check=False)
    assert time.monotonic() - began < 10  # with a processor to itself, a fifth of a second
    assert {word.strip() for word in out.read_text().split("\n")} == {word.strip() for word in offered}


def test_a_command_whose_output_is_closed_ends_as_always():
    command = ["sh", "-c", 'exec "$0" -m trainer networks >&-', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
