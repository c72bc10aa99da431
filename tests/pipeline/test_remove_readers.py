"""Readers that are under way when a clip is taken down read on: plain webdataset, and a loader of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from published import Row, key, prepare

from pipeline import dataset
from pipeline.maintenance import remove

ROWS = tuple(Row(f"video_{i:05d}", label=("jump", "walk")[i % 2]) for i in range(6))

WEBDATASET = textwrap.dedent("""
    import glob, json, sys
    import webdataset

    shards = sorted(glob.glob(sys.argv[1] + "/shards/train-*.tar"))
    keys = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        assert len(sample["mp4"]) > 1000 and sample["mp4"].strip(b"\\0"), sample["__key__"]
        keys.append(sample["__key__"])
        if len(keys) == 1:
            print(keys[0], flush=True)
            sys.stdin.readline()
    assert not [name for name in sys.modules if name.split(".")[0] in ("pipeline", "trainer")]
    print(json.dumps(keys))
""")


@pytest.fixture
def root(tmp_path) -> Path:
    prepare(tmp_path / "root", ROWS).publish()
    return tmp_path / "root"


def test_plain_webdataset_reads_on_through_a_takedown(root):
    order = dataset.open(root).index("train")["key"].to_pylist()
    command = [sys.executable, "-c", WEBDATASET, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline().strip() == order[0]
        # One from the shard that the reader has open, one from a shard that it will open.
        gone = [order[1], order[4]]
        remove.remove(root, gone, "reason")
        said, _ = reader.communicate("go on\n", timeout=60)
    assert reader.returncode == 0
    keys = json.loads(said)
    # A file that is open is read to its end as it was; one that is opened later has the clip no more.
    assert keys == [name for name in order if name != gone[1]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        said, _ = reader.communicate("go on\n", timeout=60)
    assert json.loads(said.splitlines()[1]) == [name for name in order if name not in gone]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_in_the_middle_of_an_epoch_reads_on_through_a_takedown(root, workers):
    pytest.importorskip("torch")
    from trainer.data.batches import Input
    from trainer.data.loader import EvaluationBatches, TrainBatches
    from trainer.data.rows import open_rows

    small = Input(stream="both", frames=4, short_side=64, crop=56)
    rows = open_rows([str(root)], "train", small.streams)
    arguments = {"batch_size": 2, "seed": 3, "workers": workers}
    epochs, per_epoch = 4, len(ROWS) // 2
    undisturbed = [b.keys for b in TrainBatches(rows, small, steps=epochs * per_epoch, **arguments)]
    gone = undisturbed[1][0]
    batches, seen = iter(TrainBatches(rows, small, steps=epochs * per_epoch, **arguments)), []
    seen.append(next(batches))
    remove.remove(root, [gone], "reason")
    seen += batches
    assert [batch.keys for batch in seen] == undisturbed  # the order knows nothing of it
    assert not any(batch.failures for batch in seen)  # and it is no failure: another takes its place
    assert all((batch.weight == 1).all() for batch in seen)
    evaluation = list(EvaluationBatches(rows, small, frames=4, workers=workers))
    assert sum(float(batch.weight.sum()) for batch in evaluation) == len(ROWS) - 1
    assert not any(batch.failures for batch in evaluation)
    # A run that is started anew knows: the same order, and no weight where the clip stood.
    again = open_rows([str(root)], "train", small.streams)
    restarted = list(TrainBatches(again, small, steps=epochs * per_epoch, **arguments))
    assert [batch.keys for batch in restarted] == undisturbed
    for batch in restarted:
        expected = np.array([name != gone for name in batch.keys], np.float32)
        assert batch.weight.numpy().tolist() == expected.tolist()


def test_who_opened_the_data_set_before_is_told_to_open_it_again(root):
    opened = dataset.open(root)
    opened.index("train")
    remove.remove(root, [ROWS[0].name], "reason")
    with pytest.raises(dataset.DatasetError, match="was removed since; open the data set again"):
        opened.read(key(ROWS[0].name))
    assert opened.read(key(ROWS[1].name)).label == ROWS[1].label
