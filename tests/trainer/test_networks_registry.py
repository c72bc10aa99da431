"""Promises of every network in the registry: its published size and cost; it trains, evaluates, exports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from every_network import (
    FAMILIES,
    LIGHT,
    NAMES,
    PUBLISHED,
    as_published,
    channels_of,
    on_meta,
    parameters,
    reduced,
)
from torch import nn

from trainer import configuration, networks, stream_models
from trainer.distributed import Group
from trainer.networks.layers import BatchNorm3d, seed_dropout


def test_the_table_of_published_figures_has_every_network():
    assert set(networks.names()) - {"small"} == set(NAMES)


@pytest.mark.parametrize(("name", "stream"), PUBLISHED)
def test_parameters_are_exactly_the_published_ones(name, stream):
    assert parameters(as_published(name, stream)) == PUBLISHED[name, stream][0]


@pytest.mark.parametrize(("name", "stream"), [key for key, value in PUBLISHED.items() if value[1]])
def test_multiply_adds_are_the_published_ones(name, stream):
    network = as_published(name, stream)
    gmacs = networks.multiply_adds(network, *networks.entry(name).inputs(stream)) / 1e9
    assert gmacs == pytest.approx(PUBLISHED[name, stream][1], rel=0.01)


def test_the_printed_table_says_the_same():
    for name, streams in (("two-stream", ["both"]), ("tsn-bninception", ["rgb", "flow", "both"])):
        rows = networks.describe(name)
        assert [row.stream for row in rows] == streams
        assert all(row.gmacs > 1 for row in rows)
    assert rows[2].parameters == sum(PUBLISHED["tsn-bninception", s][0] for s in ("rgb", "flow"))
    assert rows[2].input == (5, 15, 224, 224)
    assert [row.accuracy for row in networks.describe("tsm-r50")][:2] == [
        71.2,
        None,
    ]  # flow: 5 frames stacked


@pytest.mark.parametrize(("name", "published"), [("i3d-r50", 37.53), ("slowfast-4x16-r50", 36.69)])
def test_published_costs_that_count_normalisation_are_ours_with_five_for_each_value(name, published):
    """pytorchvideo's model zoo has these two figures: its counter adds five for each value normalised."""
    network, values = on_meta(name).eval(), []
    for layer in network.modules():
        if isinstance(layer, BatchNorm3d):
            layer.register_forward_hook(lambda _, __, out: values.append(out.numel()))
    gmacs = networks.multiply_adds(network, *networks.entry(name).inputs("rgb")) / 1e9
    assert gmacs + 5 * sum(values) / 1e9 == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("r2d-18", {"frames": 16}, 11_522_832),
        ("r2plus1d-18", {"width": "vmz"}, 33_370_839),
        ("r2plus1d-34", {"width": "torchvision"}, 61_831_661),
        ("hara-r3d-18", {"shortcut": "A"}, 33_409_104 - 173_824),
        ("hara-r3d-34", {"shortcut": "A"}, 63_718_736 - 173_824),
        ("i3d-r50-nl5", {"nonlocal_blocks": 0}, 28_043_472),
        ("i3d-top-heavy", {"cut": "1a", "bn_scale": True}, 12_697_264),  # all of I3D
        ("tsm-r50", {"online": True}, 24_327_632),
    ],
)
def test_variants_have_exactly_the_published_parameters(name, options, published):
    assert parameters(on_meta(name, **options)) == published


@pytest.mark.parametrize(
    ("name", "options", "side", "published"),
    [("r2plus1d-18", {"width": "vmz"}, 112, 41.50), ("s3d", {}, 224, 17.98)],
)
def test_variants_cost_for_16_frames_what_is_published(name, options, side, published):
    network = on_meta(name, **options)
    assert networks.multiply_adds(network, (3, 16, side, side)) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ["s3d", "s3d-g", "i3d", "i3d-r50-nl5", "slowfast-8x8-r50", "tsm-r50"])
def test_a_network_is_listed_for_as_many_frames_as_its_default_has(name):
    settings = configuration.resolve(None, {"network": {"name": name}})
    assert networks.entry(name).sizes[0] == settings.input.frames


