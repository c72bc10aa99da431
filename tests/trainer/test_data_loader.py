"""Training's batches: the same for all world sizes, workers and restarts; honest about what cannot be had."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_dataset
import torch

from trainer.data.batches import Batch, Input, by_step
from trainer.data.loader import TooManyFailures, TrainBatches
from trainer.data.reading import ReadError
from trainer.data.rows import Rows, RowsError, open_rows

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

INPUT = Input(stream="both", frames=16, short_side=64, crop=48)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """11 clips of 12 to 40 frames in three shards."""
    folder = tmp_path_factory.mktemp("data")
    return tiny_dataset.publish(folder / "set", {"train": 11}, frames=(40, 12, 25))


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """A data set of one's own, to be damaged."""
    return Path(shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("work")))


def rows_of(root: Path | str, split: str = "train", input: Input = INPUT, **options) -> Rows:
    return open_rows([str(root)], split, input.streams, **options)


def take(rows: Rows, steps: int, input: Input = INPUT, **options) -> list[Batch]:
    return list(TrainBatches(rows, input, **{"batch_size": 4, "seed": 5, "steps": steps, **options}))


def same(one: Batch, other: Batch) -> bool:
    tensors = ("rgb", "flow", "flow_scale", "target", "weight")
    plain = ("epoch", "step", "keys", "total_weight", "failures")
    return all(getattr(one, n) == getattr(other, n) for n in plain) and all(
        torch.equal(getattr(one, n), getattr(other, n)) for n in tensors
    )


def joined(parts: Iterable[Batch]) -> Batch:
    """The shares of all ranks as the batch of one."""
    parts = list(parts)
    tensors = ("rgb", "flow", "flow_scale", "target", "weight")
    return replace(parts[0], **{n: torch.cat([getattr(p, n) for p in parts]) for n in tensors})


@pytest.fixture(scope="module")
def reference(root) -> list[Batch]:
    """Five steps of four clips, over two epochs and a bit, by one rank without workers."""
    return take(rows_of(root), 5)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_shares_of_any_ranks_and_workers_join_to_the_batches_of_one(root, reference, world, workers):
    rows = rows_of(root)
    ranks = [take(rows, 5, rank=rank, world=world, workers=workers) for rank in range(world)]
    found = list(map(joined, zip(*ranks, strict=True)))
    assert len(found) == 5
    assert all(map(same, found, reference))


@pytest.mark.parametrize(("done", "workers"), [(1, 0), (2, 1), (3, 3)])
def test_a_restart_goes_on_exactly_where_it_was(root, reference, done, workers):
    last = reference[done - 1]
    batches = TrainBatches(rows_of(root), INPUT, batch_size=4, seed=5)
    after = divmod(last.epoch * batches.steps_per_epoch + last.step + 1, batches.steps_per_epoch)
    found = take(rows_of(root), 5 - done, start=after, workers=workers)
    assert all(map(same, found, reference[done:]))


def test_an_epoch_is_the_whole_batches_and_the_next_is_another(reference):
    assert [(b.epoch, b.step) for b in reference] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert len({*reference[0].keys, *reference[1].keys}) == 8
    assert reference[0].keys != reference[2].keys


def test_the_streams_of_a_clip_share_window_crop_and_mirroring(root):
    """Two textures, each u and v of the flow, that are also the red and green of the picture."""

    def pattern(clip: int, frame: int) -> np.ndarray:
        y, x = np.mgrid[:64, :96]
        return np.stack([(x + 3 * frame) % 64 - 32, (y + 2 * frame) % 48 - 24], -1).astype(np.float32) / 2

    def picture(clip: int, frame: int) -> np.ndarray:
        return np.dstack([128 + 4 * pattern(clip, frame), np.full((64, 96), 128)]).astype(np.uint8)

    folder = root.parent / "pattern"
    tiny_dataset.publish(folder, {"train": 4}, picture=picture, motion=pattern)
    (batch,) = take(rows_of(folder), 1, replace(INPUT, frames=8))
    rgb, flow = batch.inputs()
    assert set(np.sign(batch.flow_scale[:, 0].tolist())) == {-1, 1}
    for clip in range(4):
        sign = torch.sign(batch.flow_scale[clip])[:, None, None, None]
        red_green = (rgb[clip, :2] * 127.5 + 127.5 - 128) / 4  # pixels, before mirroring negated u
        error = (flow[clip] * 20 * sign - red_green).abs().flatten().median()
        assert error < 0.6  # any other window, square or side is wrong by pixels


