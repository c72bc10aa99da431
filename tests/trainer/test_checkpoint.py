"""Promises of checkpoints: they stand alone, are never half there, and run nothing when read."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import small_network
import tiny_dataset
import torch

from pipeline import dataset
from pipeline.dataset import schema
from pipeline.storage import open_storage
from pipeline.storage.tables import write_table
from trainer import checkpoint as checkpoints
from trainer import stream_models
from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.data.batches import Input
from trainer.data.rows import open_rows


def made(steps: int = 3, stream: str = "both") -> Checkpoint:
    streams = ("rgb", "flow") if stream == "both" else (stream,)
    built = stream_models.build("small", {"dropout": 0.2}, streams, classes=3)
    return Checkpoint(
        network="small",
        options={"dropout": 0.2},
        input=Input(stream=stream, frames=9, short_side=40, crop=32, flip=False, flow_bound=12.5),
        classes=("a", "b", "c"),
        generations=(("00000",), ("00000", "00001")),
        configuration={"run": {"seed": 1}},
        state={"seed": 1, "epoch": 2, "step": 0},
        steps=steps,
        weights={s: t.network.state_dict() for s, t in built.items()},
    )


def test_a_checkpoint_stands_alone(tmp_path):
    before = made()
    after = checkpoints.load(checkpoints.save(tmp_path, before))
    assert replace(after, weights={}) == replace(before, weights={})
    pictures = (torch.randn(2, 3, 9, 32, 32), torch.randn(2, 2, 9, 32, 32))
    for stream, model in stream_models.restore(after).items():
        original = stream_models.restore(before, stream)[stream]
        assert torch.equal(model(pictures), original(pictures))
        assert not model.training


def test_plain_torch_reads_a_checkpoint_without_running_code(tmp_path):
    plain = torch.load(checkpoints.save(tmp_path, made()), weights_only=True)
    assert plain["network"] == "small"
    assert plain["input"]["flow_bound"] == 12.5
    assert plain["generations"] == [["00000"], ["00000", "00001"]]


def test_the_newest_checkpoint_and_the_one_before_it_are_kept(tmp_path):
    for steps in (1, 2, 10):
        checkpoints.save(tmp_path, made(steps, "rgb"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-000000002.pt",
        "checkpoint-000000010.pt",
    ]
    assert checkpoints.load(tmp_path).steps == 10


def test_a_newest_that_is_cut_short_gives_way_to_the_one_before_it(tmp_path):
    for steps in (1, 2):
        path = checkpoints.save(tmp_path, made(steps, "rgb"))
    path.write_bytes(path.read_bytes()[:5000])
    found, damage = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.steps == 1
    assert damage is not None
    assert damage.startswith(f"{path} is cut short")
    assert damage.endswith("going on from checkpoint-000000001.pt")
    assert "\n" not in damage


def test_a_damaged_newest_is_set_aside_and_never_kept_for_the_one_before(tmp_path):
    for steps in (1, 2):
        path = checkpoints.save(tmp_path, made(steps, "rgb"))
    damaged = path.read_bytes()[:5000]
    path.write_bytes(damaged)
    checkpoints.set_aside(tmp_path, 1)
    checkpoints.save(tmp_path, made(2, "rgb"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-000000001.pt",
        "checkpoint-000000002.pt",
        "checkpoint-000000002.pt.damaged",
    ]
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged
    assert checkpoints.load(tmp_path).steps == 2


def test_a_newest_that_lacks_a_part_gives_way_to_the_one_before_it(tmp_path):
    for steps in (1, 2):
        path = checkpoints.save(tmp_path, made(steps, "rgb"))
    plain = torch.load(path, weights_only=True)
    del plain["optimiser"]
    torch.save(plain, path)
    sealed(path)
    found, damage = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.steps == 1
    assert "no checkpoint of this trainer" in str(damage)


def test_only_files_that_killed_writers_left_are_swept(tmp_path):
    left = [".best.pt.4711", ".checkpoint-000000002.pt.node-1.tmp", ".best.pt.77-0a1b2c3d.tmp"]
    others = [".checkpoint-000000002.pt.swp", ".best.pt.bak", ".hidden", "checkpoint-000000001.pt"]
    for name in (*left, *others):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".best.pt.d").mkdir()
    checkpoints.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, ".best.pt.d"])


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def sealed(path: Path) -> None:
    """Gives a zip file the comment that our checkpoints end with: the sha256 of all before it."""
    data = path.read_bytes()
    assert data[-22:-18] == b"PK\x05\x06"
    data = data[:-2] + (71).to_bytes(2, "little")
    path.write_bytes(data + b"sha256:" + hashlib.sha256(data).hexdigest().encode())


KINDS = [
    "cut",
    "cut at its end",
    "empty",
    "text",
    "bomb",
    "unsealed bomb",
    "pickle bomb",
    "foreign",
    "future",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_is_refused_in_a_sentence_and_runs_nothing(tmp_path, monkeypatch, kind):
    path = tmp_path / "checkpoint-000000001.pt"
    exploded = tmp_path / "exploded"
    monkeypatch.setenv("BOMB", str(exploded))
    if kind.startswith("cut"):
        path = checkpoints.save(tmp_path, made(stream="rgb"))
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[: size // 2 if kind == "cut" else size - 1])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint\n")
    elif kind == "pickle bomb":
        data = pickle.dumps(Bomb())
        path.write_bytes(data + b"sha256:" + hashlib.sha256(data).hexdigest().encode())
    else:
        bomb = {"format": 2, "towers": Bomb()}
        torch.save({"foreign": {"state_dict": {}}, "future": {"format": 99}}.get(kind, bomb), path)
        if kind != "unsealed bomb":
            sealed(path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not exploded.exists()
    if kind != "future":
        with pytest.raises(CheckpointError):
            checkpoints.newest(tmp_path)


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path = checkpoints.save(tmp_path, made(stream="rgb"))
    data = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(data), 40).tolist()
    for place in [0, *places, *range(len(data) - 95, len(data), 4), len(data) - 1]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"take another") as caught:
            checkpoints.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(data)
    assert checkpoints.load(path).steps == 3


def test_the_fingerprint_is_of_the_clips_and_not_of_where_they_lie(tmp_path):
    here = tiny_dataset.publish(tmp_path / "here", {"train": 3}, flow=False, frames=(12,))
    first = open_rows([str(here)], "train", ("rgb",)).fingerprint
    there = shutil.move(here, tmp_path / "there")
    assert open_rows([str(there)], "train", ("rgb",)).fingerprint == first
    index = schema.index_path("train", "00000")
    taken_down = dataset.open(there).index("train").to_pylist()
    taken_down[1]["removed"] = True
    write_table(open_storage(there), index, pa.Table.from_pylist(taken_down, schema=schema.INDEX_SCHEMA))
    rows = open_rows([str(there)], "train", ("rgb",))
    assert rows.removed.any()
    assert rows.fingerprint == first
    for number, other in enumerate(({"frames": (13,)}, {"classes": 3}, {"samples": {"train": 4}})):
        given = {"samples": {"train": 3}, "flow": False, "frames": (12,), **other}
        root = tiny_dataset.publish(tmp_path / str(number), **given)
        assert open_rows([str(root)], "train", ("rgb",)).fingerprint != first


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, made(1, "rgb"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path, made(2, "rgb"))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000000001.pt"]


@dataclass(frozen=True)
class NewerInput(Input):
    shutter: float = 0.5


def test_a_checkpoint_of_a_newer_version_is_refused_in_a_sentence(tmp_path):
    path = small_network.checkpoint(tmp_path / "c.pt")
    newer = replace(checkpoints.load(path), input=NewerInput(**vars(checkpoints.load(path).input)))
    checkpoints.write(path, newer)
    with pytest.raises(CheckpointError, match="shutter, which this version does not know: upgrade quovadis"):
        checkpoints.load(path)


def test_an_absent_file_and_an_empty_folder_each_say_what_to_name(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match="name"):
            checkpoints.load(path)
    assert checkpoints.newest(Path(tmp_path)) == (None, None)


def test_a_stream_that_was_not_trained_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="trained on rgb, not on flow"):
        stream_models.restore(made(stream="rgb"), "flow")


@pytest.mark.parametrize(
    "other",
    [
        {"network": "i4d"},
        {"network": "i3d"},
        {"options": {"widths": 3}},
        {"options": ["dropout"]},
        {"classes": ("a", "b")},
        {"weights": {"rgb": [1, 2], "flow": None}},
    ],
)
def test_weights_that_do_not_go_with_their_network_are_refused_in_a_sentence(other):
    with pytest.raises(CheckpointError, match="do not go together") as caught:
        stream_models.restore(replace(made(), **other))
    assert "\n" not in str(caught.value)


def two_stream(classes: tuple[str, ...]) -> tuple[dict[str, stream_models.StreamModel], Checkpoint]:
    built = stream_models.build("two-stream", {}, ("both",), len(classes), seed=len(classes[0]))
    state = {"both": built["both"].network.state_dict()}
    entry = replace(made(stream="rgb"), network="two-stream", options={}, classes=classes, weights=state)
    return built, entry


def test_init_leaves_every_last_layer_fresh_where_the_classes_are_others():
    """As many classes, so that no shape tells; and two last layers."""
    _, given = two_stream(("a", "b"))
    built, _ = two_stream(("one", "two"))
    heads = [f"logits_{stream}.{kind}" for stream in ("rgb", "flow") for kind in ("bias", "weight")]
    assert sorted(stream_models.initialise(built, given, ("one", "two"))) == sorted(heads)
    own = built["both"].network.state_dict()
    same = {name for name, value in given.weights["both"].items() if torch.equal(own[name], value)}
    assert same >= own.keys() - set(heads)
    assert not same & {"logits_rgb.weight", "logits_flow.weight"}


def test_init_from_another_width_is_refused_in_a_sentence():
    built = stream_models.build("r2d-18", {"frames": 4}, ("rgb",), 3)
    wide = stream_models.build("r2d-18", {}, ("rgb",), 3)["rgb"].network.state_dict()
    given = replace(made(stream="rgb"), network="r2d-18", options={}, weights={"rgb": wide})
    for classes in (("a", "b", "c"), ("d", "e", "f")):
        with pytest.raises(CheckpointError, match=r"--init: .*stem"):
            stream_models.initialise(built, given, classes)


def test_rgb_is_fed_with_the_mean_and_deviation_of_the_checkpoint():
    given = made()
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    other = replace(given, input=replace(given.input, mean=mean, std=std))
    pixels = torch.rand(2, 3, 9, 32, 32)
    pictures = (2 * pixels - 1, torch.randn(2, 2, 9, 32, 32))
    restored = stream_models.restore(other)
    normalised = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(restored["rgb"](pictures), restored["rgb"].network(normalised))
    assert torch.equal(restored["flow"](pictures), restored["flow"].network(pictures[1]))
