"""Batches of evaluation: each clip once over all ranks, whole or in views."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import tiny_dataset
import torch

from trainer.data.batches import Batch, Input
from trainer.data.loader import EvaluationBatches
from trainer.data.rows import Rows, RowsError, open_rows

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

INPUT = Input(stream="both", frames=16, short_side=64, crop=48)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """7 clips of three lengths."""
    return tiny_dataset.publish(tmp_path_factory.mktemp("data") / "set", {"val": 7}, frames=(40, 12, 25))


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """A data set of one's own, to be damaged."""
    return Path(shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("work")))


def rows_of(root: Path) -> Rows:
    return open_rows([str(root)], "val", INPUT.streams)


def evaluate(rows: Rows, world: int = 1, **options) -> list[list[Batch]]:
    return [
        list(EvaluationBatches(rows, INPUT, rank=rank, world=world, batch_size=2, **options))
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_sees_each_clip_exactly_once_over_all_ranks(root, world):
    rows = rows_of(root)
    ranks = evaluate(rows, world=world)
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == len(EvaluationBatches(rows, INPUT, batch_size=2, world=world))
    seen = {}
    for batch in itertools.chain.from_iterable(ranks):
        for key, target, weight in zip(batch.keys, batch.target.tolist(), batch.weight.tolist(), strict=True):
            if weight:
                assert key not in seen
                seen[key] = target
    assert seen == dict(zip(rows.keys.to_pylist(), rows.target.tolist(), strict=True))


def test_whole_clips_are_evaluated_from_first_to_last_frame(root):
    rows = rows_of(root)
    length = dict(zip(rows.keys.to_pylist(), rows.frames.tolist(), strict=True))
    (batches,) = evaluate(rows, workers=1)
    for batch in batches:
        assert {length[key] for key in batch.keys} == {batch.rgb.shape[2]} == {batch.flow.shape[2]}
    assert {batch.rgb.shape[2] for batch in batches} == {40, 12, 25}


def test_what_was_removed_or_cannot_be_decoded_does_not_count(copy):
    keys = rows_of(copy).keys.to_pylist()
    tiny_dataset.remove(copy, "val", {keys[0]})
    tiny_dataset.spoil(copy, "val", [keys[1]])
    (batches,) = evaluate(rows_of(copy), max_failures=0.5)
    weights = {k: w for b in batches for k, w in zip(b.keys, b.weight.tolist(), strict=True)}
    assert weights == {key: float(key != keys[1]) for key in keys[1:]}
    assert [f.split(":")[0] for b in batches for f in b.failures] == [keys[1]]


def test_views_lie_side_by_side(root):
    (batches,) = evaluate(rows_of(root), frames=8, clips=2, crops=3)
    assert batches[0].views == 6
    assert batches[0].rgb.shape == (12, 3, 8, 48, 48)
    assert len(batches[0].target) == 2
    (centre,) = evaluate(rows_of(root), frames=8)
    three = next(iter(evaluate(rows_of(root), frames=8, crops=3)))
    assert torch.equal(three[0].rgb[1::3], centre[0].rgb)
    with pytest.raises(RowsError, match="1 clip when whole"):
        evaluate(rows_of(root), clips=2)
