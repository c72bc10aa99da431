"""Exports trained models as torch.export (.pt2) or ONNX (.onnx) programs, compared with ours.

A program takes the tensors of `trainer.data.batches.Batch.inputs` and gives the logits of ``evaluate``; its
metadata (classes, how its input is made) is JSON inside the file.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pipeline.command_line import install
from trainer import ensemble, networks
from trainer.configuration import ConfigurationError
from trainer.ensemble import Ensemble
from trainer.frame_stream import numbers
from trainer.options import Named
from trainer.stream_models import StreamModel

METADATA = "metadata.json"
"""The JSON inside: an extra file of .pt2, a metadata property of .onnx."""

_log = logging.getLogger(__name__)
FORMAT = 1
TOLERANCE = 1e-4  # of the logits' scale, between ours and the program's
_TRACED = 2  # clips in the batch that a program is traced with

Shapes = tuple[tuple[int, ...], ...]
"""Of each input, (N, C, T, H, W)."""


class ExportError(RuntimeError):
    """The network cannot be exported, or the program's logits differ; one sentence."""


@dataclass(frozen=True)
class Exported:
    """A written program; `fixed` says why its number of frames is fixed (None: it is not)."""

    path: Path
    metadata: dict[str, Any]
    fixed: str | None


class Joint(nn.Module):
    """The models of an ensemble as one module: the sum of their logits, (N, num_classes) float32.

    Takes float32 (N, C, T, H, W) in [-1, 1] of one stream, or RGB and flow in this order.
    """

    def __init__(self, models: Ensemble):
        super().__init__()
        self.models = nn.ModuleList(Plain(member.model) for member in models.members.values())

    def forward(self, *pictures: Tensor) -> Tensor:
        if len(self.models) == 1:
            return self.models[0](*pictures)
        logits = [model(seen) for model, seen in zip(self.models, pictures, strict=True)]
        return torch.stack(logits).sum(0)


