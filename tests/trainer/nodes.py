"""Trainers under torchrun for the tests: launched, watched by what they record, killed as by a power cut."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import small_network

PROGRAM = str(Path(small_network.__file__))
MARK = "QUOVADIS_TEST_NODE"


@dataclass
class Node:
    """A torchrun agent with its workers and their loaders."""

    process: subprocess.Popen
    log: Path
    mark: str = field(repr=False)

    def kill(self) -> None:
        """SIGKILL to every process of the node, wherever it put itself."""
        while found := self._processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.02)
        self.process.wait(10)

    def kill_rank(self, rank: int) -> None:
        """SIGKILL to one worker, as when memory runs out; its agent and the others stay."""
        (worker,) = [
            pid
            for pid in map(
                int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            )
            if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        ]
        os.kill(worker, signal.SIGKILL)

    def end(self, seconds: float) -> None:
        """Wait until it ends by itself, which must be in time and with 0."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        assert code == 0, f"ended with {code}:\n{self.log.read_text()[-4000:]}"

    def _processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not zombie and f"{MARK}={self.mark}\0".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


@contextlib.contextmanager
def torchrun(
    options: Sequence[str], call: Sequence[str], log: Path, *, before: Sequence[str] = (), **environment: str
) -> Iterator[Node]:
    """The trainer with the small network under ``torchrun OPTIONS``; killed where the block leaves it.

    Args:
        before: a command that runs another, such as ``ip netns exec NAME``.
        environment: for the node's processes.
    """
    mark = secrets.token_hex(8)
    launch = [*before, sys.executable, "-m", "torch.distributed.run", *options, PROGRAM, *call]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark, **environment}
    with log.open("a") as stream:
        process = subprocess.Popen(launch, stdout=stream, stderr=stream, env=settings)
    node = Node(process, log, mark)
    try:
        yield node
    finally:
        node.kill()


def records(run: Path) -> list[dict]:
    """The whole lines of RUN/metrics.jsonl."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(condition: Callable[[], bool], node: Node, seconds: float = 120) -> None:
    """Until the condition holds; the node must not end before."""
    end = time.monotonic() + seconds
    while not condition():
        assert node.process.poll() is None, node.log.read_text()[-4000:]
        assert time.monotonic() < end, node.log.read_text()[-4000:]
        time.sleep(0.02)
