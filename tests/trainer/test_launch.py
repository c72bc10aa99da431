"""Promises of a launch: what torchrun and Slurm repeat is told apart from a call that a person makes anew."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from trainer import distributed, launch, run_setup
from trainer import train as training
from trainer.__main__ import _fails_again
from trainer.checkpoint import CheckpointError
from trainer.configuration import ConfigurationError, resolve
from trainer.data.split_files import Listed, Lists
from trainer.train import RanksDiffer, TrainingError

CALL = "i3d on k400"


@pytest.fixture(autouse=True)
def _neither_torchrun_nor_slurm(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_a_call_without_a_launcher_is_never_a_repetition(tmp_path):
    launch.record(tmp_path, CALL, launch.names())
    assert launch.repeated(tmp_path, CALL) is None


def test_a_launch_of_torchrun_is_known_by_its_id_on_every_node_and_without_one_by_its_agent(
    tmp_path, monkeypatch
):
    for name in ("i3d", "none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        assert launch.repeated(tmp_path, CALL) is None
        launch.record(tmp_path, CALL, launch.names())
        assert launch.repeated(tmp_path, CALL) is not None
        assert launch.repeated(tmp_path, "i3d on k400 with another rate") is None
        with monkeypatch.context() as other:
            other.setattr("os.getppid", lambda: 1)  # another node's agent, or a later one here
            assert (launch.repeated(tmp_path, CALL) is None) == (name == "none")


def test_a_slurm_job_is_repeated_when_slurm_has_queued_it_again_and_not_by_a_second_call_in_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    launch.record(tmp_path, CALL, launch.names())
    assert launch.repeated(tmp_path, CALL) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert launch.repeated(tmp_path, CALL) == "Slurm job 77"


def test_a_record_that_is_none_is_another_launch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "i3d")
    for text in ("", "[]", '{"names": 3, "call": "i3d on k400"}'):
        (tmp_path / "launch.json").write_text(text)
        assert launch.repeated(tmp_path, CALL) is None


LAUNCHER = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
shell = '"$0" -c "from trainer import launch; $1"; echo then'
for _ in range(2):
    subprocess.run(["bash", "-c", shell, sys.executable, sys.argv[-1]])
"""


def behind_a_shell(launcher: Path, code: str) -> subprocess.CompletedProcess:
    """Python's `code` twice, in the shell of a `launcher` that ends with 1 and a word when it is asked to."""
    launcher.write_text(LAUNCHER)
    call = [sys.executable, "-u", launcher, "torchrun", code]
    return subprocess.run(call, capture_output=True, text=True, timeout=60)


def test_torchrun_is_asked_to_end_through_a_shell_between_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    asked = behind_a_shell(tmp_path / "torchrun", "launch.end()")
    assert (asked.returncode, asked.stderr) == (1, "asked to end\n")
    other = behind_a_shell(tmp_path / "init", "launch.end()")
    assert (other.returncode, other.stderr, other.stdout) == (0, "", "then\n" * 2)


def test_a_launch_without_an_id_is_the_same_in_every_shell_that_its_agent_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    said = behind_a_shell(tmp_path / "torchrun", "print(launch.names())").stdout.splitlines()
    assert said[0].startswith("['torchrun ")
    assert said[0] == said[2]


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (("/env/bin/torchrun", "-m", "trainer"), True),
        (("/usr/bin/python3.11", "/env/bin/torchrun", "-m", "trainer"), True),
        (("python3", "-u", "-W", "ignore", "-m", "torch.distributed.run", "-m", "trainer"), True),
        (("python", "-m", "torch.distributed.launch", "-m", "trainer"), True),
        (("bash", "-c", "torchrun -m trainer"), False),
        (("tini", "--", "torchrun"), False),
        (("python", "-m", "pytest", "-k", "torchrun"), False),
    ],
)
def test_torchrun_is_known_by_the_program_that_it_is(words, is_one):
    assert bool(launch._TORCHRUN.match("".join(f"{word}\0" for word in words).encode())) == is_one


def test_other_lists_are_another_call(tmp_path):
    def call(*train: str) -> str:
        lists = Lists(Listed("train", frozenset(train)), Listed("test", frozenset({"c"})))
        return run_setup.call_of(training.TrainOptions(resolve(None, {}), ("data",), tmp_path, lists=lists))

    assert call("a", "b") == call("b", "a")
    assert call("a", "b") != call("a", "d")


def test_what_the_first_rank_could_not_read_is_tried_again_by_all(monkeypatch):
    def unreadable() -> None:
        try:
            raise OSError(116, "Stale file handle")
        except OSError as error:
            raise CheckpointError("RUN/checkpoint-000000001.pt cannot be read") from error

    sent: list[bytes] = []

    def broadcast(values: list) -> None:
        if sent:
            values[:] = pickle.loads(sent[0])
        else:
            sent.append(pickle.dumps(values))

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    for rank in (0, 1):
        group = distributed.Group(rank, 2, torch.device("cpu"))
        with pytest.raises(CheckpointError) as raised:
            group.broadcast_from_rank0(unreadable)
        assert not _fails_again(raised.value)


def test_ranks_that_meet_again_read_nothing_of_those_that_met_before_in_the_same_store():
    store = HashStore()
    met = []
    for ranks in ((2, 1, 0), (0, 1, 2), (1, 2, 0)):  # in the order of their coming
        store.set("ask/1", "of one that died before it was told")
        with ThreadPoolExecutor(3) as threads:
            coming = [threads.submit(distributed._apart, store, rank, 3) for rank in ranks]
            apart = [one.result(timeout=60) for one in coming]
        assert not any(one.check(["address"]) for one in apart)
        apart[0].set("address", "here")
        met.append([one.get("address") for one in apart])
    assert met == [[b"here"] * 3] * 3


def test_ranks_do_not_wait_for_ever_for_one_that_does_not_come(monkeypatch):
    monkeypatch.setattr(distributed, "_PATIENCE", 0.2)
    for rank in (0, 1):
        with pytest.raises(distributed.RankLost, match="did not come"):
            distributed._apart(HashStore(), rank, 2)


def test_what_a_node_may_see_in_a_moment_is_tried_again_and_a_wrong_call_is_not():
    unreadable = CheckpointError("RUN/checkpoint-000000001.pt cannot be read (Stale file handle)")
    unreadable.__cause__ = OSError(116, "Stale file handle")
    for error, again in (
        (RanksDiffer("The ranks find different checkpoints in RUN"), True),
        (unreadable, True),
        (CheckpointError("RUN/checkpoint-000000001.pt is damaged"), False),
        (TrainingError("The loss is nan at step 3"), False),
        (ConfigurationError("[run]: batch_size is 0"), False),
    ):
        assert _fails_again(error) != again
