"""Promises of the networks: sizes, shapes, padding, and that the layers do what the published ones do."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from trainer import networks
from trainer.networks.layers import BatchNorm3d, Conv3dSame, Dropout, MaxPool3dSame, seed_dropout, uniform
from trainer.networks.residual import convolution


@functools.cache
def on_meta(**options) -> torch.nn.Module:
    with torch.device("meta"):
        return networks.build("i3d", **options).eval()


@pytest.mark.parametrize(
    ("channels", "scale", "parameters"),
    [(3, False, 12_689_984), (2, False, 12_668_032), (3, True, 12_697_264), (2, True, 12_675_312)],
)
def test_i3d_has_exactly_the_published_parameters(channels, scale, parameters):
    network = on_meta(in_channels=channels, bn_scale=scale)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_i3d_has_as_many_elements_as_deepminds_checkpoints():
    for channels, elements in ((3, 12_704_544), (2, 12_682_592)):
        state = on_meta(in_channels=channels).state_dict()
        assert sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked")) == elements


def test_i3d_costs_the_published_multiply_adds():
    rows = {row.stream: row for row in networks.describe("i3d")}
    assert rows["rgb"].gmacs == pytest.approx(111.15, rel=0.01)
    assert rows["flow"].gmacs == pytest.approx(102.34, rel=0.01)
    assert rows["both"].parameters == 25_358_016


@pytest.mark.parametrize(
    ("frames", "steps"), [(9, 1), (16, 1), (17, 2), (63, 7), (64, 7), (79, 9), (250, 31)]
)
@pytest.mark.parametrize("crop", [224, 64])
def test_i3d_gives_the_published_steps_for_any_length_and_crop(frames, steps, crop):
    network = on_meta()
    clip = torch.empty(2, 3, frames, crop, crop, device="meta")
    assert network.logits_over_time(clip).shape == (2, steps, 400)
    assert network(clip).shape == (2, 400)
    assert network.features(clip).shape == (2, 1024)


def test_the_last_pool_leaves_one_place_at_224_and_four_at_256():
    for crop, side in ((224, 1), (256, 2), (112, 1), (64, 1)):
        assert on_meta().pooled(torch.empty(1, 3, 64, crop, crop, device="meta")).shape[3:] == (side, side)


def test_less_than_nine_frames_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="at least 9 frames, not 8"):
        on_meta()(torch.empty(1, 3, 8, 64, 64, device="meta"))


def test_an_unknown_network_is_refused_with_the_names_there_are():
    with pytest.raises(KeyError, match="i3d"):
        networks.build("i4d")


def tensorflow_same(x: np.ndarray, kernel, stride, outside: float) -> np.ndarray:
    """(..., T, H, W) padded as tensorflow/core/framework/common_shape_fns.cc says, dimension by dimension."""
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=x.ndim - 3):
        n = x.shape[axis]
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (total // 2, total - total // 2)
        x = np.pad(x, widths, constant_values=outside)
    return x


def windows(x: np.ndarray, kernel, stride) -> np.ndarray:
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(-3, -2, -1))
    return view[..., :: stride[0], :: stride[1], :: stride[2], :, :, :]


LAYOUTS = [((7, 7, 7), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2))]


@pytest.mark.parametrize(("kernel", "stride"), [*LAYOUTS, ((1, 1, 1), (1, 1, 1))])
@pytest.mark.parametrize("size", [(9, 14, 15), (8, 13, 16), (10, 16, 11)])
def test_a_convolution_equals_tensorflows_same_computed_directly(kernel, stride, size):
    torch.manual_seed(0)
    layer, x = Conv3dSame(2, 3, kernel, stride).double(), torch.randn(1, 2, *size, dtype=torch.float64)
    padded = tensorflow_same(x.numpy(), kernel, stride, 0.0)
    want = np.einsum("nithwabc,oiabc->nothw", windows(padded, kernel, stride), layer.weight.detach().numpy())
    assert want.shape[2:] == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    np.testing.assert_allclose(layer(x).detach().numpy(), want, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [*LAYOUTS, ((2, 2, 2), (2, 2, 2))])
@pytest.mark.parametrize("size", [(9, 14, 15), (8, 13, 16)])
def test_a_pool_equals_tensorflows_same_computed_directly(kernel, stride, size):
    x = -torch.rand(1, 2, *size) - 1  # all negative: a pool that saw padding of zeros would show it
    want = windows(tensorflow_same(x.numpy(), kernel, stride, -np.inf), kernel, stride).max(axis=(-3, -2, -1))
    np.testing.assert_array_equal(MaxPool3dSame(kernel, stride)(x).numpy(), want)


def test_normalisation_without_a_scale_is_torchs_with_a_scale_of_one():
    torch.manual_seed(0)
    ours, theirs = BatchNorm3d(4, 1e-3, 0.1, scale=False), torch.nn.BatchNorm3d(4, eps=1e-3, momentum=0.1)
    assert [name for name, _ in ours.named_parameters()] == ["bias"]
    for _ in range(2):
        x = torch.randn(3, 4, 2, 5, 5)
        assert torch.equal(ours(x), theirs(x))
    x = torch.randn(3, 4, 2, 5, 5)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    missing, unexpected = ours.load_state_dict(ours.state_dict())
    assert not missing
    assert not unexpected


def test_bn_momentum_is_a_setting_and_published_by_default():
    def momenta(network):
        return {m.momentum for m in network.modules() if isinstance(m, BatchNorm3d)}

    assert momenta(on_meta()) == {0.001}
    assert momenta(on_meta(bn_momentum=0.1)) == {0.1}


def test_a_dropout_mask_depends_on_the_sample_and_not_on_the_batch_it_is_in():
    layer, x = Dropout(0.5), torch.ones(4, 64, 2, 1, 1)
    seeds = torch.tensor([11, -12, 1 << 60, 14])
    seed_dropout(layer, seeds)
    together = layer(x)
    alone = []
    for i in range(4):
        seed_dropout(layer, seeds[i : i + 1])
        alone.append(layer(x[:1]))
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(row.flatten().tolist()) for row in together}) == 4
    assert set(together.unique().tolist()) == {0.0, 2.0}


def test_dropouts_numbers_are_uniform_and_uncorrelated_between_seeds():
    u = uniform(torch.arange(200), 5000)
    counts = torch.histc(u, 16, 0, 1) / u.numel()
    assert (counts - 1 / 16).abs().max() < 1e-3
    correlation = torch.corrcoef(u) - torch.eye(200, dtype=u.dtype)
    assert correlation.abs().max() < 0.09  # 6 deviations at 5,000 numbers
    assert torch.corrcoef(torch.stack([u[0, :-1], u[0, 1:]]))[0, 1].abs() < 0.06


def test_a_state_dict_makes_the_same_network_again():
    torch.manual_seed(0)
    one = networks.build("i3d", 5).eval()
    two = networks.build("i3d", 5).eval()
    two.load_state_dict(one.state_dict())
    clip = torch.randn(1, 3, 9, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(clip), two(clip))
        assert torch.allclose(one(clip), one.logits_over_time(clip).mean(1))


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 1, 1)])
@pytest.mark.parametrize("make", [Conv3dSame, convolution])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_bfloat16_gradients_are_true_for_clips_of_few_frames(make, kernel, frames):
    """torch's own are of memory never written where the kernel is longer than the clip."""
    torch.manual_seed(0)
    layer = make(48, 128, kernel).to(memory_format=torch.channels_last_3d)
    x = torch.randn(4, 48, frames, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    layer(x).square().mean().backward()
    want = layer.weight.grad.clone()
    for _ in range(5):
        junk = [torch.full((n,), 1e3) for n in (10**6, 10**5, 10**4)]
        del junk  # what a layer finds in memory that it does not write
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().square().mean().backward()
        assert (layer.weight.grad - want).norm() < 0.02 * want.norm()
