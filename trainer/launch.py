"""Which launch a process belongs to: whether torchrun or Slurm repeats a call, or a person makes it anew.

The arguments are the same in both, so a RUN that is started over keeps the names of the launch that did it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path

from trainer.recording import LAUNCH, write_json


def names() -> list[str]:
    """What this process's launch is called, which its repetitions share; none outside torchrun and Slurm."""
    found = []
    if run := os.environ.get("TORCHELASTIC_RUN_ID"):
        # "none" is what torchrun calls a launch without a name: our parent, its agent, stands for it then.
        found.append(f"torchrun {run if run != 'none' else _agent()}")
    if job := os.environ.get("SLURM_JOB_ID"):
        found.append(f"Slurm job {job}")
    return found


def record(run: Path, call: str, launch: Iterable[str]) -> None:
    """Keeps in RUN that the `launch` of these names started it over, with a `call` of these settings."""
    write_json(run / LAUNCH, {"names": sorted(set(launch)), "call": call})


def repeated(run: Path, call: str) -> str | None:
    """The name of this launch where RUN was started over by it, with the same call; else None."""
    try:
        kept = json.loads((run / LAUNCH).read_text(encoding="utf-8"))
        theirs = set(kept["names"]) if kept["call"] == call else set()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # else a person's second call in one job
    mine = [name for name in names() if requeued or not name.startswith("Slurm")]
    return next((name for name in mine if name in theirs), None)


def end() -> None:
    """Asks torchrun, where it is our parent and would start us again, to end with what it has.

    For failures that every repetition would meet again. No exit code tells torchrun so, but SIGTERM ends it.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        os.kill(os.getppid(), signal.SIGTERM)


def _agent() -> str:
    """The machine, number and start of the parent process."""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]  # see proc(5), 22
    except OSError:  # no Linux
        started = ""
    return f"{socket.gethostname()} {parent} {started}"
