"""Promises of training: the record it leaves, resuming to the same bits, ranks that see the same samples."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ports
import published
import pytest
import small_network
import tiny_dataset
import torch

from trainer import checkpoint as checkpoints
from trainer import configuration as configurations
from trainer import train as training
from trainer.configuration import Configuration, ConfigurationError, from_dict, resolve
from trainer.data import sampler
from trainer.data.rows import RowsError, open_rows

PROGRAM = str(Path(small_network.__file__))
TINY = ["--network", "small", "--frames", "9", "--short-side", "32", "--crop", "32", "--workers", "0"]
TINY += ["--batch-size", "4", "--precision", "fp32"]
SIZE = {"frames": 9, "short_side": 32, "crop": 32}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The same sums in this process as in those it starts, and no waiting for busy cores."""
    before, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_dataset.publish(tmp_path_factory.mktemp("data"), frames=(30,))


def tiny(stream: str = "rgb", steps: int | None = 4, network: dict | None = None, **run) -> Configuration:
    flags = {
        "network": {"name": "small", **(network or {})},
        "input": {"stream": stream, "frames": 9, "short_side": 32, "crop": 32},
        "run": {"batch_size": 4, "workers": 0, "precision": "fp32", "steps": steps, **run},
    }
    return resolve(None, flags)


def changed(configuration: Configuration, **optimisation) -> Configuration:
    sections = configuration.as_dict()
    return from_dict({**sections, "optimisation": {**sections["optimisation"], **optimisation}})


def fed_otherwise(configuration: Configuration) -> Configuration:
    sections = configuration.as_dict()
    return from_dict({**sections, "input": {**sections["input"], "stride": 2}})


def train(root: Path, output: Path, configuration: Configuration, **options) -> checkpoints.Checkpoint:
    return checkpoints.load(
        training.train(training.TrainOptions(configuration, (str(root),), output, **options))
    )


def lines(run: Path, *dropped: str) -> list[dict]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("clips_per_second", *dropped)} for r in records]


def same_bits(one: checkpoints.Checkpoint, two: checkpoints.Checkpoint) -> bool:
    return one.weights.keys() == two.weights.keys() and all(
        torch.equal(value, two.weights[stream][name])
        for stream, model in one.weights.items()
        for name, value in model.items()
    )


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory) -> tuple[Path, checkpoints.Checkpoint]:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    return run, train(root, run, tiny(steps=90))


def command(root: Path, run: Path, *more: str) -> list[str]:
    call = ["train", "--data", str(root), "--output", str(run), *TINY, "--stream", "rgb", "--steps", "90"]
    return [sys.executable, PROGRAM, *call, *more]


