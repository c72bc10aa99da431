"""Predicts the classes of videos, and of each moment for an annotated copy.

A video is read as the pipeline does and fed as ``evaluate`` feeds a whole clip; to a network with
`test_views` in clips of the training length, one after another.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.media import whole_video
from pipeline.outcome import Failed
from pipeline.sources import named_video
from trainer import annotation, ensemble, frame_stream
from trainer.choices import ConfigurationError
from trainer.ensemble import Clip, Ensemble
from trainer.frame_stream import Frame
from trainer.options import PredictOptions
from trainer.stream_models import precision_for

PIECE, LEAST = 10, 1
"""Seconds that are seen at once, of a Kinetics clip, and of the shortest piece.

The logits of a longer video's pieces are averaged; of a shorter video the last frame is repeated.
"""


@dataclass(frozen=True)
class Prediction:
    """Probabilities of one video by class, most probable first, and those of its moments where asked for."""

    video: str
    frames: int
    rate: int
    classes: tuple[tuple[str, float], ...]
    moments: tuple[tuple[tuple[float, float], tuple[tuple[str, float], ...]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "video": self.video,
            "seconds": self.frames / self.rate,
            "classes": _plain(self.classes),
            "moments": [
                {"start": start, "end": end, "classes": _plain(known)} for (start, end), known in self.moments
            ],
        }


def predict(options: PredictOptions) -> Iterator[Prediction | str]:
    """The predictions of all videos in their order; of one that cannot be read the reason.

    Raises CheckpointError, ConfigurationError; that too where a video is not there.
    """
    for name in options.videos:
        if named_video.source_of(name) is None and not Path(name).is_file():
            raise ConfigurationError(f"{name} is no file, address or YouTube id: name a video")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = ensemble.load(options.checkpoints).to(device)
    look = _Look(options, models, device)
    for name in options.videos:
        try:
            with tempfile.TemporaryDirectory(prefix="quovadis-") as folder:
                path = named_video.local_file(name, Path(folder))
                prediction = look.at(name, path)
                if options.annotate:
                    write_annotated(path, options.annotate, prediction)
            yield prediction
        except Failed as error:
            yield error.reason


class _Look:
    """The models with what a call asks of them."""

    def __init__(self, options: PredictOptions, models: Ensemble, device: torch.device):
        self.options, self.models, self.device = options, models, device
        self.precision = precision_for(device, options.precision)
        self.piece, self.least = PIECE * models.rate, LEAST * models.rate  # frames
        # A network that takes, or is published for, one length only sees the video in clips of that.
        one_length = any(m.input.test_views for m in models.members.values())
        self.whole = not (one_length or models.refusal(self.least) or models.refusal(self.piece))
        self.moment = min(max(models.span, self.least), self.piece)  # frames

    def at(self, name: str, path: Path) -> Prediction:
        threads = self.options.threads or os.cpu_count() or 1
        shown = frame_stream.of_file(path, self.models.stream_inputs, threads)
        total, frames = np.zeros(len(self.models.classes)), 0
        held: list[Frame] = []
        moments: list[np.ndarray] = []

        def with_moments() -> Iterator[Frame]:
            for frame in shown.frames:
                yield frame
                if self.options.annotate:
                    held.append(frame)
                    if len(held) == self.moment:
                        moments.append(self._logits(held, shown.scale))
                        held.clear()

        for piece in frame_stream.pieces(with_moments(), self.piece, self.least):
            total += len(piece) * self._logits(piece, shown.scale)
            frames += len(piece)
        if held and (len(held) >= self.least or not moments):
            moments.append(self._logits(held, shown.scale))
        rate = self.models.rate
        ends = [min((i + 1) * self.moment, frames) for i in range(len(moments))]
        ends[-1:] = [frames] if moments else []
        spans = [(i * self.moment / rate, end / rate) for i, end in enumerate(ends)]
        known = tuple((span, self._best(m)) for span, m in zip(spans, moments, strict=True))
        return Prediction(name, frames, rate, self._best(total / frames), known)

    def _logits(self, frames: Sequence[Frame], scale: tuple[float, float]) -> np.ndarray:
        """The mean logits of a run of frames, float32 (num_classes,)."""
        inputs, span = self.models.stream_inputs, self.models.span
        if self.whole:
            length = max(self.least, len(frames))
            clips: list[Clip] = [next(frame_stream.windows(iter(frames), length, 1, inputs))]
        else:
            clips = list(frame_stream.windows(iter(frames), span, span, inputs))
        scales = np.full((1, 2), scale, np.float32)
        each = [self.models.logits([clip], scales, self.device, self.precision) for clip in clips]
        return np.concatenate(each).mean(axis=0)

    def _best(self, logits: np.ndarray) -> tuple[tuple[str, float], ...]:
        """The `top` classes with their probabilities."""
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        order = np.argsort(-odds, kind="stable")[: self.options.top]
        return tuple((self.models.classes[i], float(odds[i])) for i in order)


def write_annotated(path: Path, out: Path, prediction: Prediction) -> None:
    """Writes the video at `path` to `out` with each moment's classes laid over it. Raises Failed."""

    def labels(width: int, height: int) -> Iterator[bytes]:
        for span, classes in prediction.moments:
            yield annotation.label((width, height), span, classes)

    spans = [span for span, _ in prediction.moments]
    seconds = spans[1][0] if len(spans) > 1 else spans[0][1]
    whole_video.annotate(path, out, labels, seconds, rate=prediction.rate)


def _plain(classes: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": probability} for name, probability in classes]
