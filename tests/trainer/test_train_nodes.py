"""The whole way at once: a data set that the pipeline prepared, an object store, two nodes, and one dies."""

from __future__ import annotations

import shutil
from pathlib import Path

import nodes
import pytest
import small_runs
import two_nodes

from trainer import checkpoint as checkpoints
from trainer.data import sampler
from trainer.data.rows import open_rows

STEPS, BATCH, CLIPS = 12, 2, 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """12 clips in two classes, prepared by the command with flow; without its work store."""
    folder = tmp_path_factory.mktemp("prepared")
    names = [f"node{i:07d}" for i in range(CLIPS)]
    videos = small_runs.make_videos(folder / "videos", names, 1.4)
    rows = [f"{'jump' if i % 2 else 'walk'},{n},0,1.2,train,0" for i, n in enumerate(names)]
    listed = small_runs.make_list(folder / "list.csv", rows)
    call = ["--manifest", listed, "--source", f"dir:{videos}", "--output", folder / "set", "--shard-size", 5]
    done = small_runs.pipeline("prepare", *call)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "set" / "work")
    return folder / "set"


@pytest.mark.slow
def test_a_training_from_an_object_store_outlives_one_of_its_nodes(prepared, tmp_path):
    """Two nodes, then one: the same samples in order, every step there, the checkpoint whole."""
    run, first_log, second_log = tmp_path / "run", tmp_path / "one.log", tmp_path / "two.log"
    settings = ["--network", "i3d", "--frames", "9", "--short-side", "64", "--crop", "48"]
    settings += ["--stream", "both", "--precision", "fp32", "--workers", "1", "--checkpoint-every", "2"]
    settings += ["--batch-size", str(BATCH), "--steps", str(STEPS), "--lr", "0.001"]
    call = ["train", "--data", "s3://media", "--output", str(run), *settings]
    with two_nodes.hosts() as hosts, two_nodes.s3_server(hosts["store"], prepared, tmp_path / "s3.log") as s3:
        endpoint = f"{hosts['one'].address}:{two_nodes.free_port()}"

        def node(name: str, log: Path):
            host = hosts[name]
            elastic = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5", "--rdzv-id=test"]
            meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--local-addr={host.address}"]
            meet += [f"--rdzv-conf=last_call_timeout=15,is_host={'true' if name == 'one' else 'false'}"]
            options = [*elastic, *meet, "--monitor-interval=0.2"]
            environment = {**s3, "GLOO_SOCKET_IFNAME": host.interface}
            return nodes.torchrun(options, call, log, before=host.before, **environment)

        with node("one", first_log) as one:
            with node("two", second_log) as two:
                nodes.wait_for(lambda: len(nodes.records(run)) >= 3, one)
                two.kill()
            one.end(240)
    assert "another rank has ended" in first_log.read_text()
    rows = open_rows([str(prepared)], "train", ("rgb", "flow"))
    wanted = []
    for number in range(STEPS):
        epoch, step = divmod(number, CLIPS // BATCH)
        batch = sampler.global_batch(sampler.epoch_order(0, epoch, CLIPS), step, BATCH)
        wanted.append(sampler.digest(rows.keys.take(batch).to_pylist()))
    found = nodes.records(run)
    assert [r["step"] for r in found] == list(range(1, STEPS + 1))
    assert [r["order"] for r in found] == wanted
    assert all(0 < r["loss"] < 10 for r in found)
    checkpoint = checkpoints.load(run)
    assert checkpoint.steps == STEPS
    assert dict(checkpoint.state) == {"seed": 0, "epoch": STEPS // (CLIPS // BATCH), "step": 0}
