"""Evaluates models on a split: logits of every clip once, and scores by stream and joint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import checkpoint as checkpoints
from trainer import distributed, run_log
from trainer.checkpoint import Checkpoint, CheckpointError, UnfitError
from trainer.choices import ConfigurationError
from trainer.data.loader import EvaluationBatches
from trainer.data.rows import Rows, input_for, open_rows
from trainer.ensemble import refusal
from trainer.options import EvaluateOptions
from trainer.stream_models import Pictures, StreamModel, autocast, precision_for, restore

STREAMS = ("rgb", "flow", "joint")

_AT_ONCE = 8  # views that a network takes at a time: memory does not grow with those of a clip


class Stopped(RuntimeError):
    """An evaluation was asked to end before all clips were seen."""


@dataclass(frozen=True)
class Predictions:
    """Logits by stream, float32 (n, num_classes) averaged over time and views, of n clips in key order."""

    keys: tuple[str, ...]
    target: Tensor  # int64 (n,)
    logits: Mapping[str, Tensor]
    failures: tuple[str, ...]  # a sentence for each clip that could not be decoded


def evaluate(options: EvaluateOptions, group: distributed.Group) -> dict[str, Any]:
    """The scores of a split, the same on every rank; see `score` for what is in them.

    Raises CheckpointError, RowsError, TooManyFailures.
    """
    found, views = [], []
    for path, stream in options.checkpoints:
        checkpoint = checkpoints.load(path)
        models = restore(checkpoint, stream)
        split = options.split if options.lists is None else options.lists.test
        rows = open_rows(options.data, split, tuple(models) if "both" not in models else ("rgb", "flow"))
        if checkpoint.classes != rows.classes:
            raise UnfitError(
                f"{path} knows {len(checkpoint.classes)} classes, the data set has {len(rows.classes)} "
                "others or in another order: evaluate on a data set prepared with the same --classes"
            )
        chosen = checkpoint.input.test_views if options.views is None else options.views
        found.append(_predict_all(options, group, checkpoint, models, rows, chosen))
        views.append("x".join(map(str, chosen)) or "whole clip")
    scores = score(merge(found), rows.classes)
    return {
        "data": list(options.data),
        "split": rows.split,
        "views": " and ".join(dict.fromkeys(views)),
        "repeat_frame": options.repeat_frame,
        "checkpoints": [path for path, _ in options.checkpoints],
        **scores,
    }


def predict(
    models: Mapping[str, StreamModel],
    batches: EvaluationBatches,
    group: distributed.Group,
    *,
    repeat_frame: bool = False,
    precision: str = "fp32",
    stop: Callable[[], bool] | None = None,
) -> Predictions:
    """The logits of all clips of `batches`, gathered over the ranks.

    Args:
        repeat_frame: each clip is its middle frame repeated, its flow zero: nothing moves.
        stop: asked before each batch; `Stopped` is raised on all ranks once one says yes.
    """
    keys: list[str] = []
    targets: list[Tensor] = []
    failures: list[str] = []
    logits: dict[str, list[Tensor]] = {stream: [] for stream in models}
    for batch in batches:
        if stop and group.any(stop()):
            raise Stopped("the evaluation was stopped")
        pictures = batch.inputs(group.device)
        if repeat_frame:
            pictures = still(pictures)
        there = (batch.weight > 0).nonzero()[:, 0]
        keys += [batch.keys[i] for i in there.tolist()]
        targets.append(batch.target[there])
        failures += batch.failures
        with torch.inference_mode(), autocast(group.device, precision):
            for stream, model in models.items():
                by_view = torch.cat([model(some) for some in _portions(pictures)])
                logits[stream].append(by_view.unflatten(0, (-1, batch.views)).mean(1).cpu()[there])
    mine = (keys, torch.cat(targets), {s: torch.cat(x) for s, x in logits.items()}, failures)
    return _in_order(group.gather(mine))


def _portions(pictures: Pictures) -> Iterator[Pictures]:
    rgb, flow = (None if x is None else x.split(_AT_ONCE) for x in pictures)
    for number in range(len(rgb or flow or ())):
        yield None if rgb is None else rgb[number], None if flow is None else flow[number]


def still(pictures: Pictures) -> Pictures:
    """The middle frame of each clip repeated to the clip's length; its flow is zero."""
    rgb, flow = pictures
    if rgb is not None:
        middle = rgb.shape[2] // 2
        rgb = rgb[:, :, middle : middle + 1].expand_as(rgb)
    return rgb, None if flow is None else torch.zeros_like(flow)


def merge(found: Sequence[Predictions]) -> Predictions:
    """The predictions of several checkpoints, for the clips that all of them have."""
    keys = tuple(sorted(set.intersection(*(set(p.keys) for p in found))))
    numbers = [{key: number for number, key in enumerate(p.keys)} for p in found]
    places = [torch.tensor([of_key[key] for key in keys], dtype=torch.int64) for of_key in numbers]
    logits = {s: x[at] for p, at in zip(found, places, strict=True) for s, x in p.logits.items()}
    failures = tuple(dict.fromkeys(f for p in found for f in p.failures))
    return Predictions(keys, found[0].target[places[0]], logits, failures)


