"""Promises of the command line: help at once, one sentence for what is wrong, and the codes 0, 1 and 2."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import tiny_dataset

from trainer.__main__ import main


@pytest.mark.parametrize("call", [[], ["train"], ["features"]])
def test_help_answers_in_under_a_second(call):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *call, "--help"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "usage: python -m trainer" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # seconds of processor


def test_nothing_heavy_is_imported_before_a_command_runs():
    code = "import sys, trainer.__main__; print([n for n in sys.modules if 'torch' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_networks_prints_every_network_with_its_published_figures(capsys):
    assert main(["networks"]) == 0
    table = capsys.readouterr().out
    assert "12,689,984" in table
    assert "111.15" in table
    assert "71.1 %" in table
    assert main(["networks", "--json"]) == 0
    rows = {(r["name"], r["stream"]): r for r in json.loads(capsys.readouterr().out)}
    assert rows["i3d", "flow"]["parameters"] == 12_668_032
    assert rows["i3d", "both"]["accuracy"] == 74.2


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        (["train", "--data", "none", "--output", "run", "--network", "i4d"], 2, "no network 'i4d'; there"),
        (["train", "--data", "none", "--output", "run", "--crop", "300"], 2, "does not fit"),
        (["train", "--data", "none", "--output", "run", "--config", "none.toml"], 2, "cannot be read"),
        (["train", "--data", "none", "--output", "run"], 2, "none"),
        (["train", "--data", "file", "--output", "run"], 2, "a file is in the place of its folder"),
        (["train", "--data", "none", "--output", "file"], 2, "file is a file: name a folder"),
        (["import", "absent", "--output", "c.pt"], 2, "absent is no file: name one of weights"),
        (["import", "file", "--output", "c.pt"], 1, "damaged"),
        (["train", "--data", "a", "--output", "b", "--steps", "1", "--epochs", "1"], 2, "the run one length"),
        (["evaluate", "--data", "none", "--checkpoint", "absent"], 2, "absent is not there"),
        (["evaluate", "--data", "none", "--checkpoint", "."], 2, "holds no checkpoint"),
        (["evaluate", "--data", "none", "--checkpoint", "file"], 1, "no checkpoint of this trainer"),
        (["evaluate", "--data", "none"], 2, "--checkpoint"),
        (["evaluate", "--data", "none", "--checkpoint", "a", "--rgb", "b"], 2, "either"),
    ],
)
def test_a_wrong_call_ends_with_its_code_and_one_sentence(tmp_path, monkeypatch, capsys, call, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder, and no checkpoint")
    assert main(call) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_shard_or_an_index_that_is_not_whole_is_no_wrong_call(tmp_path, capsys):
    root = tiny_dataset.publish(tmp_path / "data", {"train": 4}, frames=(25,))
    call = ["train", "--data", str(root), "--output", str(tmp_path / "run"), "--config", "quick"]
    for path, said in (
        ("shards/train-00000-00000.tar", "copy it again"),
        ("index/train-00000.parquet", "not readable as Parquet"),
    ):
        file = root / path
        whole = file.read_bytes()
        file.write_bytes(whole[:1000])
        assert main(call) == 1
        file.unlink()
        assert main(call) == 1
        file.write_bytes(whole)
        assert said in capsys.readouterr().err
    assert main([*call, "--frames", "8", "--batch-size", "4"]) == 2
    assert "at least 9 frames, not 8" in capsys.readouterr().err


def test_a_call_that_argparse_refuses_ends_with_two(capsys):
    for call in ([], ["fly"], ["train"], ["train", "--data", "a", "--output", "b", "--steps", "one"]):
        with pytest.raises(SystemExit) as ended:
            main(call)
        assert ended.value.code == 2
    capsys.readouterr()


def test_debug_shows_where_it_went_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--data", "none", "--checkpoint", "absent", "--debug"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "absent is not there" in said.splitlines()[-1]


def test_two_stream_i3d_trains_resumes_and_evaluates_by_the_commands(tmp_path, capsys):
    root = tiny_dataset.publish(tmp_path / "data", {"train": 4, "val": 2}, frames=(25,))
    size = ["--frames", "9", "--short-side", "32", "--crop", "32", "--batch-size", "4", "--workers", "0"]
    call = ["train", "--data", str(root), "--output", str(tmp_path / "run"), "--config", "quick", *size]
    assert main([*call, "--epochs", "2"]) == 0
    assert main([*call, "--epochs", "2"]) == 0
    assert main([*call, "--epochs", "3"]) == 2
    assert "run.epochs is 3, the run's is 2" in capsys.readouterr().err
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2]
    assert (
        main(["evaluate", "--data", str(root), "--checkpoint", str(tmp_path / "run"), "--workers", "0"]) == 0
    )
    scores = json.loads((tmp_path / "run" / "evaluate-val.json").read_text())
    assert scores["clips"] == 2
    assert {"rgb", "flow", "joint"} <= scores.keys()
