"""Promises of the recipes: schedules, balanced classes, the best checkpoint, the paper's three protocols."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_network
import tiny_dataset
import torch

from trainer import checkpoint as checkpoints
from trainer import train as training
from trainer import validation
from trainer.__main__ import main
from trainer.configuration import FOLDER, Configuration, ConfigurationError, fed_as, resolve
from trainer.data import sampler, split_files
from trainer.data.batches import Input
from trainer.data.rows import RowsError, open_rows
from trainer.optimisation import Optimisation, learning_rate, plateau_count
from trainer.stream_models import restore

SIZE = {"stream": "rgb", "frames": 9, "short_side": 32, "crop": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_dataset.publish(tmp_path_factory.mktemp("data"), {"train": 8, "val": 4}, frames=(20,))


def small(
    network: dict | None = None, optimisation: dict | None = None, input: dict | None = None, **run
) -> Configuration:
    base = {"batch_size": 4, "workers": 0, "precision": "fp32"}
    flags = {
        "network": {"name": "small", **(network or {})},
        "input": {**SIZE, **(input or {})},
        "optimisation": {"schedule": "constant", "lr": 0.02, **(optimisation or {})},
        "run": {**base, **run},
    }
    return resolve(None, flags)


def train(root: Path, output: Path, configuration: Configuration, **options) -> checkpoints.Checkpoint:
    return checkpoints.load(
        training.train(training.TrainOptions(configuration, (str(root),), output, **options))
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# The rate


def test_a_plateau_is_torchs():
    losses = [3.0, 2.0, 2.1, 2.2, 2.0, 1.99995, 1.5, 1.6, 1.7, 1.8, 1.4, 1.5, 1.5, 1.5, 1.5]
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=2)
    settings = Optimisation(lr=0.3, schedule="plateau", patience=2)
    for number, loss in enumerate(losses, 1):
        peer.step(loss)
        rate = learning_rate(10 * number, 1000, settings, losses[:number])
        assert rate == pytest.approx(peer.get_last_lr()[0])
    assert plateau_count(losses, 2) == 3


def test_a_warm_up_rises_in_a_line_and_a_cosine_falls_to_nothing():
    settings = Optimisation(lr=0.4, schedule="cosine", warmup=4)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[52] == pytest.approx(0.2)
    assert rates[99] < 0.001
    constant = Optimisation(lr=0.4, schedule="constant", warmup=4)
    assert [learning_rate(s, 9, constant) for s in (0, 3, 4, 8)] == pytest.approx([0.1, 0.4, 0.4, 0.4])


def test_a_run_that_ends_in_its_warm_up_says_so(root, tmp_path, capsys):
    assert train(root, tmp_path / "run", small(optimisation={"warmup": 4}, epochs=2)).steps == 4
    assert (
        "rises over 4 steps and the run has 4, so that little is learned: give --warmup"
        in capsys.readouterr().err
    )
    train(root, tmp_path / "other", small(optimisation={"warmup": 3}, epochs=2))
    assert "--warmup" not in capsys.readouterr().err


def test_a_plateau_without_evaluations_is_refused():
    with pytest.raises(ConfigurationError, match="give --evaluate-every"):
        small(optimisation={"schedule": "plateau"}, steps=2)


# Evaluations on the way


def test_the_best_checkpoint_stays_and_the_rate_follows_the_validation_loss(root, tmp_path):
    settings = small(
        optimisation={"schedule": "plateau", "patience": 0, "lr": 2.0}, epochs=6, evaluate_every=1
    )
    last = train(root, tmp_path, settings)
    found = lines(tmp_path / "evaluations.jsonl")
    assert [r["epoch"] for r in found] == list(range(6))
    best = max(found, key=lambda r: r["rgb"]["top1"])
    assert checkpoints.load(tmp_path / "best.pt").steps == best["step"]
    losses = [r["loss"] for r in found]
    rates = [2.0 * 0.1 ** plateau_count(losses[:epoch], 0) for epoch in range(6)]
    assert [r["lr"] for r in lines(tmp_path / "metrics.jsonl")[::2]] == pytest.approx(rates)
    assert rates[-1] < 2.0
    assert [dict(r) for r in last.optimiser["history"]] == found


def test_a_run_killed_in_an_evaluation_evaluates_again_and_is_the_same(root, tmp_path, monkeypatch):
    settings = small(optimisation={"schedule": "plateau", "patience": 0}, epochs=4, evaluate_every=2)
    whole = train(root, tmp_path / "whole", settings)
    scores, calls = validation.scores, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return scores(*arguments)

    monkeypatch.setattr(validation, "scores", killed)
    with pytest.raises(KeyboardInterrupt):
        train(root, tmp_path / "killed", settings)
    assert len(lines(tmp_path / "killed" / "metrics.jsonl")) == 4
    resumed = train(root, tmp_path / "killed", settings)
    assert len(calls) == 3
    for name in ("evaluations.jsonl",):
        assert lines(tmp_path / "killed" / name) == lines(tmp_path / "whole" / name)
    assert all(torch.equal(v, whole.weights["rgb"][n]) for n, v in resumed.weights["rgb"].items())


def test_statistics_taken_anew_are_those_of_the_weights_as_they_are(root, tmp_path):
    """With a momentum that moves nothing, those saved are the plain mean over the steps asked for."""
    network = {"bn_momentum": 0.0, "dropout": 0.0}
    stale = train(root, tmp_path / "stale", small(network, steps=2)).weights["rgb"]
    fresh = train(root, tmp_path / "fresh", small(network, steps=2, reestimate=2)).weights["rgb"]
    assert torch.equal(stale["first_norm.running_mean"], torch.zeros(16))
    assert torch.equal(stale["first.weight"], fresh["first.weight"])
    group = training.distributed.Group(0, 1, torch.device("cpu"))
    job = training.TrainOptions(small(network, steps=2, reestimate=2), (str(root),), tmp_path / "fresh")
    run = training.set_up(job, group)
    means = []
    hook = run.models["rgb"].network.first.register_forward_hook(
        lambda _, __, y: means.append(y.detach().mean((0, 2, 3, 4)))
    )
    with torch.no_grad():
        for batch in run.batches((0, 0), 2):
            run.models["rgb"](batch.inputs())
    hook.remove()
    torch.testing.assert_close(
        fresh["first_norm.running_mean"], torch.stack(means).mean(0), rtol=1e-4, atol=1e-5
    )


def test_a_step_takes_a_micro_batch_at_a_time_and_does_not_wait_for_the_next_step(root, tmp_path):
    """A rank with all of a large batch holds no more of it in memory than it computes on."""

    def once(parts):
        yield from parts
        pytest.fail("more was asked for than the step has")

    group = training.distributed.Group(0, 1, torch.device("cpu"))
    lines = []
    for size, clips in ((0, [4]), (2, [2, 2])):
        settings = small({"dropout": 0.5, "bn_frozen": True}, steps=1, micro_batch=size)
        run = training.set_up(training.TrainOptions(settings, (str(root),), tmp_path / str(size)), group)
        parts = list(run.batches((0, 0), 1))
        assert [len(part.target) for part in parts] == clips
        lines.append(run.step(once(parts)))
    assert lines[1].pop("loss") == pytest.approx(lines[0].pop("loss"), rel=1e-5)
    assert lines[1]["order"] == lines[0]["order"]


def test_a_gradient_is_shortened_to_a_norm_whatever_the_parts_and_the_scale(root, tmp_path):
    group = training.distributed.Group(0, 1, torch.device("cpu"))

    def gradient(longest: float, parts: int = 1, scale: float | None = None) -> torch.Tensor:
        settings = small(
            {"dropout": 0.0, "bn_frozen": True},
            {"clip_gradient": longest, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
            steps=1,
            micro_batch=4 // parts,
        )
        run = training.set_up(training.TrainOptions(settings, (str(root),), tmp_path / "run", "none"), group)
        if scale:
            run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        weights = list(run.models["rgb"].network.parameters())
        before = torch.cat([w.detach().flatten() for w in weights])
        run.step(run.batches((0, 0), 1))
        return before - torch.cat([w.detach().flatten() for w in weights])

    whole = gradient(0.0)
    torch.testing.assert_close(gradient(2 * float(whole.norm())), whole)
    for case in ({}, {"parts": 2}, {"scale": 4096.0}):
        short = gradient(float(whole.norm()) / 3, **case)
        torch.testing.assert_close(short, whole / 3, rtol=1e-3, atol=1e-6)


# Balanced classes


def test_a_balanced_epoch_has_each_class_equally_often_and_over_epochs_each_row():
    target = np.array([0] * 50 + [1] * 7 + [2] + [-1] * 4)
    assert sampler.places(target, True) == 57
    seen = np.zeros(62, int)
    for epoch in range(8):
        rows, turns = sampler.balanced_order(3, epoch, target)
        assert np.bincount(target[rows]).tolist() == [19, 19, 19]
        assert len({*zip(rows.tolist(), turns.tolist(), strict=True)}) == 57
        np.add.at(seen, rows, 1)
    assert set(seen[:50]) == {3, 4}  # 152 draws of 50
    assert set(seen[50:57]) == {21, 22}
    assert seen[57:].tolist() == [152, 0, 0, 0, 0]
    assert (
        sampler.balanced_order(3, 1, target)[0].tolist() != sampler.balanced_order(4, 1, target)[0].tolist()
    )


def test_the_balanced_order_never_changes_between_versions_and_platforms():
    rows, turns = sampler.balanced_order(0, 1, np.array([0, 0, 0, 1, -1, 1, 1, 1]))
    assert (rows.tolist(), turns.tolist()) == ([6, 2, 0, 1, 3, 7], [1, 1, 1, 1, 1, 0])


def test_a_balanced_run_resumes_to_the_same_samples(root, tmp_path):
    settings = small(steps=5, balanced=True, optimisation={"schedule": "constant"})
    whole = train(root, tmp_path / "whole", settings)
    first = small(steps=3, balanced=True, optimisation={"schedule": "constant"})
    train(root, tmp_path / "parts", first)
    parts = train(root, tmp_path / "parts", settings)
    assert all(torch.equal(v, whole.weights["rgb"][n]) for n, v in parts.weights["rgb"].items())


# Original, Fixed, Full-FT, and the published lists


def test_frozen_features_stay_as_they_are_and_the_last_layer_learns(root, tmp_path):
    first = train(root, tmp_path / "first", small(steps=2))
    other = tiny_dataset.publish(tmp_path / "other", {"train": 4}, classes=2, frames=(20,))
    init = {"init": str(tmp_path / "first")}
    frozen = train(other, tmp_path / "fixed", small(optimisation={"freeze": True}, steps=2), **init)
    start = train(
        other, tmp_path / "start", small(optimisation={"freeze": True, "lr": 1e-30}, steps=2), **init
    )
    for name, value in frozen.weights["rgb"].items():
        learned = name.startswith("logits")
        assert torch.equal(value, start.weights["rgb"][name]) != learned
        assert learned or torch.equal(value, first.weights["rgb"][name])
    full = train(other, tmp_path / "full", small(steps=2), **init)
    assert not torch.equal(full.weights["rgb"]["first.weight"], first.weights["rgb"]["first.weight"])
    resumed = small(optimisation={"freeze": True}, steps=3)
    assert train(other, tmp_path / "fixed", resumed).steps == 3  # from its own checkpoint, without --init
    with pytest.raises(ConfigurationError, match="with --init"):
        train(other, tmp_path / "none", small(optimisation={"freeze": True}, steps=2))


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_weights_to_start_from_are_fed_as_they_were_unless_the_call_says_otherwise(
    root, tmp_path, capsys, stream
):
    theirs = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "stride": 2}
    given = small_network.checkpoint(tmp_path / "given.pt", streams=(stream,), **theirs)
    frozen = {"optimisation": {"freeze": True}}
    settings = small(input={"stream": stream}, steps=1, **frozen)
    found = train(root, tmp_path / "taken", settings, init=str(given))
    assert {name: getattr(found.input, name) for name in theirs} == theirs
    assert (found.input.frames, found.input.crop) == (settings.input.frames, settings.input.crop)
    said = capsys.readouterr().err
    assert "--init: fed as the weights were: mean (0.4, 0.5, 0.6), std (0.2, 0.3, 0.25), stride 2" in said
    pictures = (torch.rand(1, 3, 9, 32, 32) * 2 - 1, torch.rand(1, 2, 9, 32, 32) * 2 - 1)
    own, fixed = (restore(checkpoints.load(c))[stream] for c in (given, tmp_path / "taken"))
    with torch.no_grad():
        assert torch.equal(own.features(pictures), fixed.features(pictures))
    longer = small(input={"stream": stream}, steps=2, **frozen)
    assert train(root, tmp_path / "taken", longer).input == found.input  # from its own, without --init
    named = small(input={"stream": stream, "stride": 1}, steps=1, **frozen)
    assert train(root, tmp_path / "named", named, init=str(given)).input.stride == 1


def test_a_file_or_a_flag_names_a_setting_and_a_networks_default_does_not(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[input]\nstride = 1\n")
    flags = {"network": {"name": "r3d-18"}, "input": {"frames": 8, "crop": None}}
    weights = Input(mean=(0.4, 0.4, 0.4), stride=2)
    settings = resolve(str(file), flags)
    assert settings.named == ("frames", "stride")  # in one order: launches tell their call by its repr
    fed = fed_as(settings, weights).input
    assert (fed.mean, fed.stride, fed.frames) == (weights.mean, 1, 8)
    assert fed_as(resolve(None, flags), weights).input.stride == 2


def test_weights_of_another_flow_bound_are_refused_unless_the_call_names_it(root, tmp_path):
    given = small_network.checkpoint(tmp_path / "given.pt", streams=("flow",), flow_bound=5.0)
    with pytest.raises(ConfigurationError, match="fed flow of up to 5 pixels, the data set has 20: prepare"):
        train(root, tmp_path / "run", small(input={"stream": "flow"}, steps=1), init=str(given))
    named = small(input={"stream": "flow", "flow_bound": 20.0}, steps=1)
    assert train(root, tmp_path / "run", named, init=str(given)).input.flow_bound == 20


UCF = {
    "trainlist01.txt": "A/{0}.avi 1\nB/{1}.avi 2\nA/{2}.avi 1\nB/{3}.avi 2\n",
    "testlist01.txt": "A/{4}.avi\nB/{5}.avi\n",
}
HMDB = {
    "a_test_split1.txt": "{0}.avi 1 \n{1}.avi 1 \n{4}.avi 2 \n{6}.avi 0 \n",
    "b_test_split1.txt": "{2}.avi 1 \n{3}.avi 1 \n{5}.avi 2 \n",
}


@pytest.mark.parametrize("published", [UCF, HMDB])
def test_the_published_lists_say_what_trains_and_what_tests(root, tmp_path, capsys, published):
    ids = open_rows([str(root)], "train", ("rgb",)).keys.to_pylist()
    files = []
    for name, text in published.items():
        (tmp_path / name).write_text(text.format(*ids))
        files.append(str(tmp_path / name))
    found = split_files.read(files)
    assert set(open_rows([str(root)], found.train, ("rgb",)).keys.to_pylist()) == set(ids[:4])
    assert set(open_rows([str(root)], found.test, ("rgb",)).keys.to_pylist()) == set(ids[4:6])
    call = ["--data", str(root), "--split-file", *files, "--workers", "0"]
    small_ = ["--network", "small", "--frames", "9", "--short-side", "32", "--crop", "32", "--stream", "rgb"]
    run = ["--batch-size", "2", "--epochs", "1", "--evaluate-every", "1", "--output", str(tmp_path / "run")]
    assert main(["train", *call, *small_, *run]) == 0
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert lines(tmp_path / "run" / "evaluations.jsonl")[0]["clips"] == 2
    assert main(["evaluate", *call, "--checkpoint", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 2
    assert (tmp_path / "run" / "evaluate-test.json").exists()
    assert main(["evaluate", *call, "--checkpoint", str(tmp_path / "run"), "--split", "val"]) == 2
    assert "leave out --split" in capsys.readouterr().err
    assert main(["train", "--data", str(root), *small_, *run, "--workers", "0"]) == 2  # without the lists
    assert "other clips" in capsys.readouterr().err


def test_lists_that_are_none_are_refused_in_a_sentence(root, tmp_path, caplog):
    file = tmp_path / "trainlist01.txt"
    for text in ("v_one 1 7\n", "nothing\n", "a.avi 3\n"):
        file.write_text(text)
        with pytest.raises(split_files.ListError, match=r"trainlist01\.txt:1 is neither"):
            split_files.read([file])
    with pytest.raises(split_files.ListError, match="cannot be read"):
        split_files.read([tmp_path / "absent.txt"])
    file.write_text("A/x.avi 1\n")
    shutil.copy(file, tmp_path / "testlist01.txt")
    with pytest.raises(split_files.ListError, match="x both trains and tests"):
        split_files.read([file, tmp_path / "testlist01.txt"])
    with pytest.raises(RowsError, match="has no train clips"):
        open_rows([str(root)], split_files.read([file]).train, ("rgb",))
    assert "1 of 1 listed videos are not in the data set, x for one" in caplog.text


def test_a_step_that_memory_does_not_hold_says_what_to_take_less_of(root, tmp_path, monkeypatch):
    forward = small_network.Small.forward

    def full(network, x):
        if network.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")
        return forward(network, x)

    monkeypatch.setattr(small_network.Small, "forward", full)
    with pytest.raises(training.TrainingError, match=r"give --micro-batch .* smaller --batch-size"):
        train(root, tmp_path, small(steps=1))


def test_a_network_that_needs_two_clips_at_a_time_says_so(root, tmp_path):
    flags = {"network": {"name": "c3d-bn"}, "input": {**SIZE, "frames": 16}}
    settings = resolve(None, {**flags, "run": {"batch_size": 1, "steps": 1, "workers": 0}})
    with pytest.raises(training.TrainingError, match="needs two at a time"):
        train(root, tmp_path, settings)


def test_every_configuration_that_comes_with_the_trainer_can_be_read():
    for file in sorted(FOLDER.glob("*.toml")):
        assert resolve(str(file), {}).input.frames
    assert resolve("tsn", {}).input.test_frames == 125