def stopped_after(root: Path, run: Path, step: int, number: int) -> subprocess.CompletedProcess:
    """Starts the undisturbed run's command with a loader, and signals both once `step` is recorded."""
    process = subprocess.Popen(
        command(root, run, "--checkpoint-every", "2", "--workers", "1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        metrics, end = run / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
            assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
            assert time.monotonic() < end
            time.sleep(0.02)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess([], process.returncode, "", said)


def test_no_process_of_a_training_or_a_report_listens_on_a_port(root, tmp_path):
    calls = (
        command(root, tmp_path / "run", "--workers", "1", "--steps", "12"),
        [sys.executable, "-m", "pipeline", "report", str(tmp_path / "published")],
    )
    published.prepare(tmp_path / "published").publish()
    for call in calls:
        process, seen, end = subprocess.Popen(call, start_new_session=True), 0, time.monotonic() + 120
        while process.poll() is None:
            assert time.monotonic() < end
            running = ports.of_session(process.pid)
            seen = max(seen, len(running))
            assert ports.listening(running) == []
            time.sleep(0.02)
        assert process.returncode == 0
        assert seen >= 1


def test_metrics_have_one_line_a_step_from_step_one_and_events_for_tensorboard(undisturbed):
    run, checkpoint = undisturbed
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 91))
    assert [r["epoch"] for r in records] == [step // 3 for step in range(90)]
    for record in records:
        assert {"step", "epoch", "loss", "lr", "clips_per_second", "order"} <= record.keys()
        assert len(record["order"]) == 16
    assert len({r["order"] for r in records}) == 90
    assert list((run / "tensorboard").glob("events*"))
    assert checkpoint.steps == 90
    assert dict(checkpoint.state) == {"seed": 0, "epoch": 30, "step": 0}


def test_a_killed_run_resumes_to_identical_bits(root, tmp_path, undisturbed):
    run = tmp_path / "run"
    assert stopped_after(root, run, 3, signal.SIGKILL).returncode == -signal.SIGKILL
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 80, "epoch": 26, "lo')  # what a kill in mid-line leaves
    for name in (".checkpoint-000000002.pt.node.tmp", ".best.pt.77"):  # in the midst of writing
        (run / name).touch()
    resumed = train(root, run, tiny(steps=90))
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert same_bits(resumed, undisturbed[1])
    assert lines(run) == lines(undisturbed[0])


def test_sigterm_saves_the_step_in_hand_and_says_how_to_go_on(root, tmp_path, undisturbed):
    run = tmp_path / "run"
    ended = stopped_after(root, run, 4, signal.SIGTERM)
    assert ended.returncode == 1
    assert "the same command goes on from there" in ended.stderr
    assert "Traceback" not in ended.stderr
    newest = checkpoints.load(run)
    assert newest.steps == len(lines(run))
    assert newest.steps < 90
    assert same_bits(train(root, run, tiny(steps=90)), undisturbed[1])
    assert lines(run) == lines(undisturbed[0])


def test_two_ranks_see_the_same_samples_and_take_the_same_steps_as_one(root, tmp_path):
    """A batch of 5 over 2 ranks, at most 2 clips at a time; dropout on, statistics frozen, for they alone are
    each part's own."""
    file = tmp_path / "frozen.toml"
    file.write_text("[network]\nbn_frozen = true\n[optimisation]\nschedule = 'constant'\nlr = 0.05\n")
    file.write_text(file.read_text() + "clip_gradient = 0.4\n")
    call = ["train", "--data", str(root), *TINY, "--config", str(file), "--stream", "flow"]
    call += ["--batch-size", "5", "--steps", "6", "--output"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, PROGRAM, *call, str(tmp_path / "two"), "--micro-batch", "2"], check=True)
    subprocess.run([sys.executable, PROGRAM, *call, str(tmp_path / "one")], check=True)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [r["order"] for r in one] == [r["order"] for r in two]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-4)
    assert [r["top1_flow"] for r in two] == [r["top1_flow"] for r in one]
    ours, theirs = checkpoints.load(tmp_path / "one"), checkpoints.load(tmp_path / "two")
    for name, value in ours.weights["flow"].items():
        torch.testing.assert_close(theirs.weights["flow"][name], value, rtol=1e-3, atol=1e-5)


def test_models_trained_together_are_those_trained_alone(root, tmp_path):
    both = train(root, tmp_path / "both", tiny("both", 3))
    for stream in ("rgb", "flow"):
        alone = train(root, tmp_path / stream, tiny(stream, 3))
        assert all(torch.equal(v, both.weights[stream][n]) for n, v in alone.weights[stream].items())
    assert [r["loss_rgb"] for r in lines(tmp_path / "both")] == [r["loss"] for r in lines(tmp_path / "rgb")]


def test_another_setting_than_the_runs_is_refused_by_name(root, tmp_path):
    train(root, tmp_path / "run", tiny(steps=1))
    for other, name in (
        (tiny(steps=1, seed=5), "run.seed is 5, the run's is 0"),
        (tiny(steps=1, network={"dropout": 0.1}), "network.dropout is 0.1"),
        (tiny("flow", steps=1), "input.stream is 'flow'"),
        (fed_otherwise(tiny(steps=1)), "input.stride is 2, the run's is 1"),
        (tiny(steps=2), "run.steps is 2"),  # one-cycle: another length is another training
    ):
        with pytest.raises(ConfigurationError, match=name):
            train(root, tmp_path / "run", other)
    assert train(root, tmp_path / "run", tiny(steps=1, checkpoint_every=7)).steps == 1


