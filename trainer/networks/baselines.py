"""The four older networks that the I3D paper compares with, on Inception-v1 and on C3D.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017,
sections 2.1 to 2.3, figure 2 and table 1.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.i3d import CHANNELS, inception_v1, initialise
from trainer.networks.layers import Conv3d, Dropout, MaxPool3dSame, Norm
from trainer.networks.recurrent import BatchNormLSTM
from trainer.networks.registry import register
from trainer.networks.residual import activated

SOURCE = "Carreira and Zisserman, CVPR 2017, arXiv:1705.07750"

STACK = 10
"""Frames of flow that go with one of RGB."""


def frames_inception(norm: Norm, in_channels: int, stack: int = 1) -> nn.Sequential:
    """Inception-v1, frame by frame: (N, C, T, H, W) -> (N, 1024, T / stack, h, w).

    `stack` frames are the channels of one picture.
    """
    layers = dict(inception_v1(norm, in_channels, (stack, 7, 7), (stack, 2, 2), time=False))
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers.values())))


class ConvNetLSTM(nn.Module):
    """(a) ConvNet and LSTM: Inception-v1 on each frame, a batch-normalised LSTM of 512 on its average pool.

    Takes (N, `in_channels`, T, H, W) float, every fifth frame: 25 in training, 50 in test, of 224x224. The
    loss is on the outputs of all steps (`steps`), the last one's is the answer. 9 million parameters.
    Published (table 2): Kinetics-400 63.3, UCF-101 81.0, HMDB-51 36.0 %.
    """

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.5):
        super().__init__()
        self.frames = frames_inception(norm, in_channels)
        self.lstm = BatchNormLSTM(CHANNELS, 512, norm.momentum, norm.frozen)
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(512, num_classes)
        self.frames.apply(initialise)

    def hidden(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, T, 512)."""
        return self.lstm(self.frames(x).mean(dim=(3, 4)).transpose(1, 2))

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 512), after the last frame."""
        return self.hidden(x)[:, -1]

    def steps(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> logits after each frame (N, T, num_classes)."""
        return self.logits(self.dropout(self.hidden(x)))

    def answer(self, steps: Tensor) -> Tensor:
        """Pick the logits after the last frame, (N, num_classes)."""
        return steps[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.steps(x))


class C3D(nn.Module):
    """(b) 3D-ConvNet: C3D with batch normalisation after all layers, and time halved in the first pool.

    Takes (N, `in_channels`, T, H, W) float, T >= 16; 16 frames of 112x112 as published, of other pictures
    the last maps are averaged to 4x4. Longer clips are gone through in steps of 16 frames, and the logits
    averaged. 79 million parameters. Published (table 2): Kinetics-400 56.1, UCF-101 51.6, HMDB-51 24.3 %.
    (D. Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015, figure 3.)

    Args:
        dropout: probability after both hidden linear layers.
    """

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.5):
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for width in widths:
                layers.append(activated(Conv3d(before, width, 3, padding=1, bias=False), norm(width)))
                before = width
            layers.append(nn.MaxPool3d(2))
        layers[-1] = nn.MaxPool3d((1, 2, 2), (1, 2, 2), padding=(0, 1, 1))  # no time is left to halve
        self.layers = nn.Sequential(*layers)
        self.fc6 = activated(nn.Conv3d(before, 4096, (1, 4, 4)), norm(4096))
        self.fc7 = activated(nn.Conv3d(4096, 4096, 1), norm(4096))
        self.dropout6, self.dropout7 = Dropout(dropout), Dropout(dropout)
        self.logits = nn.Conv3d(4096, num_classes, 1)
        self.apply(initialise)

    def hidden(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 4096, T / 16, 1, 1), the second linear layer's."""
        if x.shape[2] < 16:
            raise ValueError(f"C3D takes at least 16 frames, not {x.shape[2]}")
        x = self.layers(x)
        if x.shape[3:] != (4, 4):
            x = F.adaptive_avg_pool3d(x, (x.shape[2], 4, 4))
        return self.fc7(self.dropout6(self.fc6(x)))

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 4096)."""
        return self.hidden(x).mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.dropout7(self.hidden(x))).mean(dim=(2, 3, 4))


def stacks(rgb: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Pair each stack of 10 flow frames with one RGB frame: as given, or picked from one for each flow frame.

    Flow frames after the last whole stack are left out, so that each stack begins at its RGB frame. Raises
    ValueError for less than 10, and for any other number of RGB frames.
    """
    count = flow.shape[2] // STACK
    if not count:
        raise ValueError(f"{flow.shape[2]} frames of flow are no stack of {STACK}: take at least so many")
    if rgb.shape[2] == flow.shape[2]:
        rgb = rgb[:, :, : count * STACK : STACK]
    if rgb.shape[2] != count:
        raise ValueError(f"{flow.shape[2]} frames of flow go with {count} of RGB, not with {rgb.shape[2]}")
    return rgb, flow[:, :, : count * STACK]


