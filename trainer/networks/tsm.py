"""TSM: a 2D residual network in which a share of the channels is shifted along time, at no cost.

J. Lin, C. Gan, S. Han, "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, sections 3
and 4; where the paper is silent, github.com/mit-han-lab/temporal-shift-module decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Norm
from trainer.networks.registry import register
from trainer.networks.residual import WIDTHS, Bottleneck, ResidualNetwork, bottleneck, stages, stem

SOURCE = "Lin et al., ICCV 2019, arXiv:1811.08383; github.com/mit-han-lab/temporal-shift-module"


class Shift(nn.Module):
    """Shifts channels along time: (N, C, T, H, W) -> the same shape (figure 1).

    Args:
        share: 1 / share of the channels come from the frame after, as many from the one before.
        padding: what the ends get: "zero", or "circulant", the clip's other end.
        online: only from the frame before, which is all there is in a stream (figure 1c).
    """

    def __init__(self, share: int = 8, padding: str = "zero", online: bool = False):
        super().__init__()
        if padding not in ("zero", "circulant"):
            raise ValueError(f"there is no padding {padding!r}: choose zero or circulant")
        if online and padding == "circulant":
            raise ValueError("a stream has no other end: take padding zero with online")
        self.share, self.padding, self.online = share, padding, online

    def forward(self, x: Tensor) -> Tensor:
        fold = x.shape[1] // self.share
        if self.online:
            return torch.cat([self._moved(x[:, :fold], 1), x[:, fold:]], dim=1)
        future, past, rest = x.split([fold, fold, x.shape[1] - 2 * fold], dim=1)
        return torch.cat([self._moved(future, -1), self._moved(past, 1), rest], dim=1)

    def step(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """A stream's frame (N, C, 1, H, W), shifted, and the next one's `before` (N, C / share, 1, H, W)."""
        kept = x[:, : x.shape[1] // self.share]
        before = torch.zeros_like(kept) if before is None else before
        return torch.cat([before, x[:, kept.shape[1] :]], dim=1), kept

    def _moved(self, x: Tensor, by: int) -> Tensor:
        return x.roll(by, dims=2) if self.padding == "circulant" else F.pad(x, (0, 0, 0, 0, by, -by))


class ShiftedBottleneck(Bottleneck):
    """A 2D bottleneck with a shift: on its residual branch, or in place, before all of it (section 3.2)."""

    shift: Shift
    in_place = False

    def forward(self, x: Tensor) -> Tensor:
        return self._after(x, self.shift(x))

    def step(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `Shift.step`, through the block."""
        shifted, kept = self.shift.step(x, before)
        return self._after(x, shifted), kept

    def _after(self, x: Tensor, shifted: Tensor) -> Tensor:
        past = self.downsample(shifted if self.in_place else x)
        return (self.conv3(self.conv2(self.conv1(shifted))) + past).relu_()


class TSM(ResidualNetwork):
    """TSM on ResNet-50.

    Takes (N, `in_channels`, T, H, W) float; 8 frames of 224x224. Published on Kinetics-400, top-1 (the
    code's README): one frame from each eighth of the clip, 50 epochs, 71.2 %; 8 frames, 8 apart,
    100 epochs, over 30 views (tsm-dense.toml), 74.1 %, the paper's figure. The frames' logits are averaged.
    What the online mode takes, frame by frame, is measured by benchmarks/tsm_online.py.

    Args:
        placement: of the shift: "residual" as published, or "in-place" (section 3.2).
        padding: "zero" as published, or "circulant".
        online: shifts from the past only, so that `step` may go through a stream frame by frame (section 4).
        dropout: probability before the last layer, frame by frame.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        *,
        placement: str = "residual",
        padding: str = "zero",
        online: bool = False,
        dropout: float = 0.5,
    ):
        if placement not in ("residual", "in-place"):
            raise ValueError(f"there is no placement {placement!r}: choose residual or in-place")
        blocks = [bottleneck(norm, inner, kind=ShiftedBottleneck) for inner in WIDTHS]
        super().__init__(stem(norm, in_channels), stages(blocks, 50), num_classes, dropout)
        self.online = online
        for block in self.blocks():
            block.shift, block.in_place = Shift(8, padding, online), placement == "in-place"

    def blocks(self) -> list[ShiftedBottleneck]:
        """All residual blocks in their order."""
        return [b for b in self.modules() if isinstance(b, ShiftedBottleneck)]

    def logits_over_time(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, T, num_classes)."""
        return self.fc(self.dropout(self.maps(x).mean(dim=(3, 4)).transpose(1, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_over_time(x).mean(dim=1)

    def step(self, frame: Tensor, state: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The next frame of a stream, (N, C, H, W), and the state it is given back with.

        Returns its logits (N, num_classes), those of `logits_over_time` for a clip, and the state for the
        next frame: an eighth of the channels before each block. Raises ValueError without `online`.
        """
        if not self.online:
            raise ValueError("this TSM looks into the future: build it with online=True to go frame by frame")
        x = self.stem(frame[:, :, None])
        kept = []
        for number, block in enumerate(self.blocks()):
            x, left = block.step(x, None if state is None else state[number])
            kept.append(left)
        return self.fc(self.dropout(x.mean(dim=(2, 3, 4)))), kept


register("tsm-r50", TSM, configuration="tsm", sizes=(8, 224, 224), accuracy=71.2, source=SOURCE)
