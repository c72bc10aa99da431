"""Promises of evaluation: every clip once, streams joined by adding logits, and one frame is not motion."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_network
import tiny_dataset
import torch
from every_network import FAMILIES, FRAMES

from pipeline import dataset
from trainer import checkpoint as checkpoints
from trainer import distributed, ensemble, evaluate, networks
from trainer import train as training
from trainer.__main__ import main
from trainer.configuration import resolve
from trainer.data.augmentation import evaluation_views
from trainer.data.decoding import decode_flow, decode_rgb
from trainer.data.loader import EvaluationBatches
from trainer.data.reading import Reader
from trainer.data.rows import open_rows
from trainer.ensemble import as_pictures
from trainer.evaluate import Predictions, merge, score
from trainer.stream_models import restore

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
    training.train(training.TrainOptions(settings, (str(root),), output))
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


def test_the_models_by_name_score_as_the_whole_checkpoint(root, run, tmp_path):
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


def test_a_network_published_for_clips_of_its_length_never_sees_more_unless_told(root, tmp_path, monkeypatch):
    seen: set[tuple[int, int]] = set()

    def forward(network, x, plain=small_network.Small.forward):
        if not network.training and x.device.type != "meta":
            seen.add((x.shape[0], x.shape[2]))
        return plain(network, x)

    monkeypatch.setattr(small_network.Small, "forward", forward)
    fed = {**FLAGS["input"], "stream": "rgb", "test_views": [2, 3]}
    short = {"batch_size": 4, "workers": 0, "precision": "fp32", "epochs": 1, "evaluate_every": 1}
    settings = resolve(None, {**FLAGS, "input": fed, "run": short})
    training.train(training.TrainOptions(settings, (str(root),), tmp_path / "run"))
    assert seen == {(1, 9)}  # in training one clip of each
    call = ["evaluate", "--data", str(root), "--rgb", str(tmp_path / "run"), "--workers", "0", "--output"]
    for more, views, sizes in (
        ([], "2x3", {(6, 9)}),
        (["--views", "4x3"], "4x3", {(8, 9), (4, 9)}),
        (["--views", "1x1"], "1x1", {(1, 9)}),
        (["--views", "whole"], "whole clip", {(1, 26), (1, 30)}),
    ):
        seen.clear()
        assert main([*call, str(tmp_path / "scores.json"), *more]) == 0
        assert (json.loads((tmp_path / "scores.json").read_text())["views"], seen) == (views, sizes)


@pytest.mark.parametrize(
    ("name", "views"),
    [
        *((name, (10, 3)) for name in ("i3d-r50", "i3d-r50-nl5", "slowfast-8x8-r50", "smallbig-r50")),
        *((name, (10, 3)) for name in ("ir-csn-50", "ip-csn-152")),
        *((name, (10, 1)) for name in ("r2d-18", "r3d-18", "r2plus1d-34")),
        ("artnet-18", (25, 1)),
        *((name, ()) for name in ("i3d", "s3d-g", "c3d-bn", "convnet-lstm", "two-stream", "fused-3d")),
    ],
)
def test_the_views_of_a_network_are_those_of_its_paper(name, views):
    assert resolve(None, {"network": {"name": name}}).input.test_views == views


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_views_of_every_family_are_its_logits_averaged(tmp_path, name):
    root = tiny_dataset.publish(tmp_path / "data", {"val": 2}, frames=(30, 26))
    streams = ("both",) if networks.entry(name).streams == ("both",) else ("rgb",)
    size = {"frames": FRAMES.get(name, 8), "short_side": 48, "crop": 48}
    known = checkpoints.load(small_network.checkpoint(tmp_path / "c.pt", name, streams, **size))
    (model,) = restore(known).values()
    rows = open_rows([str(root)], "val", ("rgb", "flow") if streams == ("both",) else streams)
    group = distributed.Group(0, 1, torch.device("cpu"))

    def logits(clips: int, crops: int) -> torch.Tensor:
        batches = EvaluationBatches(rows, known.input, frames=known.input.frames, clips=clips, crops=crops)
        return evaluate.predict({streams[0]: model}, batches, group).logits[streams[0]]

    found = logits(2, 3)
    one_by_one = []
    for row in sorted(range(len(rows)), key=rows.keys.to_pylist().__getitem__):
        width, height, frames = (int(x[row]) for x in (rows.width, rows.height, rows.frames))
        cuts = evaluation_views(known.input, frames, width, height, known.input.frames, 2, 3)
        assert len(cuts) == 6
        members = Reader(rows, tuple(rows.offsets)).read(row)
        views = []
        for cut in cuts:
            seen = {
                s: np.empty((1, 3 if s == "rgb" else 2, size["frames"], 48, 48), np.uint8) for s in members
            }
            scale = np.ones((1, 2), np.float32)
            decode_rgb(members["rgb"], [cut], (width, height), 25, seen["rgb"])
            if "flow" in seen:
                scale[0] = decode_flow(members["flow"], [cut], (width, height), 25, seen["flow"])[0]
            with torch.no_grad():
                clip = {stream: pixels[0] for stream, pixels in seen.items()}
                views.append(model(as_pictures([clip], scale, torch.device("cpu"))))
        one_by_one.append(torch.stack(views).mean(dim=0)[0])
    torch.testing.assert_close(
        found, torch.stack(one_by_one), rtol=1e-3, atol=1e-3 * found.abs().max().item()
    )


def test_what_looks_at_a_run_that_goes_on_takes_one_checkpoint_of_it_and_names_that_one(
    root, run, tmp_path, monkeypatch
):
    going = tmp_path / "run"
    known = checkpoints.load(run)
    going.mkdir()
    first = checkpoints.save(going, replace(known, steps=1))
    digest = hashlib.sha256(first.read_bytes()).hexdigest()

    def meanwhile(*arguments):
        checkpoints.save(going, replace(known, steps=2))
        return restore(*arguments)

    monkeypatch.setattr(evaluate, "restore", meanwhile)
    call = ["evaluate", "--data", str(root), "--rgb", str(going), "--flow", str(going), "--workers", "0"]
    assert main(call) == 0
    written = json.loads((going / "evaluate-val.json").read_text())
    assert written["checkpoints"] == [str(first), str(first)]
    going.joinpath("checkpoint-000000002.pt").unlink()
    monkeypatch.setattr(ensemble, "restore", meanwhile)
    found = ensemble.load(((str(going), "rgb"), (str(going), "flow")))
    assert {member.sha256 for member in found.members.values()} == {digest}


def test_a_network_that_takes_no_whole_clips_says_so(tmp_path, capsys):
    root = tiny_dataset.publish(tmp_path / "data", {"val": 1}, frames=(4,), classes=3)
    data = dataset.open(root).classes
    tsn = small_network.checkpoint(tmp_path / "c.pt", "tsn-bninception", ("rgb",), frames=5)
    checkpoints.write(tsn, replace(checkpoints.load(tsn), classes=tuple(data)))
    assert main(["evaluate", "--data", str(root), "--rgb", str(tsn), "--workers", "0"]) == 2
    assert "does not take whole clips of 4 frames" in capsys.readouterr().err


def test_another_flow_bound_or_stream_is_refused(root, run, tmp_path, capsys):
    known = checkpoints.load(run)
    for bound, stream, code, said in (
        (16.0, "--flow", 2, "stores flow up to 20.0 pixels and the network was made for 16"),
        (20.0, "--rgb", 2, "the checkpoint was trained on flow, not on rgb"),
    ):
        path = tmp_path / f"{bound}.pt"
        fed = replace(known.input, flow_bound=bound)
        checkpoints.write(path, replace(known, input=fed, weights={"flow": known.weights["flow"]}))
        assert main(["evaluate", "--data", str(root), stream, str(path), "--workers", "0"]) == code
        assert said in capsys.readouterr().err


def test_an_evaluation_that_is_told_to_stop_does_so_before_its_next_clip(root, run):
    known = checkpoints.load(run)
    batches = EvaluationBatches(open_rows([str(root)], "val", ("rgb", "flow")), known.input)
    group, asked = distributed.Group(0, 1, torch.device("cpu")), iter([False, True])
    with pytest.raises(evaluate.Stopped):
        evaluate.predict(restore(known), batches, group, stop=lambda: next(asked))
    assert next(asked, None) is None


@pytest.mark.slow
def test_sigterm_ends_an_evaluation_at_the_next_clip_and_the_run_goes_on_from_there(tmp_path):
    root = tiny_dataset.publish(tmp_path / "data", {"train": 4, "val": 8}, frames=(30,))
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_TO_EVALUATE)
    size = ["--frames", "9", "--short-side", "32", "--crop", "32", "--batch-size", "4", "--workers", "0"]
    call = ["train", "--data", str(root), "--output", str(tmp_path / "run"), "--network", "small", *size]
    call += ["--epochs", "1", "--evaluate-every", "1", "--precision", "fp32"]
    paths = os.pathsep.join([str(Path(small_network.__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(slow), *call],
        env={**os.environ, "PYTHONPATH": paths, "SEEN": str(tmp_path / "seen")},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "seen").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Stopped in the evaluation after step 1" in said
    assert (tmp_path / "seen").read_text().count("clip") < 8
    assert main(call) == 0
    (line,) = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["clips"] == 8


SLOW_TO_EVALUATE = """
import os, sys, time
import small_network
from trainer.__main__ import main

plain = small_network.Small.forward

def forward(self, x):
    if not self.training and x.device.type != "meta":
        with open(os.environ["SEEN"], "a") as file:
            file.write("clip ")
        time.sleep(1)
    return plain(self, x)

small_network.Small.forward = forward
sys.exit(main())
"""
"""The trainer, with a network that takes its time in evaluation and notes each time it is asked."""


@pytest.mark.slow
def test_sigterm_ends_the_command_with_a_sentence(root, run, tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_TO_EVALUATE)
    paths = os.pathsep.join([str(Path(small_network.__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(slow), "evaluate", "--data", str(root), "--rgb", str(run)],
        env={**os.environ, "PYTHONPATH": paths, "SEEN": str(tmp_path / "seen")},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "seen").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.strip().splitlines()[-1] == "Interrupted: the same command starts again"
    assert "Traceback" not in said


def test_other_classes_than_the_checkpoints_are_refused(run, tmp_path, capsys):
    other = tiny_dataset.publish(tmp_path / "other", {"val": 2}, classes=2, frames=(26,))
    assert main(["evaluate", "--data", str(other), "--checkpoint", str(run), "--workers", "0"]) == 2
    assert "--classes" in capsys.readouterr().err