def score(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Top-1 and top-5 (shares of 1) by stream and for the sum of the logits, and top-1 by class.

    Raises CheckpointError where there is no clip to score.
    """
    if not predictions.keys:
        raise CheckpointError("no clip could be evaluated: the split has no labelled clip that decodes")
    logits = dict(predictions.logits)
    if len(logits) > 1:
        logits["joint"] = torch.stack(list(logits.values())).sum(0)
    elif "both" in logits:
        logits = {"joint": logits["both"]}
    target = predictions.target
    best = {s: x.topk(min(5, x.shape[1]), dim=1).indices == target[:, None] for s, x in logits.items()}
    first = {stream: hits[:, 0].float() for stream, hits in best.items()}
    result = {
        stream: {"top1": first[stream].mean().item(), "top5": hits.any(1).float().mean().item()}
        for stream, hits in best.items()
    }
    by_class = []
    for number, name in enumerate(classes):
        of_class = target == number
        shares = {s: x[of_class].mean().item() if of_class.any() else None for s, x in first.items()}
        by_class.append({"class": name, "clips": int(of_class.sum()), **shares})
    return {
        "clips": len(predictions.keys),
        "failures": list(predictions.failures),
        "chance": 1 / len(classes),
        **result,
        "classes": by_class,
    }


def table(scores: Mapping[str, Any]) -> str:
    """The scores as lines for a person, per cent."""
    lines = [f"{scores['split']}: {scores['clips']} clips, {scores['views']}", "         top-1   top-5"]
    for stream in (s for s in STREAMS if s in scores):
        lines.append(f"{stream:<6} {scores[stream]['top1']:7.1%} {scores[stream]['top5']:7.1%}")
    lines.append(f"chance {scores['chance']:7.1%}")
    return "\n".join(lines)


def main(options: EvaluateOptions, output: Path | None) -> dict[str, Any]:
    """Evaluates in the group that torchrun started, and writes the scores as JSON.

    Without `output`, to evaluate-<split>.json beside the first checkpoint's file.
    """
    with distributed.join() as group:
        named = options.checkpoints
        found = group.broadcast_from_rank0(lambda: checkpoints.resolve(named))  # a run may write newer ones
        options = replace(options, checkpoints=found)
        kind = "-repeat-frame" if options.repeat_frame else ""
        folder = Path(options.checkpoints[0][0]).parent
        part = options.split if options.lists is None else options.lists.test.part
        path = output or folder / f"evaluate-{part}{kind}.json"
        if group.first:
            path.parent.mkdir(parents=True, exist_ok=True)  # now, and not after hours
        scores = evaluate(options, group)
        if group.first:
            run_log.write_json(path, scores)
    return scores


def _predict_all(
    options: EvaluateOptions,
    group: distributed.Group,
    checkpoint: Checkpoint,
    models: Mapping[str, StreamModel],
    rows: Rows,
    views: tuple[int, ...],
) -> Predictions:
    streams = list(models)
    input = replace(checkpoint.input, stream=streams[0] if len(streams) == 1 else "both")
    if not views:
        _check_whole_clips(replace(checkpoint, input=input_for(rows, input)), streams, rows)
    clips, crops = views or (1, 1)
    batches = EvaluationBatches(
        rows,
        input,
        rank=group.rank,
        world=group.world,
        workers=options.workers,
        cache=options.cache,
        frames=input.frames if views else None,
        clips=clips,
        crops=crops,
        pin=group.device.type == "cuda",
    )
    for model in models.values():
        model.to(group.device)
    precision = precision_for(group.device, options.precision)
    return predict(models, batches, group, repeat_frame=options.repeat_frame, precision=precision)


def _check_whole_clips(checkpoint: Checkpoint, streams: Sequence[str], rows: Rows) -> None:
    """Raises ConfigurationError where a network does not take the shortest or the longest clip."""
    lengths = sorted(set(rows.frames[~rows.removed].tolist()))
    for frames in dict.fromkeys(lengths[:1] + lengths[-1:]):
        for stream in streams:
            if why := refusal(checkpoint, stream, frames):
                raise ConfigurationError(
                    f"{checkpoint.network} does not take whole clips of {frames} frames ({why}): "
                    "give --views 10x1"
                )


def _in_order(shares: Sequence[tuple]) -> Predictions:
    keys = [k for share in shares for k in share[0]]
    places = sorted(range(len(keys)), key=keys.__getitem__)
    target = torch.cat([share[1] for share in shares])[places]
    logits = {s: torch.cat([share[2][s] for share in shares])[places] for s in shares[0][2]}
    return Predictions(tuple(keys[i] for i in places), target, logits, tuple(f for s in shares for f in s[3]))