@pytest.mark.parametrize("device", ["meta", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_the_default_configuration_fits_the_network(name, device):
    settings = configuration.resolve(None, {"network": {"name": name}})
    seen, options = settings.input, settings.network.options
    assert seen.stream == networks.entry(name).streams[0]
    with torch.device(device), torch.no_grad():
        shape = (seen.frames, seen.crop, seen.crop)
        rgb, flow = (torch.rand(1, networks.CHANNELS[s], *shape) * 2 - 1 for s in ("rgb", "flow"))
        for model in stream_models.build(name, options, settings.model_streams, 7, input=seen).values():
            logits = model.eval()((rgb, flow))
            assert logits.shape == (1, 7)
            assert device == "meta" or logits.isfinite().all()


@pytest.mark.parametrize("name", [*FAMILIES, "ip-csn-152", "r2plus1d-34", "r2plus1d-18", "hara-r3d-34"])
def test_what_a_rank_takes_at_a_time_fits_into_a_gpu_of_16_gib(name):
    """Bytes that autograd saves of a micro-batch in fp32, counted without computing."""
    settings = configuration.resolve(None, {"network": {"name": name}})
    seen, stream, saved = settings.input, settings.model_streams[0], {}
    network = on_meta(name, **settings.network.options, **channels_of(name, stream)).train()
    shape = (seen.frames, seen.crop, seen.crop)
    streams = ("rgb", "flow") if stream == "both" else (stream,)
    inputs = [torch.empty(2, networks.CHANNELS[s], *shape, device="meta") for s in streams]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        getattr(network, "steps", network)(*inputs)
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    size = sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in weights)
    assert size / 2 * settings.run.micro_batch <= 15 * 2**30


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_keyed_by_sample_and_normalisation_can_be_frozen(name):
    network = on_meta(name, dropout=0.25, bn_momentum=0.3, bn_frozen=True).train()
    assert not [m for m in network.modules() if isinstance(m, nn.Dropout | nn.Dropout3d)]
    assert {m.probability for m in network.modules() if type(m).__name__ == "Dropout"} == {0.25}
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert {m.momentum for m in norms} == {0.3}
    assert not any(m.training for m in norms)


@pytest.mark.parametrize(
    "name", [n if n in LIGHT else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_it_trains_two_steps_evaluates_and_is_restored_from_its_state(name):
    torch.manual_seed(0)
    inputs, target = reduced(name), torch.tensor([0, 1])
    network = networks.build(name, 3, dropout=0.1, bn_momentum=0.1).train()
    before = [p.detach().clone() for p in network.parameters()]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        seed_dropout(network, torch.tensor([1, 2]))
        optimiser.zero_grad()
        logits = network(*inputs)
        assert logits.shape == (2, 3)
        F.cross_entropy(logits, target).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimiser.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(moved) > 0.5 * len(moved)
    del before
    with torch.no_grad():
        want = network.eval()(*inputs)
        assert want.isfinite().all()
        assert network.features(*inputs).ndim == 2
        again = networks.build(name, 3).eval()
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(*inputs), want)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_exported(name):
    network = networks.build(name, 3).eval()
    inputs = reduced(name, 1)
    exported = torch.export.export(network, inputs)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(*inputs), network(*inputs))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two processes that are a gloo group: takes a network's name, gives what each rank ends with."""
    context = torch.multiprocessing.get_context("spawn")
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    asked, answered = [context.Queue() for _ in range(2)], context.Queue()
    each = [context.Process(target=_rank, args=(n, meeting, asked[n], answered)) for n in range(2)]
    for process in each:
        process.start()

    def ask(name: str) -> dict[int, tuple[str, str]]:
        for queue in asked:
            queue.put(name)
        return dict(answered.get(timeout=240) for _ in each)

    yield ask
    for queue, process in zip(asked, each, strict=True):
        queue.put(None)
        process.join(30)
        process.kill()


def _rank(rank: int, meeting: Path, asked, answered) -> None:
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": 2, "timeout": timedelta(minutes=3)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", **options)
    for name in iter(asked.get, None):
        try:
            answered.put((rank, _two_steps_together(Group(rank, 2, torch.device("cpu")), name)))
        except Exception as error:
            answered.put((rank, ("failed", repr(error))))


def _two_steps_together(group: Group, name: str) -> tuple[str, str]:
    """Digests of the weights before and of the state after two steps, each rank on clips of its own."""
    entry = networks.entry(name)
    stream = entry.streams[0] if not entry.separate_streams else "rgb"
    model = stream_models.build(name, {"dropout": 0.1, "bn_momentum": 0.1}, [stream], 3)[stream]
    before = _digest(dict(model.named_parameters()))
    objective = group.wrap(stream_models.Objective(model)).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    mine = [clips[2 * group.rank :][:2] for clips in reduced(name, 4)]
    pictures = (mine[0], mine[1] if stream == "both" else None)
    for _ in range(2):
        optimiser.zero_grad()
        loss, _ = objective(pictures, torch.tensor([0, 1 + group.rank]), torch.ones(2))
        (loss * group.world / 4).backward()
        optimiser.step()
    group.average_statistics([model])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    return before, _digest(model.state_dict())


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    values = (value.detach().contiguous().numpy().tobytes() for value in state.values())
    return hashlib.sha256(b"".join(values)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_take_two_steps_and_hold_the_same_network(name, ranks):
    (before, after), other = ranks(name).values()
    assert (before, after) == other
    assert before != "failed", after
    assert before != after
