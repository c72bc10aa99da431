"""Promises of the families: that each network, and each of its options, is what its paper says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_network import on_meta, parameters, reduced
from torch import nn

from trainer import networks
from trainer.networks.artnet import Smart
from trainer.networks.layers import BatchNorm3d, Conv3dSame, Norm
from trainer.networks.resnet_i3d import NonLocal
from trainer.networks.s3d import LAYERS
from trainer.networks.slowfast import Lateral
from trainer.networks.tsm import Shift
from trainer.stream_models import Objective, StreamModel
from trainer.weights.formats import torchvision as from_torchvision


@pytest.mark.parametrize("name", from_torchvision.NAMES)
def test_logits_are_torchvisions_for_the_same_weights(name):
    video = pytest.importorskip("torchvision.models.video", reason="torchvision is not installed")
    torch.manual_seed(0)
    theirs = getattr(video, from_torchvision.NAMES[name])(num_classes=11).eval()
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm3d)):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.weight, 0.5, 2)
    ours = networks.build(name, 11).eval()
    converted, description = from_torchvision.convert(theirs.state_dict())
    assert description.network == name
    ours.load_state_dict(converted)
    clip = torch.rand(1, 3, 16, 224, 224) if name == "s3d" else torch.rand(2, 3, 9, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-5, atol=1e-6)


PLACES = {
    1: ["layer3.5"],
    5: ["layer2.2", "layer2.5", "layer3.2", "layer3.5", "layer3.8"],
    10: [*(f"layer2.{n}" for n in (1, 3, 5, 7)), *(f"layer3.{n}" for n in (1, 3, 5, 7, 9, 11))],
}
"""Where non-local blocks stand among the modules of res3 and res4, by their number."""


@pytest.mark.parametrize(
    ("blocks", "kind"),
    [(1, "concatenation"), (5, "embedded-gaussian"), (5, "dot-product"), (10, "gaussian")],
)
def test_non_local_blocks_put_into_a_network_change_nothing(blocks, kind):
    torch.manual_seed(0)
    plain = networks.build("i3d-r50", 5).eval()
    for layer in plain.modules():
        if isinstance(layer, BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1)
    more = networks.build("i3d-r50", 5, nonlocal_blocks=blocks, nonlocal_kind=kind).eval()
    inside = [n for n, m in more.named_modules() if isinstance(m, NonLocal)]
    assert inside == PLACES[blocks]
    given = iter(plain.state_dict().values())
    mine = tuple(f"{name}." for name in inside)
    own = {k: v if k.startswith(mine) else next(given) for k, v in more.state_dict().items()}
    more.load_state_dict(own)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        want = plain(clip)
        assert torch.equal(more(clip), want)
        nn.init.constant_(more.get_submodule(inside[0]).norm.weight, 1)
        assert not torch.equal(more(clip), want)


@pytest.mark.parametrize("kind", NonLocal.KINDS)
def test_a_non_local_block_is_the_mean_that_the_paper_defines(kind):
    torch.manual_seed(0)
    block = NonLocal(Norm(), 6, kind, pool=None).double().eval()
    nn.init.ones_(block.norm.weight)
    block.norm.eps = 0.0
    x = torch.randn(1, 6, 2, 2, 3, dtype=torch.float64)
    places = x.flatten(2)[0].T  # (12, 6)

    def linear(conv: nn.Conv3d, values: torch.Tensor) -> torch.Tensor:
        return F.linear(values, conv.weight[:, :, 0, 0, 0], conv.bias)

    want = torch.zeros(12, 6, dtype=torch.float64)
    for i in range(12):
        weights = []
        for j in range(12):
            if kind == "gaussian":
                weights.append(torch.exp(places[i] @ places[j]))
                continue
            theta, phi = linear(block.theta, places[i]), linear(block.phi, places[j])
            if kind == "embedded-gaussian":
                weights.append(torch.exp(theta @ phi / 3**0.5))
            elif kind == "dot-product":
                weights.append(theta @ phi)
            else:
                weights.append(F.relu(linear(block.weigh, torch.cat([theta, phi])))[0])
        f = torch.stack(weights)
        f = f / (f.sum() if "gaussian" in kind else 12)
        want[i] = places[i] + linear(block.out, f @ linear(block.g, places))
    torch.testing.assert_close(block(x).flatten(2)[0].T, want)


@pytest.mark.parametrize("padding", ["zero", "circulant"])
def test_a_shift_brings_an_eighth_from_after_and_an_eighth_from_before(padding):
    x = torch.arange(1.0, 1 + 16 * 4).reshape(1, 16, 4, 1, 1)
    y = Shift(8, padding)(x)[0, :, :, 0, 0]
    given = x[0, :, :, 0, 0]
    ends = (given[:2, 0], given[2:4, 3]) if padding == "circulant" else (torch.zeros(2), torch.zeros(2))
    assert torch.equal(y[:2], torch.cat([given[:2, 1:], ends[0][:, None]], dim=1))
    assert torch.equal(y[2:4], torch.cat([ends[1][:, None], given[2:4, :3]], dim=1))
    assert torch.equal(y[4:], given[4:])


@pytest.mark.parametrize("placement", ["residual", "in-place"])
def test_a_shift_is_on_the_residual_branch_or_before_the_shortcut_too(placement):
    block = networks.build("tsm-r50", 5, placement=placement).eval().blocks()[1]
    nn.init.zeros_(block.conv3[1].weight)  # leaves the shortcut
    clip = torch.rand(1, 256, 3, 2, 2)
    assert torch.equal(block(clip), clip if placement == "residual" else Shift()(clip))


@pytest.mark.parametrize("placement", ["residual", "in-place"])
def test_online_frame_by_frame_is_the_clip_and_keeps_an_eighth_of_the_channels(placement):
    torch.manual_seed(0)
    network = networks.build("tsm-r50", 5, online=True, placement=placement).double().eval()
    clip, state, logits = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64), None, []
    with torch.no_grad():
        want = network.logits_over_time(clip)
        for frame in clip.unbind(dim=2):
            one, state = network.step(frame, state)
            logits.append(one)
    torch.testing.assert_close(torch.stack(logits, dim=1), want, rtol=1e-10, atol=1e-10)
    assert [kept.shape[1] for kept in state] == [8] + [32] * 3 + [64] * 4 + [128] * 6 + [256] * 2
    with pytest.raises(ValueError, match="online=True"):
        on_meta("tsm-r50").step(torch.empty(1, 3, 32, 32, device="meta"))


@pytest.mark.parametrize(
    ("lateral", "fusion"),
    [
        ("time-to-channel", "sum"),
        ("time-to-channel", "concatenation"),
        ("sampling", "concatenation"),
        ("convolution", "sum"),
        ("convolution", "concatenation"),
    ],
)
def test_slowfast_has_three_laterals_and_two_fusions(lateral, fusion):
    network = on_meta("slowfast-4x16-r50", num_classes=5, lateral=lateral, fusion=fusion)
    assert network(torch.empty(1, 3, 16, 64, 64, device="meta")).shape == (1, 5)
    with pytest.raises(ValueError, match="cannot be added"):
        on_meta("slowfast-8x8-r50", lateral="sampling", fusion="sum")


@pytest.mark.parametrize("fusion", ["sum", "concatenation"])
@pytest.mark.parametrize("kind", ["time-to-channel", "sampling", "convolution"])
def test_a_lateral_brings_the_frames_that_the_paper_says(kind, fusion):
    torch.manual_seed(0)
    slow, fast = torch.randn(1, 4, 2, 1, 1), torch.randn(1, 2 if kind != "sampling" else 4, 4, 1, 1)
    lateral = Lateral(Norm(), 4, fast.shape[1], 2, kind, fusion, 5).eval()
    before, after = fast[0, :, :, 0, 0], lateral(slow, fast)[0, :, :, 0, 0]
    if kind == "time-to-channel":
        brought = torch.stack([before[:, 0::2], before[:, 1::2]], dim=1).flatten(0, 1)
    elif kind == "sampling":
        brought = before[:, ::2]
    else:  # frames -2 to 2 and 0 to 4, zeros where there are none
        weight, padded = lateral.conv[0].weight[:, :, :, 0, 0], F.pad(before, (2, 2))
        sums = [torch.einsum("oit,it->o", weight, padded[:, at : at + 5]) for at in (0, 2)]
        brought = (torch.stack(sums, dim=1) / (1 + 1e-5) ** 0.5).relu()
    own = slow[0, :, :, 0, 0]
    want = own + brought if fusion == "sum" else torch.cat([own, brought])
    torch.testing.assert_close(after, want)


def test_the_slow_pathway_sees_frames_spread_from_first_to_last():
    network = on_meta("slowfast-8x8-r50")
    for frames in (4, 8, 32, 124):
        assert torch.equal(network.slow_frames(frames), torch.linspace(0, frames - 1, frames // 4).long())


def test_small_and_big_views_start_as_the_2d_network():
    torch.manual_seed(0)
    network = networks.build("smallbig-r50", 5).eval()
    frame = torch.randn(1, 3, 1, 48, 48)
    with torch.no_grad():
        assert torch.allclose(network(frame.expand(-1, -1, 4, -1, -1)), network(frame), atol=1e-5)
        clip = torch.cat([frame, torch.randn(1, 3, 1, 48, 48)], dim=2)
        alone = [network.features(f[:, :, None]) for f in clip.unbind(dim=2)]
        assert torch.allclose(network.features(clip), sum(alone) / 2, atol=1e-5)
        for name, parameter in network.named_parameters():
            if ".big." in name:
                nn.init.constant_(parameter, 0.5)
        alone = [network.features(f[:, :, None]) for f in clip.unbind(dim=2)]
        assert not torch.allclose(network.features(clip), sum(alone) / 2, atol=1e-3)


def test_two_streams_average_probabilities_and_pick_the_rgb_frame_that_flow_starts_from():
    torch.manual_seed(0)
    network = networks.build("two-stream", 5).eval()
    rgb, flow = torch.randn(1, 3, 20, 32, 32), torch.randn(1, 2, 20, 32, 32)
    with torch.no_grad():
        logits = network(rgb, flow)
        steps = network.steps(rgb, flow)
        assert torch.allclose(logits.exp(), steps.softmax(dim=2).mean(dim=1), atol=1e-6)
        assert torch.allclose(network(rgb[:, :, ::10], flow), logits, atol=1e-6)
        halves = [network.steps(rgb[:, :, i : i + 1], flow[:, :, i : i + 10]) for i in (0, 10)]
        assert torch.allclose(steps, sum(halves) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="20 frames of flow go with 2 of RGB, not with 3"):
        network(rgb[:, :, :3], flow)


@pytest.mark.parametrize("name", ["convnet-lstm", "two-stream", "mc2-18"])
def test_the_loss_is_on_all_steps_that_a_network_has(name):
    torch.manual_seed(0)
    network = networks.build(name, 3).eval()
    stream = "both" if name == "two-stream" else "rgb"
    pictures = reduced(name) if stream == "both" else (*reduced(name), None)
    target, weight = torch.tensor([2, -1]), torch.tensor([1.0, 0.0])
    with torch.no_grad():
        loss, correct = Objective(StreamModel(stream, network))(pictures, target, weight)
        logits = network(*reduced(name))
        steps = network.steps(*reduced(name)) if hasattr(network, "steps") else logits[:, None]
    want = sum(F.cross_entropy(step, torch.tensor(2)) for step in steps[0]) / len(steps[0])
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-5)
    assert correct == (logits[0].argmax() == 2)


@pytest.mark.parametrize("name", ["f-r2d-18", "tsn-bninception"])
def test_a_network_of_single_frames_does_not_see_their_order(name):
    torch.manual_seed(0)
    network = networks.build(name, 5).eval()
    clip = torch.randn(1, 3, 5, 48, 48).repeat_interleave(5, dim=2)
    with torch.no_grad():
        torch.testing.assert_close(network(clip.flip(2)), network(clip), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "frames", "says"),
    [
        ("r2d-18", 7, "takes 8 frames as channels, not 7"),
        ("slowfast-4x16-r50", 7, "at least 8 frames, not 7"),
        ("c3d-bn", 15, "at least 16 frames, not 15"),
        ("tsn-bninception", 4, "snippets of 5 frames, not 4"),
    ],
)
def test_too_few_frames_are_refused_in_a_sentence(name, frames, says):
    with pytest.raises(ValueError, match=says):
        on_meta(name)(torch.empty(1, 3, frames, 64, 64, device="meta"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("r2plus1d-18", {"width": "wide"}),
        ("hara-r3d-18", {"shortcut": "C"}),
        ("i3d-r50", {"nonlocal_blocks": 2}),
        ("i3d-r50", {"nonlocal_blocks": 1, "nonlocal_kind": "cosine"}),
        ("i3d-r50", {"nonlocal_blocks": 1, "nonlocal_pool": "inside"}),
        ("slowfast-4x16-r50", {"lateral": "none"}),
        ("slowfast-4x16-r50", {"fusion": "product"}),
        ("tsm-r50", {"placement": "before"}),
        ("tsm-r50", {"padding": "reflect"}),
        ("tsm-r50", {"padding": "circulant", "online": True}),
        ("i3d-top-heavy", {"cut": "6a"}),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_what_there_is(name, options):
    with pytest.raises(ValueError, match=r"choose|take"):
        on_meta(name, **options)


def test_shortcut_a_takes_every_second_place_and_pads_channels_with_zeros():
    block = networks.build("hara-r3d-18", 5, shortcut="A").layer2[0]
    x = torch.randn(1, 64, 4, 6, 6)
    past = block.downsample(x)
    assert torch.equal(past[:, :64], x[:, :, ::2, ::2, ::2])
    assert past.shape[1] == 128
    assert not past[:, 64:].any()


@pytest.mark.parametrize("layers", [18, 34, 50, 101, 152])
def test_hara_networks_have_so_many_layers_of_3x3x3_kernels(layers):
    network = on_meta("hara-r3d-34", num_classes=5, layers=layers)
    main = [m for n, m in network.named_modules() if isinstance(m, nn.Conv3d) and "downsample" not in n]
    assert len(main) + 1 == layers
    cubic = sum(m.kernel_size == (3, 3, 3) for m in main)
    assert cubic == (layers - 2 if layers < 50 else (layers - 2) // 3)
    assert network(torch.empty(1, 3, 16, 112, 112, device="meta")).shape == (1, 5)


@pytest.mark.parametrize(
    ("layers", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))]
)
def test_ip_csn_is_ir_csn_with_a_pointwise_convolution_before_each_depthwise_one(layers, blocks):
    ir, ip = (on_meta(f"{kind}-csn-152", layers=layers) for kind in ("ir", "ip"))
    widths = [w for w, n in zip((64, 128, 256, 512), blocks, strict=True) for _ in range(n)]
    assert parameters(ip) - parameters(ir) == sum(w * w + 2 * w for w in widths)
    for network in (ir, ip):
        depthwise = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.groups > 1]
        assert [m.groups for m in depthwise] == widths
        assert {m.kernel_size for m in depthwise} == {(3, 3, 3)}


@pytest.mark.parametrize("cut", LAYERS)
def test_time_is_on_one_side_of_any_cut_through_i3d(cut):
    whole = on_meta("i3d")
    for heavy in ("bottom", "top"):
        network = on_meta(f"i3d-{heavy}-heavy", cut=cut)
        for name, module in network.named_modules():
            if not isinstance(module, Conv3dSame) or whole.get_submodule(name).kernel[0] == 1:
                continue
            layer = name.split(".")[0].rpartition("_")[2]
            below = LAYERS.index(layer) < LAYERS.index(cut)
            assert (module.kernel[0] > 1) == (below == (heavy == "bottom"))
            assert module.kernel[1:] == whole.get_submodule(name).kernel[1:]


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_tsn_averages_its_segments_and_sees_one_frame_or_five_of_each(stream):
    torch.manual_seed(0)
    channels = networks.CHANNELS[stream]
    network = networks.build("tsn-bninception", 5, in_channels=channels).eval()
    clip = torch.randn(1, channels, 15, 32, 32)
    with torch.no_grad():
        logits = network(clip)
        each = [network(clip[:, :, at : at + 5]) for at in (0, 5, 10)]
        torch.testing.assert_close(logits, sum(each) / 3)
        clip[:, :, [1, 7, 14]] += 1
        assert torch.equal(network(clip), logits) == (stream == "rgb")
        clip[:, :, 5] += 1
        assert not torch.equal(network(clip), logits)


def test_a_smart_block_squares_its_relations_and_averages_them_over_pairs_of_channels():
    torch.manual_seed(0)
    block = Smart(Norm(eps=0.0), 3, 4, 3, 1, False).eval()
    x = torch.randn(1, 3, 3, 5, 5)
    with torch.no_grad():
        energy = block.relation(x) ** 2
        pooled = (energy[:, 0::2] + energy[:, 1::2]) / 2
        want = block.reduction(torch.cat([block.appearance(x).relu(), pooled], dim=1))
        torch.testing.assert_close(block(x), want)


def test_3d_fusion_sees_the_rgb_frame_that_each_ten_of_flow_begin_with():
    torch.manual_seed(0)
    network = networks.build("fused-3d", 5).eval()
    rgb, flow = torch.randn(1, 3, 20, 32, 32), torch.randn(1, 2, 20, 32, 32)
    with torch.no_grad():
        logits = network(rgb, flow)
        for frame, seen in ((10, True), (1, False)):
            other = rgb.clone()
            other[:, :, frame] += 1
            assert torch.equal(network(other, flow), logits) != seen


@pytest.mark.parametrize(("name", "alike"), [("smallbig-r50", True), ("r3d-18", False)])
def test_smallbig_cannot_tell_a_clip_from_its_reverse(name, alike):
    """It brings frames together by symmetric pooling alone, and averages over time."""
    torch.manual_seed(0)
    network = networks.build(name, num_classes=8).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.constant_(module.weight, 0.2)  # not the nothing that some branches start as
    clip = torch.randn(1, 3, 8, 32, 32, dtype=torch.double)
    with torch.no_grad():
        forward, backward = network(clip), network(clip.flip(2))
    assert torch.allclose(forward, backward, rtol=1e-9) == alike
