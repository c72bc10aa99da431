"""SlowFast: one pathway sees few frames with many channels, the other many frames with few.

C. Feichtenhofer, H. Fan, J. Malik, K. He, "SlowFast Networks for Video Recognition", ICCV 2019, section 3 and
table 1; where the paper is silent, github.com/facebookresearch/SlowFast decides.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from trainer.networks.layers import Dropout, Norm
from trainer.networks.registry import register
from trainer.networks.residual import (
    DEPTHS,
    WIDTHS,
    activated,
    bottleneck,
    convolution,
    initialise,
    stage,
    stem,
)

SOURCE = "Feichtenhofer et al., ICCV 2019, arXiv:1812.03982; github.com/facebookresearch/SlowFast"

LATERALS = ("time-to-channel", "sampling", "convolution")
FUSIONS = ("concatenation", "sum")


class Lateral(nn.Module):
    """Brings the fast pathway's maps to the slow one's frames and joins them to its maps (section 3.3).

    (N, S, T, H, W) slow and (N, F, alpha T, H, W) fast -> (N, `channels`, T, H, W).

    Args:
        kind: "time-to-channel" packs alpha frames into the channels, "sampling" takes one of alpha frames,
            "convolution" is 5x1x1 or 7x1x1 with stride alpha and twice as many channels.
        fusion: "concatenation", or "sum", which needs as many channels as the slow pathway has: time to
            channel has them where alpha is 1 / beta, a convolution is given them, sampling has them not.
        size: frames that the convolution spans.
    """

    def __init__(self, norm: Norm, slow: int, fast: int, alpha: int, kind: str, fusion: str, size: int):
        super().__init__()
        if kind not in LATERALS:
            raise ValueError(f"there is no lateral {kind!r}: choose one of {', '.join(LATERALS)}")
        if fusion not in FUSIONS:
            raise ValueError(f"there is no fusion {fusion!r}: choose {' or '.join(FUSIONS)}")
        given = {"time-to-channel": alpha * fast, "sampling": fast, "convolution": 2 * fast}[kind]
        if fusion == "sum" and kind == "convolution":
            given = slow
        if fusion == "sum" and given != slow:
            raise ValueError(
                f"{kind} gives {given} channels, which cannot be added to {slow}: take fusion concatenation"
            )
        self.alpha, self.kind, self.fusion = alpha, kind, fusion
        self.channels = slow if fusion == "sum" else slow + given
        if kind == "convolution":
            self.conv = activated(convolution(fast, given, (size, 1, 1), (alpha, 1, 1)), norm(given))

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        if self.kind == "convolution":
            brought = self.conv(fast)
        elif self.kind == "sampling":
            brought = fast[:, :, :: self.alpha]
        else:
            brought = fast.unflatten(2, (-1, self.alpha)).transpose(2, 3).flatten(1, 2)
        return slow + brought if self.fusion == "sum" else torch.cat([slow, brought], dim=1)


class SlowFast(nn.Module):
    """SlowFast on ResNet-50, T x tau = 4x16 (alpha 8) or 8x8 (alpha 4), beta 1/8.

    Takes (N, `in_channels`, T, H, W) float, the fast pathway's frames: 32, 2 apart, of 224x224 as published;
    what is over a multiple of alpha is left out. The slow one sees T / alpha of them, spread from the first
    to the last as in the published code. Published on Kinetics-400, top-1 over 30 views of 256x256 (table
    2): 4x16 75.6, 8x8 77.0 %.

    Args:
        alpha: frames of the fast pathway for each of the slow.
        beta: channels of the fast pathway for each of the slow, a share of 1.
        lateral: one of `LATERALS`, after the stem and the first three stages (table 5).
        fusion: one of `FUSIONS`.
        lateral_size: frames that a lateral convolution spans: 5 for 4x16, 7 for 8x8.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        *,
        alpha: int = 8,
        beta: float = 1 / 8,
        lateral: str = "convolution",
        fusion: str = "concatenation",
        lateral_size: int = 5,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.alpha = alpha
        widths = [(width, round(width * beta)) for width in WIDTHS]
        self.slow = nn.ModuleList([stem(norm, in_channels, widths[0][0])])
        self.fast = nn.ModuleList([stem(norm, in_channels, widths[0][1], frames=5)])
        self.laterals = nn.ModuleList()
        before = widths[0]  # channels that come out of each pathway's last stage
        for number, (slow, fast) in enumerate(widths):
            joined = Lateral(norm, *before, alpha, lateral, fusion, lateral_size)
            self.laterals.append(joined)
            depth, stride = DEPTHS[50][number], 1 if number == 0 else 2
            on_slow = bottleneck(norm, slow, frames=(1, 1) if number < 2 else (3, 3))
            on_fast = bottleneck(norm, fast, frames=(3, 3))
            self.slow.append(stage(on_slow, depth, joined.channels, 4 * slow, stride))
            self.fast.append(stage(on_fast, depth, before[1], 4 * fast, stride))
            before = (4 * slow, 4 * fast)
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(sum(before), num_classes)
        initialise(self, zero_last=True)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 2304), both pathways' means; ValueError for fewer than alpha frames."""
        frames = x.shape[2] - x.shape[2] % self.alpha
        if not frames:
            raise ValueError(f"this SlowFast takes at least {self.alpha} frames, not {x.shape[2]}")
        slow, fast = x[:, :, self.slow_frames(frames).to(x.device)], x[:, :, :frames]
        slow, fast = self.slow[0](slow), self.fast[0](fast)
        for lateral, on_slow, on_fast in zip(self.laterals, self.slow[1:], self.fast[1:], strict=True):
            slow, fast = on_slow(lateral(slow, fast)), on_fast(fast)
        return torch.cat([slow.mean(dim=(2, 3, 4)), fast.mean(dim=(2, 3, 4))], dim=1)

    def slow_frames(self, frames: int) -> Tensor:
        """The numbers, among `frames`, of those that the slow pathway sees: int64 (frames / alpha,)."""
        count = frames // self.alpha
        return torch.arange(count) * (frames - 1) // torch.sym_max(1, count - 1)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x)))


_register = partial(register, configuration="slowfast", sizes=(32, 256, 256), source=SOURCE)
_register("slowfast-4x16-r50", partial(SlowFast, alpha=8, lateral_size=5), accuracy=75.6)
_register("slowfast-8x8-r50", partial(SlowFast, alpha=4, lateral_size=7), accuracy=77.0)
