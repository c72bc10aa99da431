"""Promises of a restart: killed at any step and resumed on any number of ranks, a run stays the same run."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import nodes
import pytest
import tiny_dataset
import torch

from trainer import checkpoint as checkpoints

STEPS = 24
EXACT = "[network]\nbn_frozen = true\ndropout = 0.0\n[optimisation]\nschedule = 'constant'\nlr = 0.05\n"
"""Makes a training independent of the number of ranks but for rounding: no statistics of a part."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_dataset.publish(tmp_path_factory.mktemp("data"), {"train": 22}, frames=(30, 12))


def call(root: Path, run: Path, exact: bool = True) -> list[str]:
    text = EXACT if exact else "[network]\ndropout = 0.5\n"
    file = run.with_suffix(".toml")
    file.write_text(text)
    size = ["--network", "small", "--frames", "9", "--short-side", "32", "--crop", "32", "--stream", "rgb"]
    how = ["--config", str(file), "--precision", "fp32", "--workers", "1", "--checkpoint-every", "3"]
    length = ["--batch-size", "7", "--steps", str(STEPS)]
    return ["train", "--data", str(root), "--output", str(run), *size, *how, *length]


def whole(arguments: list[str], run: Path, world: int) -> list[dict]:
    with nodes.torchrun(
        ["--standalone", "--nproc-per-node", str(world)], arguments, run.with_suffix(".log")
    ) as n:
        n.end(120)
    return nodes.records(run)


def killed(arguments: list[str], run: Path, world: int) -> int:
    """Trains on `world` ranks until a random step, then kills every process; returns the steps recorded."""
    step = random.randint(1, STEPS - 6)
    with nodes.torchrun(
        ["--standalone", "--nproc-per-node", str(world)], arguments, run.with_suffix(".log")
    ) as n:
        nodes.wait_for(lambda: len(nodes.records(run)) >= step, n)
        n.kill()
    done = len(nodes.records(run))
    assert step <= done < STEPS
    return done


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory) -> tuple[list[dict], checkpoints.Checkpoint]:
    run = tmp_path_factory.mktemp("run") / "undisturbed"
    return whole(call(root, run), run, 1), checkpoints.load(run)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 2), (3, 1)])
def test_a_run_killed_at_any_step_and_resumed_at_another_size_is_the_same_run(
    root, tmp_path, undisturbed, before, after
):
    run = tmp_path / "run"
    killed(call(root, run), run, before)
    found = whole(call(root, run), run, after)
    wanted, checkpoint = undisturbed
    assert [r["step"] for r in found] == list(range(1, STEPS + 1))
    assert [r["order"] for r in found] == [r["order"] for r in wanted]
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in wanted], rel=1e-4)
    for name, value in checkpoints.load(run).weights["rgb"].items():
        torch.testing.assert_close(value, checkpoint.weights["rgb"][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_resumed_on_as_many_ranks_has_identical_bits(root, tmp_path):
    """Two ranks; dropout on and statistics moving."""
    one, two = tmp_path / "one", tmp_path / "two"
    wanted = whole(call(root, one, exact=False), one, 2)
    killed(call(root, two, exact=False), two, 2)
    found = whole(call(root, two, exact=False), two, 2)
    for record in (*wanted, *found):
        del record["clips_per_second"]
    assert found == wanted
    ours, theirs = (checkpoints.load(run).weights["rgb"] for run in (two, one))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_torchrun_starts_a_run_with_a_killed_rank_again_and_it_starts_over_but_once(
    root, tmp_path, undisturbed
):
    """RUN holds another training; ``--resume none``, which torchrun repeats, throws away that one alone."""
    run = tmp_path / "run"
    run.mkdir()
    earlier = checkpoints.save(run, replace(undisturbed[1], steps=99))
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    with nodes.torchrun(options, [*call(root, run), "--resume", "none"], run.with_suffix(".log")) as n:
        nodes.wait_for(lambda: 7 <= len(nodes.records(run)) < STEPS, n)
        n.kill_rank(1)
        n.end(180)
    said = run.with_suffix(".log").read_text()
    assert "was started over by torchrun" in said
    assert "24/24 steps" in said
    found, (wanted, _) = nodes.records(run), undisturbed
    assert [r["step"] for r in found] == list(range(1, STEPS + 1))
    assert [r["order"] for r in found] == [r["order"] for r in wanted]
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in wanted], rel=1e-4)
    assert not earlier.exists()
    assert checkpoints.load(run).steps == STEPS


def refused(root: Path, run: Path, *more: str) -> str:
    """Calls what cannot be trained, with three restarts; returns what is said."""
    options = ["--standalone", "--nproc-per-node", "1", "--max-restarts", "3"]
    with nodes.torchrun(options, [*call(root, run), *more], run.with_suffix(".log")) as n:
        assert n.process.wait(120) != 0
    return run.with_suffix(".log").read_text()


def test_torchrun_does_not_repeat_a_wrong_call(root, tmp_path):
    assert refused(root, tmp_path / "run", "--network", "i4d").count("no network 'i4d'") == 1


@pytest.mark.slow
def test_torchrun_does_not_repeat_a_training_that_would_fail_again(root, tmp_path):
    said = refused(root, tmp_path / "run", "--lr", "1e18")
    assert said.count("lower --lr") == 1
    assert "1/24 steps" in said
