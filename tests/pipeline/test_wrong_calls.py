"""A call that names an absent file is a wrong call: one sentence, exit 2, and nothing is written."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
from small_runs import make_list

from pipeline.__main__ import main

PREPARE = ["prepare", "--manifest", "list.csv", "--source", "dir:videos"]
REMOVE = ["--ids", "ids.txt", "--reason", "its owner withdrew it"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to call from, in which this process's signals and logs stay as they are."""
    make_list(tmp_path / "list.csv", ["a,aaaaaaaaaa1,0,2,train,0"])
    (tmp_path / "ids.txt").write_text("aaaaaaaaaa1\n")
    (tmp_path / "file").write_text("in the way")
    for folder in ("videos", "empty", "damaged"):
        (tmp_path / folder).mkdir()
    (tmp_path / "damaged" / "dataset.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging, "disable", lambda *_: None)
    return tmp_path


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        *((["verify", root], 2, "no data set is published there") for root in ("nope", "empty")),
        (["verify", "file"], 2, "a file is in the place of its folder; name another folder"),
        (["report", "nope"], 2, "no data set is published there"),
        *((["remove", root, *REMOVE], 2, "no data set is published there") for root in ("nope", "empty")),
        (["report", "damaged"], 1, "is not JSON"),
        (["remove", "damaged", *REMOVE], 1, "is not JSON"),
        ([*PREPARE, "--output", "root", "--ffmpeg", "nope"], 2, "--ffmpeg nope does not run"),
        ([*PREPARE, "--output", "root", "--ffmpeg", "/bin/true"], 2, "--ffmpeg /bin/true is no ffmpeg"),
        ([*PREPARE, "--output", "root", "--scratch", "/proc/nope"], 2, "another folder with --scratch"),
        ([*PREPARE, "--output", "file"], 2, "a file is in the place of its folder"),
        ([*PREPARE, "--output", "file/root"], 2, "a file is in the place of its folder"),
        ([*PREPARE, "--output", "empty", "--work", "file"], 2, "a file is in the place of its folder"),
        ([*PREPARE, "--output", "empty", "--compact", "new"], 2, "no data set is published there"),
    ],
)
def test_what_is_not_there_ends_with_its_code_and_one_sentence(here, capsys, call, code, said):
    before = sorted(here.rglob("*"))
    assert main(call) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_verify_finds_fault_with_a_data_set_and_not_with_the_call(here, capsys):
    assert main(["verify", "damaged"]) == 1
    assert "breach: " in capsys.readouterr().out
