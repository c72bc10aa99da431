"""Networks that pair an RGB frame with ten of flow: each stack of flow begins at its frame."""

from __future__ import annotations

import pytest
import torch

from trainer.networks.baselines import stacks


def test_what_is_left_after_the_last_whole_ten_moves_nothing():
    numbers = torch.arange(64.0).reshape(1, 1, 64, 1, 1)
    rgb, flow = stacks(numbers, numbers)
    assert rgb.flatten().tolist() == [0, 10, 20, 30, 40, 50]
    assert flow.flatten().tolist() == list(range(60))
    assert stacks(rgb, flow)[0].shape[2] == 6  # one RGB frame a stack, as published


def test_streams_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="go with 2 of RGB, not with 3"):
        stacks(torch.zeros(1, 3, 3, 1, 1), torch.zeros(1, 2, 20, 1, 1))
    with pytest.raises(ValueError, match="no stack of 10"):
        stacks(torch.zeros(1, 3, 9, 1, 1), torch.zeros(1, 2, 9, 1, 1))
