"""Promises of the recurrent network: an answer after each frame, and statistics for clips of any length."""

from __future__ import annotations

import pytest
import torch

from trainer import networks, validation
from trainer.data.batches import Batch
from trainer.networks.recurrent import BatchNormLSTM
from trainer.stream_models import StreamModel

FRAMES = 3


def test_a_recurrent_network_gives_logits_after_each_frame_and_answers_with_the_last():
    torch.manual_seed(0)
    network = networks.build("convnet-lstm", 5, bn_momentum=1.0)
    clip = torch.randn(4, 3, 3, 32, 32)
    with torch.no_grad():
        for _ in range(3):  # the statistics of one step change what the next one sees
            network.train()(clip)
        steps = network.eval().steps(clip)
        assert steps.shape == (4, 3, 5)
        assert torch.equal(network(clip), steps[:, -1])
        assert torch.allclose(network(clip[:, :, :2]), steps[:, 1], atol=5e-4)
        turned = network(clip.flip(2))
    assert not torch.allclose(turned, steps[:, -1], atol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_steps_beyond_the_clips_trained_on_are_normalised_as_the_last_one_trained(frozen):
    torch.manual_seed(0)
    network = BatchNormLSTM(4, 8, momentum=0.1, frozen=frozen, longest=6)
    for _ in range(3):
        network(torch.randn(5, 3, 4) * 3 + 1)
    for norms in (network.input_norms, network.hidden_norms, network.cell_norms):
        means = torch.stack([norm.running_mean for norm in norms])
        assert torch.equal(means[3:], means[2:3].expand(3, -1))
        assert (means == 0).all() if frozen else not torch.equal(means[1], means[2])
    assert network.eval()(torch.randn(5, 9, 4)).shape == (5, 9, 8)


@pytest.fixture
def model() -> StreamModel:
    """As a longer training left it: the statistics of all steps are of clips, and not where they began."""
    torch.manual_seed(0)
    model = StreamModel("rgb", networks.build("convnet-lstm", 5, bn_momentum=0.5))
    with torch.no_grad():
        for _ in range(3):
            model.train()((torch.randn(4, 3, 5, 32, 32), None))
    return model


def batch() -> Batch:
    clips = torch.randint(0, 256, (4, 3, FRAMES, 32, 32), dtype=torch.uint8)
    return Batch(0, 0, tuple("abcd"), clips, None, None, torch.zeros(4).long(), torch.ones(4), 4.0)


def test_statistics_taken_anew_reach_the_steps_beyond_the_clips_they_are_of(model):
    before = [norm.running_var.clone() for norm in model.network.lstm.cell_norms]
    validation.reestimate({"rgb": model}, [batch(), batch()], torch.device("cpu"))
    for norms in (getattr(model.network.lstm, f"{kind}_norms") for kind in ("input", "hidden", "cell")):
        last = norms[FRAMES - 1].state_dict()
        assert all(
            torch.equal(value, last[name])
            for later in norms[FRAMES:]
            for name, value in later.state_dict().items()
        )
    assert not torch.equal(model.network.lstm.cell_norms[-1].running_var, before[-1])
    assert not torch.equal(last["running_var"], torch.ones(512))


def test_frozen_features_keep_the_statistics_of_all_steps(model):
    before = {name: value.clone() for name, value in model.network.lstm.state_dict().items()}
    model.freeze({"logits.weight", "logits.bias"})
    model.train()(batch().inputs())
    after = model.network.lstm.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