def test_a_finished_run_stays_as_it_is_and_resume_none_starts_over(root, tmp_path):
    run = tmp_path / "run"
    train(root, run, tiny(steps=2))
    before = (run / "metrics.jsonl").read_bytes()
    train(root, run, tiny(steps=2))
    assert (run / "metrics.jsonl").read_bytes() == before
    again = train(root, run, tiny(steps=1, seed=3), resume="none")
    assert again.state["seed"] == 3
    assert [r["step"] for r in lines(run)] == [1]
    assert len(list(run.glob("checkpoint-*.pt"))) == 1


def test_a_call_that_cannot_be_run_leaves_the_run_that_is_there(root, tmp_path):
    run = tmp_path / "run"
    train(root, run, tiny(steps=2))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for data, settings in (
        (tmp_path / "none", tiny()),
        (root, tiny(network={"width": 3})),
        (root, resolve("quick", {"input": {"frames": 8}})),  # I3D takes 9
    ):
        with pytest.raises((RowsError, ConfigurationError)):
            train(data, run, settings, resume="none")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_to_evaluate_without_a_validation_split_is_refused_before_it_starts(tmp_path):
    data = tiny_dataset.publish(tmp_path / "data", {"train": 4}, frames=(30,))
    with pytest.raises(RowsError, match="no val clips"):
        train(data, tmp_path / "run", tiny(evaluate_every=1))
    assert not (tmp_path / "run").exists()


def test_a_resume_on_another_number_of_data_sets_is_refused_in_a_sentence(root, tmp_path):
    train(root, tmp_path / "run", tiny(steps=1))
    with pytest.raises(RowsError, match="has 1 data sets, not 2"):
        training.train(training.TrainOptions(tiny(steps=1), (str(root), str(root)), tmp_path / "run"))


def test_ranks_that_find_different_checkpoints_are_refused(root, tmp_path):
    """As where RUN lies on each node's own disk and one node is new."""
    train(root, tmp_path / "run0", tiny(steps=2))
    (tmp_path / "run1").mkdir()
    call = ["train", "--data", str(root), *TINY, "--stream", "rgb", "--steps", "2"]
    inner = (
        shlex.join([sys.executable, PROGRAM, *call, "--output"]) + f" {shlex.quote(str(tmp_path))}/run$RANK"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "--no-python", "bash", "-c", inner], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "The ranks find different checkpoints" in done.stderr


def test_a_resume_on_other_clips_is_refused_and_on_a_moved_data_set_it_is_not(root, tmp_path):
    first = tiny_dataset.publish(tmp_path / "first", {"train": 4}, flow=False, frames=(30,))
    other = tiny_dataset.publish(tmp_path / "other", {"train": 4}, flow=False, frames=(31,))
    settings = changed(tiny(steps=1), schedule="constant")
    train(first, tmp_path / "run", settings)
    longer = changed(tiny(steps=2), schedule="constant")
    with pytest.raises(ConfigurationError, match="trained on other clips than those of --data"):
        train(other, tmp_path / "run", longer)
    assert train(first.rename(tmp_path / "moved"), tmp_path / "run", longer).steps == 2


def test_a_resume_says_that_the_newest_checkpoint_is_damaged_and_goes_on_from_the_one_before(
    root, tmp_path, capsys
):
    whole = train(root, tmp_path / "run", tiny(steps=4, checkpoint_every=2))
    newest = checkpoints.find(tmp_path / "run")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    assert same_bits(train(root, tmp_path / "run", tiny(steps=4, checkpoint_every=2)), whole)
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said
    assert "going on from checkpoint-00000000" in said
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == data


def test_a_longer_run_is_the_same_run_where_the_rate_allows(root, tmp_path):
    train(root, tmp_path / "grown", changed(tiny(steps=1), schedule="constant"))
    whole = changed(tiny(steps=3), schedule="constant")
    assert same_bits(train(root, tmp_path / "grown", whole), train(root, tmp_path / "whole", whole))