class Plain(nn.Module):
    """A model without the memory layout that suits our training."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: StreamModel):
        super().__init__()
        self.network = model.network.to(memory_format=torch.contiguous_format)
        self.brings_rgb = model.normalises and model.stream != "flow"
        self.register_buffer("scale", model.scale)
        self.register_buffer("shift", model.shift)

    def forward(self, *pictures: Tensor) -> Tensor:
        if self.brings_rgb:
            pictures = (pictures[0] * self.scale + self.shift, *pictures[1:])
        return self.network(*pictures)


class Widened(nn.Module):
    """A convolution to maps of one pixel, computed with a second pixel that is dropped.

    For maps of one pixel torch.export also asks whether there is one frame, and fixes the answer.
    """

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, self.conv.stride[2])))[..., :1]


def export(checkpoints: Named, output: Path) -> Exported:
    """Writes the models of checkpoints to `output`, whole or not at all, in the format of its suffix.

    Batch and time are dynamic; time is fixed at a training clip's where the network needs that. The written
    file has been run on other sizes than the traced one.

    Raises:
        CheckpointError: no such checkpoint, or models that do not go together.
        ConfigurationError: another suffix than .pt2 and .onnx, or ONNX is not installed.
        ExportError: torch cannot export it, or the file's logits differ by more than `TOLERANCE`.
    """
    if output.suffix not in (".pt2", ".onnx"):
        raise ConfigurationError(f"--output {output} has no known suffix: name it .pt2 or .onnx")
    if output.suffix == ".onnx" and not all(map(importlib.util.find_spec, ("onnxscript", "onnxruntime"))):
        raise ConfigurationError(f"ONNX is not installed: {install('onnx')}; or write a .pt2")
    models = ensemble.load(checkpoints)
    module = Joint(models).eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{os.getpid()}.{output.name}")
    fixed = _refusal(module, _with(_shapes(models), 1, _longer))
    try:
        with _quietly():
            if fixed is None:
                try:
                    metadata = _write(module, models, temporary, None)
                except ExportError:
                    raise
                except Exception as error:  # the tracer, or a guard of what it made, gives up in its own ways
                    _log.debug("time is to be fixed", exc_info=error)
                    fixed = f"torch.export fixes the number of frames of {_names(models)}"
            if fixed is not None:
                try:
                    metadata = _write(module, models, temporary, fixed)
                except ExportError:
                    raise
                except (RuntimeError, ValueError, TypeError) as error:
                    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n")[0][:200]
                    raise ExportError(f"{_names(models)} cannot be exported: {said}") from error
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(output, metadata, fixed)


def describe(models: Ensemble, fixed: str | None) -> dict[str, Any]:
    """The metadata of an exported file: classes, and how each input is made."""
    settings = ("rate", "stride", "frames", "segments", "short_side", "crop")
    inputs = []
    for (stream, fed), shape in zip(models.stream_inputs.items(), _shapes(models), strict=True):
        values = "RGB / 127.5 - 1" if stream == "rgb" else f"(u, v) / {fed.flow_bound:g} pixels, in [-1, 1]"
        inputs.append(
            {
                "name": stream,
                "shape": ["batch", shape[1], shape[2] if fixed else "time", *shape[3:]],
                "values": f"float32, {values}",
                **{name: getattr(fed, name) for name in settings},
            }
        )
    return {
        "format": FORMAT,
        "networks": {stream: member.checkpoint.network for stream, member in models.members.items()},
        "inputs": inputs,
        "time_is_fixed": fixed,
        "output": "logits (batch, classes), of all models added",
        "classes": list(models.classes),
    }


def _write(module: Joint, models: Ensemble, path: Path, fixed: str | None) -> dict[str, Any]:
    """Traces, writes and proves the file; its metadata."""
    import torch.fx.experimental._config as tracing

    metadata, trained = describe(models, fixed), _shapes(models)
    dims: dict[int, Any] = {0: Dim.DYNAMIC} if fixed else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    example = tuple(torch.zeros(_TRACED, *shape[1:]) for shape in trained)
    # Else a size that happens to be 1 somewhere inside while tracing would have to be 1 for ever.
    patch = getattr(tracing, "patch")  # noqa: B009 - torch adds it while loading, where no type checker looks
    with torch.no_grad(), patch(backed_size_oblivious=True):
        program = torch.export.export(
            _widened(module, trained), example, dynamic_shapes={"pictures": (dims,) * len(example)}
        )
    text = json.dumps(metadata)
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={METADATA: text})
        run: Callable[..., Tensor] = torch.export.load(path).module()
    else:
        _save_onnx(program, models, path, text)
        run = _onnx_runner(path)
    for shapes in _trials(module, trained, fixed):
        _compare(module, run, shapes)
    return metadata


def _widened(module: Joint, shapes: Shapes) -> Joint:
    """A copy of the module in which every convolution to maps of one pixel is `Widened`."""
    copied, empty, found = copy.deepcopy(module), copy.deepcopy(module).to("meta"), set()

    def note(conv: nn.Module, _: Any, out: Tensor) -> None:
        if out.shape[3:] == (1, 1):
            found.add(conv)

    for layer in empty.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        empty(*(torch.empty(shape, device="meta") for shape in shapes))
    for name in [name for name, layer in empty.named_modules() if layer in found]:
        copied.set_submodule(name, Widened(copied.get_submodule(name)))  # type: ignore[arg-type]
    return copied


def _save_onnx(program: ExportedProgram, models: Ensemble, path: Path, text: str) -> None:
    import onnx

    streams = list(models.streams)
    made = torch.onnx.export(
        program, (), dynamo=True, verbose=False, input_names=streams, output_names=["logits"]
    )
    assert made is not None
    proto = made.model_proto
    names: dict[str, str] = {}
    for given in proto.graph.input:
        dims = given.type.tensor_type.shape.dim
        names |= {dims[0].dim_param: "batch", dims[2].dim_param: "time"}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    proto.metadata_props.add(key=METADATA, value=text)
    onnx.save(proto, str(path))


def _onnx_runner(path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*pictures: Tensor) -> Tensor:
        fed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), pictures, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def _shapes(models: Ensemble) -> Shapes:
    """The inputs' sizes for one training clip."""
    return tuple(
        (1, networks.CHANNELS[stream], len(numbers(fed, fed.frames * fed.stride)), fed.crop, fed.crop)
        for stream, fed in models.stream_inputs.items()
    )


def _with(shapes: Shapes, clips: int, frames: Callable[[int], int]) -> Shapes:
    return tuple((clips, c, frames(t), h, w) for _, c, t, h, w in shapes)


def _refusal(module: Joint, shapes: Shapes) -> str | None:
    """Why the module does not take inputs of these sizes; None where it does. Computes nothing."""
    empty = copy.deepcopy(module).to("meta")
    try:
        with torch.no_grad():
            empty(*(torch.empty(shape, device="meta") for shape in shapes))
    except (ValueError, RuntimeError) as error:
        return str(error).split("\n")[0]
    return None


def _longer(frames: int) -> int:
    return frames + 10


def _trials(module: Joint, trained: Shapes, fixed: str | None) -> tuple[Shapes, Shapes]:
    """Sizes other than the traced one: fewer and more clips, longer and, where they are taken, shorter."""
    same = _with(trained, _TRACED + 1, int)
    if fixed:
        return trained, same
    shorter = _with(trained, _TRACED + 1, lambda frames: max(1, frames * 5 // 8))
    return _with(trained, 1, _longer), same if _refusal(module, shorter) else shorter


def _compare(module: Joint, run: Callable[..., Tensor], shapes: Shapes) -> None:
    """Raises ExportError where the program's logits differ from the module's."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(shape, generator=generator) * 2 - 1 for shape in shapes]
    with torch.no_grad():
        ours, theirs = module(*pictures), run(*pictures)
    apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-6))
    if not apart <= TOLERANCE:
        raise ExportError(
            f"the exported program's logits are {apart:.1e} of their scale off at {shapes}: it is not kept"
        )


def _names(models: Ensemble) -> str:
    return " and ".join(dict.fromkeys(member.checkpoint.network for member in models.members.values()))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings and the progress of torch's exporters, which say nothing of the result."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