class TwoStream(nn.Module):
    """(c) Two-Stream: Inception-v1 on an RGB frame and another on 10 frames of flow from there on, stacked.

    Takes rgb (N, 3, K, H, W) or one frame for each of flow, and flow (N, 2, 10 K, H, W); K = 1 in training,
    25 in test, of 224x224. The streams' predictions are averaged, after each one's logits over K; the loss
    is the mean of both streams' (`steps`). 12 million parameters. Published (table 2), RGB, flow and both:
    Kinetics-400 62.2, 52.4, 65.6; UCF-101 83.6, 85.6, 91.2; HMDB-51 43.2, 56.3, 58.3 %. (K. Simonyan, A.
    Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", NIPS 2014.)

    Args:
        in_channels: of an RGB frame.
        dropout: probability before each last layer.
    """

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.5):
        super().__init__()
        self.rgb, self.flow = frames_inception(norm, in_channels), frames_inception(norm, 2, STACK)
        self.dropout_rgb, self.dropout_flow = Dropout(dropout), Dropout(dropout)
        self.logits_rgb = nn.Conv3d(CHANNELS, num_classes, 1)
        self.logits_flow = nn.Conv3d(CHANNELS, num_classes, 1)
        self.apply(initialise)

    def maps(self, rgb: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Each stream's average pool, (N, 1024, K, 1, 1)."""
        rgb, flow = stacks(rgb, flow)
        return self.rgb(rgb).mean((3, 4), keepdim=True), self.flow(flow).mean((3, 4), keepdim=True)

    def features(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """(N, 2048): RGB then flow."""
        return torch.cat([x.mean(dim=(2, 3, 4)) for x in self.maps(rgb, flow)], dim=1)

    def steps(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """Logits of both streams, (N, 2, num_classes)."""
        seen_rgb, seen_flow = self.maps(rgb, flow)
        by_rgb = self.logits_rgb(self.dropout_rgb(seen_rgb)).mean(dim=(2, 3, 4))
        by_flow = self.logits_flow(self.dropout_flow(seen_flow)).mean(dim=(2, 3, 4))
        return torch.stack([by_rgb, by_flow], dim=1)

    def answer(self, steps: Tensor) -> Tensor:
        """Join both streams: the logarithms of their mean probabilities, (N, num_classes)."""
        return steps.log_softmax(dim=2).logsumexp(dim=1) - math.log(2)

    def forward(self, rgb: Tensor, flow: Tensor) -> Tensor:
        return self.answer(self.steps(rgb, flow))


class FusedThreeD(nn.Module):
    """(d) 3D-Fused Two-Stream: both streams' maps, joined by a 3x3x3 convolution to 512 and a 3x3x3 maximum.

    Takes rgb (N, 3, K, H, W), 10 frames apart, or one frame for each of flow, and flow (N, 2, 10 K, H, W); K
    = 5 in training, 25 in test, of 224x224. How the maximum strides and what comes between it and the linear
    layer is not published: here SAME with stride 2, and the mean of the logits over what is left.
    39 million parameters. Published (table 2), RGB, flow and both: Kinetics-400 67.2 (both); UCF-101 83.2,
    85.8, 89.3; HMDB-51 49.2, 55.5, 56.8 %.

    Args:
        in_channels: of an RGB frame.
    """

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.5):
        super().__init__()
        self.rgb, self.flow = frames_inception(norm, in_channels), frames_inception(norm, 2, STACK)
        self.fusion = Conv3d(2 * CHANNELS, 512, 3, padding=1)
        self.pool = MaxPool3dSame((3, 3, 3), (2, 2, 2))
        self.dropout = Dropout(dropout)
        self.logits = nn.Conv3d(512, num_classes, 1)
        self.apply(initialise)

    def maps(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """The last maximum pool, (N, 512, t, h, w)."""
        rgb, flow = stacks(rgb, flow)
        both = torch.cat([self.rgb(rgb), self.flow(flow)], dim=1)
        return self.pool(F.relu(self.fusion(both)))

    def features(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """(N, 512)."""
        return self.maps(rgb, flow).mean(dim=(2, 3, 4))

    def forward(self, rgb: Tensor, flow: Tensor) -> Tensor:
        return self.logits(self.dropout(self.maps(rgb, flow))).mean(dim=(2, 3, 4))


_register = partial(register, source=SOURCE, norm=Norm(1e-3, 0.001))
_both = partial(_register, streams=("both",))
_register("convnet-lstm", ConvNetLSTM, configuration="convnet-lstm", sizes=(25, 224, 224), accuracy=63.3)
_register("c3d-bn", C3D, configuration="c3d", sizes=(16, 112, 112), accuracy=56.1)
_two = {"configuration": "two-stream", "sizes": (1, 224, 224), "flow_frames": STACK}
_both("two-stream", TwoStream, accuracy={"both": 65.6}, **_two)
_fused = {"configuration": "fused-3d", "sizes": (5, 224, 224), "flow_frames": 5 * STACK}
_both("fused-3d", FusedThreeD, accuracy={"both": 67.2}, **_fused)