def test_new_generations_join_when_asked_as_an_epoch_begins(tmp_path, monkeypatch):
    """6 clips make 3 steps of an epoch, 10 make 5; the new ones are published in the midst of epoch 1."""
    data = tiny_dataset.publish(tmp_path / "data", {"train": 6, "val": 2}, flow=False, frames=(30,))
    settings = tiny(epochs=4, steps=None, batch_size=2, evaluate_every=1)
    step = training.TrainState.step

    def publish(self, parts):
        if self.done == 4:
            more = {"samples": {"train": 4}, "generation": "00001", "append": True}
            tiny_dataset.publish(data, **more, flow=False, frames=(30,))
        return step(self, parts)

    monkeypatch.setattr(training.TrainState, "step", publish)
    run = tmp_path / "run"
    last = train(data, run, settings, generations="latest", resume="none")
    assert [r["epoch"] for r in lines(run)] == [0] * 3 + [1] * 3 + [2] * 5 + [3] * 5
    assert last.generations == (("00000", "00001"),)
    rows = open_rows([str(data)], "train", ("rgb",))
    wanted = sampler.global_batch(sampler.epoch_order(0, 2, 10), 4, 2)
    assert lines(run)[10]["order"] == sampler.digest(rows.keys.take(wanted).to_pylist())
    monkeypatch.undo()
    assert train(data, run, settings).steps == 16
    kept = train(data, tmp_path / "kept", tiny(steps=1, batch_size=2))
    tiny_dataset.publish(data, {"train": 2}, flow=False, frames=(30,), generation="00002", append=True)
    longer = train(data, tmp_path / "kept", tiny(steps=1, batch_size=2))
    assert longer.generations == kept.generations == last.generations


def test_init_takes_the_weights_and_keeps_the_last_layer_only_for_the_same_classes(root, tmp_path):
    first = train(root, tmp_path / "first", tiny(steps=1))
    frozen = tiny(steps=1, seed=9, network={"dropout": 0.0, "bn_frozen": True})
    settings = changed(frozen, lr=1e-30, weight_decay=0.0)
    assert same_bits(train(root, tmp_path / "second", settings, init=str(tmp_path / "first")), first)
    other = tiny_dataset.publish(tmp_path / "other", {"train": 4}, classes=2, frames=(30,))
    start = train(other, tmp_path / "third", settings, init=str(tmp_path / "first"))
    assert start.weights["rgb"]["logits.weight"].shape[0] == 2
    assert torch.equal(start.weights["rgb"]["first.weight"], first.weights["rgb"]["first.weight"])


def test_another_init_than_the_runs_is_refused_and_the_same_weights_elsewhere_are_not(root, tmp_path):
    one = small_network.checkpoint(tmp_path / "one.pt", streams=("rgb",), **SIZE)
    two = small_network.checkpoint(tmp_path / "two.pt", streams=("rgb",), **SIZE, flip=False)
    run, settings = tmp_path / "run", changed(tiny(steps=1), schedule="constant")
    train(root, run, settings, init=str(one))
    written = json.loads((run / "configuration.json").read_text())["init"]
    assert written == {"name": str(one), "sha256": hashlib.sha256(one.read_bytes()).hexdigest()}
    longer = changed(tiny(steps=2), schedule="constant")
    with pytest.raises(ConfigurationError, match=f"it was started with --init {one}"):
        train(root, run, longer, init=str(two))
    moved = one.rename(tmp_path / "moved.pt")
    train(root, run, longer, init=str(moved))
    assert train(root, run, longer, init=str(one)).steps == 2  # gone, but named so when the run began
    one.write_bytes(two.read_bytes())
    with pytest.raises(ConfigurationError, match="has changed since"):
        train(root, run, longer, init=str(one))
    train(root, tmp_path / "plain", settings)
    with pytest.raises(ConfigurationError, match=r"it was started without --init\): leave --init out"):
        train(root, tmp_path / "plain", settings, init=str(moved))


def under_earlier_names(run: Path) -> None:
    """Rewrites `run` as a version wrote it that called std deviation."""
    file = checkpoints.find(run)
    plain = torch.load(file, weights_only=True)
    assert "towers" in plain  # as it has always been called in files
    for values in (plain["input"], plain["configuration"]["input"]):
        values["deviation"] = values.pop("std")
    with file.open("w+b") as stream:
        torch.save(plain, stream)
        checkpoints._seal(stream)
    (run / "configuration.json").write_text(json.dumps(plain["configuration"]))


