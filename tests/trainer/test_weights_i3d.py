"""Promises of I3D with others' weights: the published graph's logits, from whoever's file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import published_i3d
import pytest
import tensorflow_bundle
import torch

from pipeline.flow import tvl1_clip
from trainer import networks, weights
from trainer.weights import Description, WeightsError
from trainer.weights.formats import deepmind, hassony2, piergiaj

CHANNELS = {"rgb": 3, "flow": 2}
PREFIX = {"rgb": "RGB/inception_i3d/", "flow": "Flow/inception_i3d/"}


def footage(folder: Path, frames: int) -> np.ndarray:
    """uint8 (frames, 224, 224, 3) of the middle of a real clip."""
    with av.open(str(folder / "test_340x256_30fps.mp4")) as container:
        pictures = [
            f.to_ndarray(format="rgb24")
            for _, f in zip(range(frames), container.decode(video=0), strict=False)
        ]
    return np.stack(pictures)[:, 16:240, 58:282]


def clip_of(stream: str, folder: Path, frames: int) -> np.ndarray:
    """float32 (frames, 224, 224, C) as the networks are fed: RGB, or TV-L1 flow of up to 20 pixels."""
    if stream == "rgb":
        return footage(folder, frames).astype(np.float32) / 127.5 - 1
    flow = np.asarray(tvl1_clip(footage(folder, frames + 1)))
    return (np.clip(flow, -20, 20) / 20).astype(np.float32)


def write(path: Path, format: str, stream: str, given: Mapping[str, np.ndarray]) -> Path:
    """The weights in `given` in a file as it is published."""
    path.mkdir(exist_ok=True)
    if format == "deepmind":
        named = {PREFIX[stream] + name: value for name, value in given.items()}
        tensorflow_bundle.write(path / "model.ckpt", named, shards=3)
        return path / "model.ckpt"
    torch.save(getattr(published_i3d, format)(given), path / f"{format}.pt")
    return path / f"{format}.pt"


def check_logits(state: dict, description: Description, clip: np.ndarray, wanted: np.ndarray) -> None:
    """Logits to 1e-4 of their scale, float32."""
    network = networks.build(
        description.network,
        description.classes,
        in_channels=networks.CHANNELS[description.stream],
        **description.options,
    )
    network.load_state_dict(state)
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(clip).permute(3, 0, 1, 2)[None])[0].numpy()
    assert np.abs(wanted).max() > 1
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("stream", "frames"), [("rgb", 10), pytest.param("flow", 11, marks=pytest.mark.slow)]
)
def test_logits_are_the_published_graphs_whoever_wrote_the_file(real_clips, tmp_path, stream, frames):
    given = published_i3d.variables(CHANNELS[stream], 400, seed=frames)
    clip = clip_of(stream, real_clips, frames)
    with torch.no_grad():
        wanted = published_i3d.logits(given, clip)
    first: dict = {}
    for format in ("deepmind", "piergiaj", "hassony2"):
        state, description = weights.load(write(tmp_path, format, stream, given))
        assert description == Description(format, "i3d", {}, stream, 400)
        if not first:
            check_logits(state, description, clip, wanted)
            first = state
        assert state.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "frames"), [("rgb", 64), ("flow", 64), ("rgb", 79)])
def test_logits_are_the_published_graphs_for_a_whole_clip(real_clips, tmp_path, stream, frames):
    given = published_i3d.variables(CHANNELS[stream], 400, seed=frames)
    clip = clip_of(stream, real_clips, frames)
    with torch.no_grad():
        wanted = published_i3d.logits(given, clip)
    check_logits(*weights.load(write(tmp_path, "deepmind", stream, given)), clip, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["deepmind", "piergiaj", "hassony2"])
def test_logits_are_the_published_graphs_with_scales(real_clips, tmp_path, format):
    given = published_i3d.variables(3, 7, scaled=True)
    clip = clip_of("rgb", real_clips, 9)
    with torch.no_grad():
        wanted = published_i3d.logits(given, clip)
    check_logits(*weights.load(write(tmp_path, format, "rgb", given)), clip, wanted)


@pytest.mark.parametrize("format", ["deepmind", "piergiaj", "hassony2"])
def test_scales_that_a_file_has_are_kept(tmp_path, format):
    given = published_i3d.variables(3, 7, scaled=True)
    state, description = weights.load(write(tmp_path, format, "rgb", given))
    assert description.options == {"bn_scale": True}
    gamma = given["Mixed_4d/Branch_1/Conv3d_0b_3x3/batch_norm/gamma"]
    assert np.array_equal(state["mixed_4d.branch_1.1.norm.weight"].numpy(), gamma)


def test_the_checkpoint_of_kinetics_600_is_read_without_its_optimisers_slots(tmp_path):
    given = published_i3d.variables(3, 600)
    published = {}
    for name, value in given.items():
        published[name] = value.reshape(1, 1, 1, 1, -1) if "batch_norm" in name else value
        if not name.endswith(("moving_mean", "moving_variance")):
            published[f"{name}/Momentum"] = np.full_like(published[name], 7)
    assert len(published) == 346
    tensorflow_bundle.write(tmp_path / "model.ckpt", published)
    state, description = weights.load(tmp_path)
    assert (description.stream, description.classes) == ("rgb", 600)
    assert np.array_equal(
        state["logits.weight"][5, :, 0, 0, 0], given["Logits/Conv3d_0c_1x1/conv_3d/w"][0, 0, 0, :, 5]
    )
    assert not any((value == 7).any() for value in state.values())


def test_numbers_stand_where_the_published_layout_has_them(tmp_path):
    given = dict(published_i3d.variables(3, 400, seed=10))
    for name, place, value in (
        ("Conv3d_1a_7x7/conv_3d/w", (1, 2, 3, 0, 5), 1234),
        ("Mixed_5b/Branch_2/Conv3d_0a_3x3/batch_norm/moving_variance", 9, 4321),
    ):
        given[name] = given[name].copy()
        given[name][place] = value
    state, _ = weights.load(write(tmp_path, "deepmind", "rgb", given))
    assert state["conv_1a.conv.weight"][5, 0, 1, 2, 3] == 1234
    assert state["mixed_5b.branch_2.1.norm.running_var"][9] == 4321
    assert sum(v.numel() for n, v in state.items() if not n.endswith("tracked")) == 12_704_544


def refused(path: Path, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


LAST = "Mixed_4e/Branch_1/Conv3d_0b_3x3/conv_3d/w"


@pytest.mark.parametrize("format", ["deepmind", "piergiaj", "hassony2"])
def test_a_missing_weight_is_named(tmp_path, format):
    given = published_i3d.variables(3, 5)
    path = write(tmp_path, format, "rgb", {name: value for name, value in given.items() if name != LAST})
    theirs = {"deepmind": LAST, "piergiaj": "Mixed_4e.b1b.", "hassony2": "mixed_4e.branch_1.1."}[format]
    said = refused(path)
    assert f"it has no {theirs}" in said
    assert f"(1 of {230 if format == 'deepmind' else 287} weights are missing)" in said


@pytest.mark.parametrize("name", ["Mixed_4e/Branch_1/Conv3d_0b_3x3/conv_3d/b", f"{LAST}/Adam", "Mixed_9z/w"])
def test_a_weight_that_stands_for_nothing_is_named(name):
    given = published_i3d.variables(3, 5)
    state = {PREFIX["rgb"] + n: torch.from_numpy(v) for n, v in given.items()}
    with pytest.raises(WeightsError, match=f"it has {name}, which stands for no weight"):
        deepmind.convert(state | {PREFIX["rgb"] + name: torch.zeros(3)})
    for module, convert in ((piergiaj, published_i3d.piergiaj), (hassony2, published_i3d.hassony2)):
        with pytest.raises(WeightsError, match="which stands for no weight"):
            module.convert(convert(given) | {"Mixed_4e.b1c.conv3d.weight": torch.zeros(3)})


def test_weights_of_another_shape_and_what_is_no_number_are_named(tmp_path):
    given = published_i3d.variables(3, 5)
    wide = np.zeros((1, 1, 1, 192, 65), np.float32)
    path = write(tmp_path, "piergiaj", "rgb", {**given, "Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w": wide})
    assert "mixed_3b.branch_0.conv.weight is (65, 192, 1, 1, 1)" in refused(path)
    empty = np.full(64, np.nan, np.float32)
    path = write(tmp_path, "piergiaj", "rgb", {**given, "Conv3d_2b_1x1/batch_norm/beta": empty})
    assert "conv_2b.norm.bias holds what is no number" in refused(path)


def test_a_stream_that_is_not_its_prefixs_is_refused(tmp_path):
    path = write(tmp_path, "deepmind", "flow", published_i3d.variables(3, 5))
    assert "another stream's channels" in refused(path)


def test_a_flipped_byte_in_a_checkpoint_is_one_sentence(tmp_path):
    path = write(tmp_path, "deepmind", "rgb", published_i3d.variables(3, 5))
    shard = tmp_path / "model.ckpt.data-00001-of-00003"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 32
    shard.write_bytes(data)
    said = refused(path, format="deepmind")
    assert "is damaged in RGB/inception_i3d/" in said
    assert "download it again" in said


def test_files_of_old_torch_of_data_parallel_and_with_counters_are_read(tmp_path):
    state = published_i3d.piergiaj(published_i3d.variables(2, 5))
    state |= {
        n.replace("running_mean", "num_batches_tracked"): torch.tensor(9)
        for n in state
        if "running_mean" in n
    }
    path = tmp_path / "flow.pt"
    torch.save({f"module.{n}": v for n, v in state.items()}, path, _use_new_zipfile_serialization=False)
    _, description = weights.load(path)
    assert description == Description("piergiaj", "i3d", {}, "flow", 5)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_what_holds_no_weights_is_refused_in_a_sentence_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert "damaged or holds more than weights" in refused(path)
    torch.save({"state_dict": {"a": Bomb()}}, path)
    assert "damaged or holds more than weights" in refused(path)
    torch.save({"epoch": 3}, path)
    assert "holds no state dict" in refused(path)
    torch.save({"layer.weight": torch.zeros(3)}, path)
    assert "of no known format (its first weight is layer.weight)" in refused(path)
    torch.save(published_i3d.piergiaj(published_i3d.variables(3, 5)), path)
    assert "it has no conv3d_1a_7x7.conv3d.weight" in refused(path, format="hassony2")
    assert "it is of i3d: leave out --network s3d" in refused(path, network="s3d")
    path.write_bytes(path.read_bytes()[:100_000])
    assert "damaged or holds more than weights" in refused(path)
    assert "name one of weights" in refused(tmp_path / "none.pt")
    assert not (tmp_path / "exploded").exists()


def test_tensors_without_plain_numbers_are_refused_in_a_sentence(tmp_path):
    state = published_i3d.piergiaj(published_i3d.variables(3, 5))
    path, name = tmp_path / "weights.pt", "Conv3d_1a_7x7.bn.running_var"
    for other in (state[name].to("meta"), state[name].to_sparse()):
        torch.save({**state, name: other}, path)
        assert f"{name} holds no plain numbers" in refused(path)
