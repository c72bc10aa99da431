"""Validation scores within training, and the batch norm statistics that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainer import distributed, evaluate
from trainer.data.batches import Batch
from trainer.data.loader import EvaluationBatches
from trainer.stream_models import StreamModel


def scores(
    models: Mapping[str, StreamModel],
    batches: EvaluationBatches,
    group: distributed.Group,
    classes: tuple[str, ...],
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Loss (cross entropy, the mean over models and clips), clips, and top-1 and top-5 by stream.

    Raises `evaluate.Stopped` once `stop` says yes on any rank.
    """
    for model in models.values():
        model.eval()
    found = evaluate.predict(models, batches, group, stop=stop)
    for model in models.values():
        model.train()
    losses = [F.cross_entropy(logits, found.target).item() for logits in found.logits.values()]
    result = evaluate.score(found, classes)
    streams = {name: result[name] for name in evaluate.STREAMS if name in result}
    return {"clips": result["clips"], "loss": sum(losses) / len(losses), **streams}


def best(history: Iterable[Mapping[str, Any]]) -> float:
    """The highest top-1 in a list of `scores`: joint where there are two streams; -1 where there is none."""
    streams = ("joint", "rgb", "flow")
    chosen = (next((record[s] for s in streams if s in record), None) for record in history)
    return max((scores["top1"] for scores in chosen if scores), default=-1.0)


def reestimate(models: Mapping[str, StreamModel], batches: Iterable[Batch], device: torch.device) -> None:
    """Sets batch normalisation's running statistics to their mean over `batches`, for the present weights.

    A momentum meant for 100,000 steps lags far behind in a short run. (Y. Wu and J. Johnson, "Rethinking
    'Batch' in BatchNorm", arXiv:2105.07576, section 3.)
    """
    norms = [m for t in models.values() for m in t.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for model in models.values():
        model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            pictures = batch.inputs(device)
            for model in models.values():
                model(pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for model in models.values():
        model.train()