def test_a_run_that_was_written_under_earlier_names_loads_and_goes_on(root, tmp_path):
    given = small_network.checkpoint(tmp_path / "given.pt", streams=("rgb",), std=(0.4, 0.5, 0.6), **SIZE)
    short, longer = (changed(tiny(steps=n), schedule="constant") for n in (1, 2))
    whole = train(root, tmp_path / "whole", longer, init=str(given))
    begun = train(root, tmp_path / "run", short, init=str(given))
    under_earlier_names(tmp_path / "run")
    assert checkpoints.load(tmp_path / "run").input == begun.input
    other = replace(longer, input=replace(longer.input, std=(0.1, 0.1, 0.1)), named=("std",))
    with pytest.raises(ConfigurationError, match=r"input\.std is .0\.1, .*, the run's is .0\.4, 0\.5, 0\.6"):
        train(root, tmp_path / "run", other, init=str(given))
    resumed = train(root, tmp_path / "run", longer, init=str(given))
    assert same_bits(resumed, whole)
    assert resumed.configuration == whole.configuration
    (tmp_path / "mine.toml").write_text("[input]\ndeviation = [0.4, 0.5, 0.6]\n")
    assert resolve(str(tmp_path / "mine.toml"), {}).input.std == (0.4, 0.5, 0.6)


def as_before(run: Path) -> None:
    """Makes `run` one of a version that noted no --init and had no such setting."""
    file = checkpoints.find(run)
    newest = checkpoints.load(file)
    sections = {name: dict(values) for name, values in newest.configuration.items() if name != "init"}
    del sections["input"]["colour_jitter"]
    checkpoints.write(file, replace(newest, configuration=sections))
    (run / "configuration.json").write_text(json.dumps(sections))


def test_a_run_of_before_goes_on_by_its_own_command_again_and_again(root, tmp_path, monkeypatch):
    """The network's configuration has gained a setting since, which would be another training."""
    given = small_network.checkpoint(tmp_path / "given.pt", streams=("rgb",), mean=(0.4, 0.5, 0.6), **SIZE)
    begun, plain = {"init": str(given)}, {}
    for name, init in (("begun", begun), ("plain", plain)):
        fed = train(root, tmp_path / name, changed(tiny(steps=1), schedule="constant"), **init).input
        as_before(tmp_path / name)
        with monkeypatch.context() as later:
            default = (configurations.FOLDER / "quick.toml").read_text()
            (tmp_path / "quick.toml").write_text(default.replace("[0, 0, 0, 0]", "[0.2, 0.2, 0.2, 0.05]"))
            later.setattr(configurations, "FOLDER", tmp_path)
            for steps in (2, 3):
                longer = changed(tiny(steps=steps), schedule="constant")
                assert longer.input.colour_jitter == (0.2, 0.2, 0.2, 0.05)
                assert train(root, tmp_path / name, longer, **init).input == fed


def test_a_loss_that_is_no_number_stops_the_run_in_a_sentence(root, tmp_path):
    settings = changed(tiny(steps=20, network={"bn_frozen": True}), lr=1e18, schedule="constant")
    with pytest.raises(training.TrainingError, match="lower --lr"):
        train(root, tmp_path / "run", settings)


def test_a_data_set_that_is_too_small_or_has_no_flow_is_refused(tmp_path):
    small = tiny_dataset.publish(tmp_path / "small", {"train": 3}, flow=False, frames=(30,))
    with pytest.raises(ConfigurationError, match="smaller batch size"):
        train(small, tmp_path / "run", tiny())
    with pytest.raises(RowsError, match="--stream rgb"):
        train(small, tmp_path / "other", tiny("both"))


def test_evaluations_within_training_leave_a_line_each_and_training_as_it_was(root, tmp_path, undisturbed):
    run = tmp_path / "run"
    evaluated = train(root, run, tiny(steps=90, evaluate_every=20))
    assert same_bits(evaluated, undisturbed[1])
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [(r["step"], r["epoch"], r["clips"]) for r in records] == [(60, 19, 6)]
    assert 0 <= records[0]["rgb"]["top1"] <= records[0]["rgb"]["top5"] <= 1
