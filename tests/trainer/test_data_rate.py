"""Promises on rates: a network sees as many frames a second as it was made for, whatever the data set has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_network
import tiny_dataset
from small_runs import make_videos

from trainer import checkpoint as checkpoints
from trainer.__main__ import main
from trainer.data.batches import Input
from trainer.data.loader import EvaluationBatches, TrainBatches
from trainer.data.rows import RowsError, input_for, open_rows

VIEW = {"frames": 9, "short_side": 64, "crop": 32, "flip": False}


def grey(clip: int, frame: int) -> np.ndarray:
    """A picture whose brightness is its number."""
    return np.full((64, 96, 3), 40 + 4 * frame, np.uint8)


@pytest.fixture(scope="module")
def fast(tmp_path_factory) -> Path:
    """50 frames a second."""
    folder = tmp_path_factory.mktemp("fast")
    return tiny_dataset.publish(folder / "set", {"train": 4, "val": 2}, picture=grey, rate=50)


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """15 frames a second, short side 64."""
    folder = tmp_path_factory.mktemp("slow")
    return tiny_dataset.publish(folder / "set", {"train": 4, "val": 4}, rate=15, short_side=64)


def numbers(pictures) -> list[int]:
    """The numbers of the frames of `grey` in uint8 (3, T, H, W)."""
    return [round((float(frame.float().mean()) - 40) / 4) for frame in pictures.transpose(0, 1)]


@pytest.mark.parametrize(("stride", "step"), [(1, 2), (3, 6)])
def test_every_second_frame_of_twice_the_rate_is_seen(fast, stride, step):
    input = Input(stream="rgb", stride=stride, **VIEW)
    rows = open_rows([str(fast)], "val", ["rgb"])
    (whole, *_) = EvaluationBatches(rows, input)
    assert numbers(whole.rgb[0]) == list(range(0, 40, step))
    (trained, *_) = TrainBatches(open_rows([str(fast)], "train", ["rgb"]), input, batch_size=2, steps=1)
    for clip in trained.rgb:
        first, *others = numbers(clip)
        assert others == [(first + step * i) % 40 for i in range(1, 9)]


def test_a_rate_that_frames_cannot_be_left_out_of_is_refused_with_a_sentence(slow, fast):
    sentence = "the data set has 15 frames a second and the network wants 25: prepare one with --rate 25, or"
    with pytest.raises(RowsError, match=sentence):
        EvaluationBatches(open_rows([str(slow)], "val", ["rgb"]), Input(stream="rgb", **VIEW))
    with pytest.raises(RowsError, match="has 50 frames a second"):  # its flow is of half the time
        EvaluationBatches(open_rows([str(fast)], "val", ["flow"]), Input(stream="flow", **VIEW))
    sparse = Input(stream="rgb", stride=5, **VIEW)  # five frames a second
    assert input_for(open_rows([str(slow)], "val", ["rgb"]), sparse).stride == 3


def test_a_network_trained_for_another_rate_keeps_it_and_the_size_in_every_command(slow, tmp_path, capsys):
    run, config = tmp_path / "run", tmp_path / "slow.toml"
    train = ["train", "--data", str(slow), "--network", "small", "--stream", "rgb", "--output", str(run)]
    train += ["--frames", "9", "--short-side", "64", "--crop", "32", "--batch-size", "2", "--steps", "1"]
    train += ["--workers", "0"]
    assert main(train) == 2
    assert "15 frames a second and the network wants 25" in capsys.readouterr().err
    config.write_text("[input]\nrate = 15\n")
    assert main([*train, "--config", str(config)]) == 0
    fed = checkpoints.load(run).input
    assert (fed.rate, fed.clip_side) == (15, 64)
    assert main(["evaluate", "--data", str(slow), "--rgb", str(run), "--workers", "0"]) == 0
    video = make_videos(tmp_path, ["walk"], seconds=2) / "walk.mp4"
    call = ["features", str(video), str(slow), "--rgb", str(run), "--output", str(tmp_path / "features")]
    assert main([*call, "--window", "10", "--stride", "5"]) == 0
    times = np.load(tmp_path / "features" / "walk.times.npy")
    assert times == pytest.approx([(5 + 5 * i) / 15 for i in range(5)])  # 30 frames
    capsys.readouterr()
    assert main(["predict", str(video), "--rgb", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["seconds"] == 2


def test_features_of_a_data_set_count_frames_at_the_rate_of_the_network(fast, slow, tmp_path, capsys):
    known = small_network.checkpoint(tmp_path / "c.pt", streams=("rgb",))
    call = ["--rgb", str(known), "--window", "9", "--stride", "1", "--output", str(tmp_path / "out")]
    assert main(["features", str(fast), *call]) == 0
    (found,) = (tmp_path / "out").glob("val/val0-000.npy")
    assert len(np.load(found)) == 20 - 9 + 1
    assert main(["features", str(slow), *call]) == 2
    assert "has 15 frames a second and the network wants 25" in capsys.readouterr().err
