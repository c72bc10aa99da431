"""Promises of evaluation: every clip once, streams joined by adding logits, and one frame is not motion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_network
import tiny_dataset
import torch

from trainer import evaluate
from trainer import train as training
from trainer.__main__ import main
from trainer.configuration import resolve
from trainer.evaluate import Predictions, merge, score

FLAGS = {"network": {"name": "small"}, "input": {"frames": 9, "short_side": 32, "crop": 32}}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_dataset.publish(tmp_path_factory.mktemp("data"), {"train": 8, "val": 5}, frames=(30, 26))


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "both"
    settings = resolve(
        None, {**FLAGS, "run": {"batch_size": 4, "workers": 0, "precision": "fp32", "steps": 30}}
    )
    training.train(training.Job(settings, (str(root),), output))
    return output


def test_joint_scores_are_those_of_the_sum_of_logits():
    rgb = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.9]])
    flow = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.5]])
    scores = score(Predictions(("a", "b"), torch.tensor([0, 2]), {"rgb": rgb, "flow": flow}, ()), "xyz")
    assert [scores[s]["top1"] for s in ("rgb", "flow", "joint")] == [0.5, 0.5, 1.0]
    assert scores["joint"]["top5"] == 1.0
    assert scores["chance"] == pytest.approx(1 / 3)
    by_class = {row["class"]: row for row in scores["classes"]}
    assert (by_class["z"]["clips"], by_class["z"]["rgb"], by_class["z"]["joint"]) == (1, 0.0, 1.0)
    assert (by_class["y"]["clips"], by_class["y"]["rgb"]) == (0, None)


def test_checkpoints_are_merged_by_key_over_the_clips_that_all_have():
    one = Predictions(("a", "b", "c"), torch.tensor([0, 1, 2]), {"rgb": torch.eye(3)}, ())
    two = Predictions(("b", "c"), torch.tensor([1, 2]), {"flow": torch.eye(3)[1:]}, ("a: broken",))
    both = merge([one, two])
    assert both.keys == ("b", "c")
    assert both.target.tolist() == [1, 2]
    assert torch.equal(both.logits["rgb"], both.logits["flow"])
    assert both.failures == ("a: broken",)


def test_evaluate_writes_beside_the_run_what_it_says(root, run, capsys):
    call = ["evaluate", "--data", str(root), "--checkpoint", str(run), "--workers", "0"]
    assert main([*call, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((run / "evaluate-val.json").read_text())
    assert said["clips"] == 5
    assert {"rgb", "flow", "joint"} <= said.keys()
    assert sum(row["clips"] for row in said["classes"]) == 5
    assert main(call) == 0
    assert "joint" in capsys.readouterr().out


def test_the_towers_by_name_score_as_the_whole_checkpoint(root, run, tmp_path):
    call = ["evaluate", "--data", str(root), "--workers", "0", "--output"]
    assert main([*call, str(tmp_path / "whole.json"), "--checkpoint", str(run)]) == 0
    assert main([*call, str(tmp_path / "named.json"), "--rgb", str(run), "--flow", str(run)]) == 0
    assert main([*call, str(tmp_path / "rgb.json"), "--rgb", str(run)]) == 0
    whole, named, rgb = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "named", "rgb"))
    assert [named[s] for s in ("rgb", "flow", "joint")] == [whole[s] for s in ("rgb", "flow", "joint")]
    assert rgb["rgb"] == whole["rgb"]
    assert "flow" not in rgb
    assert "joint" not in rgb


def test_two_ranks_evaluate_each_clip_once_and_score_as_one(root, run, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = ["evaluate", "--data", str(root), "--checkpoint", str(run), "--workers", "0", "--output"]
    subprocess.run(
        [*launch, small_network.__file__, *call, str(tmp_path / "two.json")],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert main([*call, str(tmp_path / "one.json")]) == 0
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())


def test_a_repeated_frame_has_no_motion_in_either_stream(root, run):
    pictures = (torch.randn(2, 3, 10, 4, 4), torch.randn(2, 2, 10, 4, 4))
    rgb, flow = evaluate.still(pictures)
    assert all(torch.equal(rgb[:, :, t], pictures[0][:, :, 5]) for t in range(10))
    assert not flow.any()
    assert evaluate.still((None, None)) == (None, None)
    call = ["evaluate", "--data", str(root), "--checkpoint", str(run), "--workers", "0", "--repeat-frame"]
    assert main(call) == 0
    assert json.loads((run / "evaluate-val-repeat-frame.json").read_text())["repeat_frame"] is True


def test_views_are_averaged(root, run, tmp_path):
    call = ["evaluate", "--data", str(root), "--checkpoint", str(run), "--workers", "0"]
    assert main([*call, "--views", "3x3", "--output", str(tmp_path / "views.json")]) == 0
    scores = json.loads((tmp_path / "views.json").read_text())
    assert (scores["views"], scores["clips"]) == ("3x3", 5)


def test_other_classes_than_the_checkpoints_are_refused(run, tmp_path, capsys):
    other = tiny_dataset.publish(tmp_path / "other", {"val": 2}, classes=2, frames=(26,))
    assert main(["evaluate", "--data", str(other), "--checkpoint", str(run), "--workers", "0"]) == 1
    assert "--classes" in capsys.readouterr().err