def test_rgb_and_flow_are_fed_between_minus_one_and_one(reference):
    rgb, flow = reference[0].inputs()
    assert rgb.dtype == flow.dtype == torch.float32
    assert -1 <= rgb.min() < -0.5
    assert 0.5 < rgb.max() <= 1
    for clip, target in enumerate(reference[0].target.tolist()):
        u, v = tiny_dataset.MOTIONS[target]
        mirror = -1 if reference[0].flow_scale[clip, 0] < 0 else 1
        assert flow[clip].mean((1, 2, 3)).tolist() == pytest.approx([mirror * u / 20, v / 20], abs=0.01)


def test_bytes_become_inputs_exactly():
    ends = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).reshape(1, 1, 4, 1, 1)
    batch = Batch(
        epoch=0,
        step=0,
        keys=("k",),
        rgb=ends.expand(1, 3, 4, 1, 1),
        flow=ends.expand(1, 2, 4, 1, 1),
        flow_scale=torch.tensor([[-1.0, 0.5]]),
        target=torch.zeros(1, dtype=torch.int64),
        weight=torch.ones(1),
        total_weight=1.0,
    )
    rgb, flow = batch.inputs()
    assert rgb[0, 0].flatten().tolist() == pytest.approx([-1, 1 / 127.5 - 1, 128 / 127.5 - 1, 1], abs=1e-6)
    assert flow[0, 0].flatten().tolist() == [1, 1, 0, -1]
    assert flow[0, 1].flatten().tolist() == pytest.approx([-128 / 254, -0.5, 0, 0.5])


