"""The models of a run: one a stream where the network is trained so, else one for both streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer import networks
from trainer.checkpoint import Checkpoint, CheckpointError, UnfitError
from trainer.data.batches import Input
from trainer.data.sampler import keyed
from trainer.networks.layers import seed_dropout

Pictures = tuple[Tensor | None, Tensor | None]
"""(rgb, flow) as `Batch.inputs` gives them."""


class StreamModel(nn.Module):
    """A network with the stream it sees, in the memory layout that measures fastest.

    Pictures come in [-1, 1]; RGB is brought to the mean and std of `input` here.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, stream: str, network: nn.Module, input: Input | None = None):
        super().__init__()
        self.stream = stream
        self.network = network.to(memory_format=torch.channels_last_3d)
        given = input or Input()
        mean, std = (torch.tensor(x)[:, None, None, None] for x in (given.mean, given.std))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.frozen = False
        self.normalises = (given.mean, given.std) != (Input.mean, Input.std)

    def freeze(self, learning: set[str]) -> None:
        """Freezes all weights but those named, and batch norm statistics; dropout stays on."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in learning)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> StreamModel:
        super().train(mode)
        for module in self.modules() if self.frozen else ():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, pictures: Pictures) -> Tensor:
        """Logits (N, num_classes) float32 of `pictures`."""
        return self.network(*self._inputs(pictures)).float()

    def training_logits(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """Logits (N, num_classes), and logits of all steps in the loss (N, S, num_classes), float32.

        A network that defines `steps` has several, and makes its logits from them by `answer`.
        """
        network: Any = self.network
        if not hasattr(network, "steps"):
            logits = self(pictures)
            return logits, logits[:, None]
        steps = network.steps(*self._inputs(pictures)).float()
        return network.answer(steps), steps

    def features(self, pictures: Pictures) -> Tensor:
        """Penultimate features of `pictures`, averaged over time and space: (N, C) float32."""
        return self.network.features(*self._inputs(pictures)).float()  # type: ignore[operator]

    def _inputs(self, pictures: Pictures) -> list[Tensor]:
        rgb, flow = pictures
        if rgb is not None and self.normalises:
            rgb = rgb * self.scale + self.shift
        seen = {"rgb": (rgb,), "flow": (flow,), "both": (rgb, flow)}[self.stream]
        return [x.contiguous(memory_format=torch.channels_last_3d) for x in seen if x is not None]


class Objective(nn.Module):
    """The loss and the number of correct first choices: the module that DDP wraps."""

    def __init__(self, model: StreamModel):
        super().__init__()
        self.model = model

    def forward(self, pictures: Pictures, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the samples, weighted: cross entropy (the mean over steps), and correct first choices."""
        logits, steps = self.model.training_logits(pictures)
        wanted = target.clamp(min=0)[:, None].expand(-1, steps.shape[1])
        loss = F.cross_entropy(steps.flatten(0, 1), wanted.flatten(), reduction="none")
        loss = loss.view(wanted.shape).mean(dim=1)
        return (loss * weight).sum(), ((logits.argmax(1) == target) * weight).sum()


def build(
    name: str,
    options: Mapping,
    streams: Iterable[str],
    classes: int,
    seed: int = 0,
    input: Input | None = None,
) -> dict[str, StreamModel]:
    """Fresh models by stream, for pictures as `input` has them; a stream's weights depend on no other.

    Raises TypeError for an option that the network has not.
    """
    models = {}
    for stream in streams:
        torch.manual_seed(keyed(seed, (*networks.CHANNELS, "both").index(stream)) >> 1)
        channels: dict[str, Any] = {"in_channels": networks.CHANNELS[stream]} if stream != "both" else {}
        models[stream] = StreamModel(stream, networks.build(name, classes, **channels, **options), input)
    return models


def restore(checkpoint: Checkpoint, stream: str | None = None) -> dict[str, StreamModel]:
    """The models of a checkpoint, or the one of `stream`, ready to evaluate.

    Raises UnfitError where it has no such model, CheckpointError where its weights are not its network's.
    """
    streams = list(checkpoint.weights) if stream is None else [stream]
    if missing := [s for s in streams if s not in checkpoint.weights]:
        trained = " and ".join(checkpoint.weights)
        raise UnfitError(f"the checkpoint was trained on {trained}, not on {missing[0]}")
    try:
        classes = len(checkpoint.classes)
        models = build(checkpoint.network, checkpoint.options, streams, classes, input=checkpoint.input)
        for name, model in models.items():
            model.network.load_state_dict(checkpoint.weights[name])
            model.eval()
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        said = str(error).strip("'").split("\n")[0][:200]
        raise CheckpointError(
            f"the checkpoint's weights and network do not go together ({said}): take another, or the trainer "
            "that wrote it"
        ) from error
    return models


def initialise(
    models: Mapping[str, StreamModel], checkpoint: Checkpoint, classes: tuple[str, ...]
) -> list[str]:
    """Starts `models` from a checkpoint's weights; where the classes differ, the last layer stays fresh.

    Returns the names of the weights left fresh. Raises UnfitError for another network or stream.
    """
    fresh: list[str] = []
    for stream, model in models.items():
        if stream not in checkpoint.weights:
            raise UnfitError(f"--init: the checkpoint has no {stream} model, only {set(checkpoint.weights)}")
        given, own = checkpoint.weights[stream], model.network.state_dict()
        if given.keys() != own.keys():
            raise UnfitError(f"--init: the checkpoint is of {checkpoint.network} with other layers")
        same = checkpoint.classes == classes
        last = set() if same else last_layers(checkpoint.network, checkpoint.options, stream)
        if other := [n for n in own if n not in last and given[n].shape != own[n].shape]:
            raise UnfitError(
                f"--init: the checkpoint's {other[0]} is {tuple(given[other[0]].shape)}, this network's "
                f"{tuple(own[other[0]].shape)}: take the options of its [network]"
            )
        model.network.load_state_dict({n: own[n] if n in last else given[n] for n in own})
        fresh += sorted(last)
    return fresh


def last_layers(name: str, options: Mapping, stream: str) -> set[str]:
    """The names of the weights whose shapes depend on the number of classes: of the last layer or layers."""
    shapes = []
    for classes in (2, 3):
        with torch.device("meta"):
            built = build(name, options, [stream], classes)[stream]
        shapes.append({weight: value.shape for weight, value in built.network.state_dict().items()})
    return {weight for weight in shapes[0] if shapes[0][weight] != shapes[1][weight]}


def seed_batch(models: Iterable[StreamModel], seed: int, epoch: int, keys: Iterable[str]) -> None:
    """Makes dropout's masks for a batch of `keys` a function of (seed, epoch, key) alone."""
    words = [keyed(seed, epoch, int.from_bytes(hashlib.sha256(k.encode()).digest()[:8])) for k in keys]
    seeds = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
    for model in models:
        seed_dropout(model, seeds)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Computes in the precision's type where that is safe; nothing for fp32."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def precision_for(device: torch.device, wanted: str) -> str:
    """The precision; "auto" is bf16 where `device` computes it in hardware, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
