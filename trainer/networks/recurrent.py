"""The batch-normalised LSTM.

T. Cooijmans, N. Ballas, C. Laurent, C. Gulcehre, A. Courville, "Recurrent Batch Normalization", ICLR 2017,
section 3, equations 6 to 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GAIN = 0.1
"""The scale of a normalised sum: the paper's initial one, at which gates do not saturate (section 4)."""


class StepNorm(nn.BatchNorm1d):
    """The normalisation of one step: (N, C) -> (N, C) with std `GAIN`; it learns nothing."""

    def __init__(self, channels: int, momentum: float, frozen: bool):
        super().__init__(channels, momentum=momentum, affine=False)
        self.frozen = frozen
        self.train()

    def train(self, mode: bool = True) -> StepNorm:
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        return GAIN * super().forward(x)


class BatchNormLSTM(nn.Module):
    """(N, T, `in_channels`) -> hidden states (N, T, `channels`).

    The sums from input and hidden state, and the cell, are normalised each, with statistics of their own for
    each of the first `longest` steps, and the last one's from there on. Steps that a training's clips are too
    short for take the statistics of their last step (section 4 of the paper): I3D's trains on 25 frames and
    tests on 50. The scales are fixed: the I3D paper's 9 million parameters have none.

    Args:
        momentum: of the running statistics, in torch's sense.
        frozen: running statistics are used and left as they are in training too.
        longest: steps with statistics of their own: the 50 of the I3D paper's test.
    """

    def __init__(self, in_channels: int, channels: int, momentum: float, frozen: bool, longest: int = 50):
        super().__init__()
        self.channels, self.longest = channels, longest
        self.from_input = nn.Linear(in_channels, 4 * channels, bias=False)
        self.from_hidden = nn.Linear(channels, 4 * channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * channels))  # forget, input and output gate, candidate
        self.input_norms, self.hidden_norms, self.cell_norms = (
            nn.ModuleList(StepNorm(width, momentum, frozen) for _ in range(longest))
            for width in (4 * channels, 4 * channels, channels)
        )
        nn.init.orthogonal_(self.from_input.weight)
        with torch.no_grad():
            self.from_hidden.weight.copy_(torch.eye(channels).repeat(4, 1))
            self.bias[:channels] = 1  # forget little at first

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.from_input(x).unbind(dim=1)
        hidden = cell = x.new_zeros(x.shape[0], self.channels)
        out = []
        for number, given in enumerate(inputs):
            step = min(number, self.longest - 1)
            given = self.input_norms[step](given)
            recalled = self.hidden_norms[step](self.from_hidden(hidden))
            forget, write, read, candidate = (given + recalled + self.bias).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + write.sigmoid() * candidate.tanh()
            hidden = read.sigmoid() * self.cell_norms[step](cell).tanh()
            out.append(hidden)
        if self.input_norms[0].training:  # not where statistics stay
            last = len(inputs) - 1
            for norms in (self.input_norms, self.hidden_norms, self.cell_norms):
                for later in norms[last + 1 :]:
                    later.load_state_dict(norms[last].state_dict())
        return torch.stack(out, dim=1)