def test_one_stream_reads_and_decodes_that_one_only(copy):
    input = replace(INPUT, stream="flow")
    whole = take(rows_of(copy, input=input), 2, input)
    tiny_dataset.spoil(copy, "train", rows_of(copy).keys.to_pylist(), "rgb")
    found = take(rows_of(copy, input=input), 2, input)
    assert [b.rgb for b in found] == [None, None]
    assert all(torch.equal(a.flow, b.flow) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize(
    ("world", "workers", "size", "lengths"),
    [(1, 0, 3, [2, 2]), (1, 2, 1, [1, 1, 1, 1]), (1, 0, 9, [4]), (3, 1, 1, [1, 1, 1, 1])],
)
def test_no_more_than_a_micro_batch_comes_at_a_time_and_all_is_as_in_one(
    root, reference, world, workers, size, lengths
):
    settings = {"world": world, "micro_batch": size, "workers": workers}
    ranks = [take(rows_of(root), 3, rank=rank, start=(0, 1), **settings) for rank in range(world)]
    for number, wanted in enumerate(reference[1:4]):
        steps = [list(next(itertools.islice(by_step(parts), number, None))) for parts in ranks]
        assert [len(p.target) for parts in steps for p in parts] == lengths
        for parts in steps:
            assert [p.first for p in parts] == [
                sum(len(q.target) for q in parts[:i]) for i in range(len(parts))
            ]
            assert [p.last for p in parts] == [False] * (len(parts) - 1) + [True]
        assert same(joined(itertools.chain(*steps)), wanted)
    assert all(len(list(by_step(parts))) == 3 for parts in ranks)


def test_loading_draws_nothing_from_the_generators_that_dropout_uses(root):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    take(rows_of(root), 1, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_colour_jitter_changes_rgb_by_clip_and_neither_flow_nor_cuts_nor_any_other_draw(root, reference):
    input = replace(INPUT, colour_jitter=(0.4, 0.0, 0.0, 0.0))
    found = take(rows_of(root, input=input), 2, input)
    again = take(rows_of(root, input=input), 2, input, workers=1)
    assert all(map(same, found, again))
    ratios = []
    for batch, plain in zip(found, reference, strict=False):
        assert same(replace(batch, rgb=plain.rgb), plain)
        ratios += (batch.rgb.float().mean((1, 2, 3, 4)) / plain.rgb.float().mean((1, 2, 3, 4))).tolist()
    assert all(0.59 < ratio < 1.41 for ratio in ratios)
    assert max(ratios) - min(ratios) > 0.2


# What cannot be had


def test_a_removed_clip_keeps_its_place_with_weight_zero(copy, reference):
    gone = reference[0].keys[2]
    tiny_dataset.remove(copy, "train", {gone})
    tiny_dataset.spoil(copy, "train", [gone])
    found = take(rows_of(copy), 5)
    assert [b.keys for b in found] == [b.keys for b in reference]
    assert found[0].weight.tolist() == [1, 1, 0, 1]
    assert found[0].total_weight == 3
    assert not any(b.failures for b in found)
    for place in (0, 1, 3):
        assert torch.equal(found[0].rgb[place], reference[0].rgb[place])


def test_an_undecodable_clip_is_logged_and_replaced_the_same_way_everywhere(copy, reference, caplog):
    bad = reference[0].keys[1]
    tiny_dataset.spoil(copy, "train", [bad])
    with caplog.at_level(logging.WARNING):
        found = take(rows_of(copy), 2, max_failures=0.5)
    assert [b.keys for b in found] == [b.keys for b in reference[:2]]
    assert found[0].weight.tolist() == [1, 1, 1, 1]
    assert found[0].failures[0].startswith(f"{bad}: ")
    assert bad in caplog.text
    assert not torch.equal(found[0].rgb[1], torch.zeros_like(found[0].rgb[1]))
    ranks = [take(rows_of(copy), 1, rank=r, world=4, workers=1, max_failures=0.5) for r in range(4)]
    again = joined(rank[0] for rank in ranks)
    assert torch.equal(again.rgb, found[0].rgb)
    assert torch.equal(again.target, found[0].target)


def test_a_data_set_of_which_most_is_removed_goes_on_with_what_is_left(copy):
    left = set(rows_of(copy).keys.to_pylist()[:2])
    tiny_dataset.remove(copy, "train", {key for key in rows_of(copy).keys.to_pylist() if key not in left})
    rows = rows_of(copy)
    found = take(rows, 60, batch_size=8)
    assert {key for b in found for key, w in zip(b.keys, b.weight, strict=True) if w} == left
    classes = {int(rows.target[rows.keys.to_pylist().index(key)]) for key in left}
    assert {int(t) for b in found for t in b.target} == classes


def test_a_run_with_more_failures_than_allowed_stops_and_says_how_many(copy):
    keys = rows_of(copy).keys.to_pylist()
    tiny_dataset.spoil(copy, "train", keys[:6])
    with pytest.raises(TooManyFailures, match=r"clips were unreadable, more than 1\.0%.*pipeline verify"):
        take(rows_of(copy), 100)
    tiny_dataset.remove(copy, "train", set(keys[6:]) - {keys[10]})
    tiny_dataset.spoil(copy, "train", [keys[10]])
    with pytest.raises(ReadError, match="nor any of the clips drawn in its place"):
        take(rows_of(copy), 100, max_failures=1.0, workers=1)


def test_a_missing_shard_stops_the_run_with_one_sentence(copy):
    shard = copy / "shards/train-00000-00001.tar"
    rows = rows_of(copy)
    shard.unlink()
    with pytest.raises(RowsError, match=r"train-00000-00001\.tar is missing: copy it again"):
        rows_of(copy)
    with pytest.raises(ReadError, match=r"train-00000-00001\.tar is missing: bring it back"):
        take(rows, 100, workers=1)


def test_a_truncated_shard_is_noticed_before_and_during_a_run(copy):
    rows = rows_of(copy)
    shard = copy / "shards/train-00000-00002.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(RowsError, match="has 2000 bytes instead of"):
        rows_of(copy)
    with pytest.raises(TooManyFailures, match="ends before it does"):
        take(rows, 100, max_failures=0)


def test_an_index_of_another_state_is_not_trained_on(copy):
    rows = rows_of(copy)
    shifted = {stream: np.roll(offsets, 1) for stream, offsets in rows.offsets.items()}
    with pytest.raises(TooManyFailures, match="the index is of another state"):
        take(replace(rows, offsets=shifted), 100, max_failures=0)


@pytest.mark.parametrize(("column", "value"), [("frames", 0), ("width", 2**30), ("class_index", 4)])
def test_an_index_with_impossible_numbers_is_refused(copy, column, value):
    path = copy / "index/train-00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(RowsError, match=f"has a {column} outside"):
        rows_of(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, "smaller batch size"),
        ({"batch_size": 2, "world": 3}, "larger batch size"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused(root, options, message):
    with pytest.raises(RowsError, match=message):
        TrainBatches(rows_of(root), INPUT, **options)


def test_data_that_do_not_fit_the_network_are_refused(root, tmp_path):
    with pytest.raises(RowsError, match=r"flow up to 20\.0 pixels"):
        TrainBatches(rows_of(root), replace(INPUT, flow_bound=15.0), batch_size=2)
    with pytest.raises(RowsError, match="no test clips"):
        rows_of(root, "test")
    with pytest.raises(RowsError, match="absent"):
        rows_of(tmp_path / "nothing")
    plain = tiny_dataset.publish(tmp_path / "rgb", {"train": 2}, frames=(12,), flow=False)
    with pytest.raises(RowsError, match="prepare it with --flow tvl1"):
        rows_of(plain)
    assert take(rows_of(plain, input=Input()), 1, replace(INPUT, stream="rgb"), batch_size=2)


# Workers


def test_workers_end_with_the_iteration_that_made_them(root):
    batches = iter(TrainBatches(rows_of(root), INPUT, batch_size=4, workers=2))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    batches.close()
    for worker in workers:
        worker.join(10)
    assert not multiprocessing.active_children()


def test_a_spawned_worker_makes_the_same_batches(root, reference):
    """Where processes are not forked (macOS) all that a worker needs is sent to it."""
    batches = TrainBatches(rows_of(root), INPUT, batch_size=4, seed=5)
    sent = pickle.loads(pickle.dumps(batches))
    assert same(next(iter(sent)), reference[0])


@pytest.mark.slow
def test_workers_end_when_their_trainer_is_killed(root):
    code = f"""
import multiprocessing, time
from trainer.data.batches import Input
from trainer.data.loader import TrainBatches
from trainer.data.rows import open_rows
input = Input(stream="both", frames=16, short_side=64, crop=48)
rows = open_rows([{str(root)!r}], "train", input.streams)
batches = iter(TrainBatches(rows, input, batch_size=4, workers=2))
next(batches)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        trainer.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


# Several data sets, generations, stores


def test_a_new_generation_changes_nothing_for_a_run_that_pinned_its_own(copy, reference):
    pinned = rows_of(copy).generations
    tiny_dataset.publish(copy, {"train": 3}, frames=(30,), generation="00001", append=True)
    assert len(rows_of(copy)) == 14
    assert all(map(same, take(rows_of(copy, generations=pinned), 5), reference))
    with pytest.raises(RowsError, match="no generation"):
        rows_of(copy, generations=[["00007"]])


def test_several_data_sets_are_one_when_their_classes_agree(root, tmp_path):
    other = tiny_dataset.publish(tmp_path / "other", {"train": 3}, frames=(30,), generation="00002")
    rows = open_rows([str(root), str(other)], "train", INPUT.streams)
    assert len(rows) == 14
    keys = set(itertools.chain.from_iterable(b.keys for b in take(rows, 7, batch_size=2)))
    assert keys == set(rows.keys.to_pylist())
    meta = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**meta, "classes": ["a", "b", "c", "d"]}))
    with pytest.raises(RowsError, match="differ in their classes"):
        open_rows([str(root), str(other)], "train", INPUT.streams)


def test_an_object_store_gives_the_batches_of_the_local_disk(root, reference):
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(root), "/loader-test", recursive=True)
    try:
        found = take(rows_of("memory://loader-test"), 2)
        assert all(map(same, found, reference[:2]))
    finally:
        store.rm("/loader-test", recursive=True)
