"""Tells whether torchrun or Slurm repeats a call, or a person makes it again.

Both have the same arguments, so a RUN that was started over records the names of its launch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterable
from pathlib import Path

from trainer.run_log import LAUNCH, write_json

_TORCHRUN = re.compile(
    rb"""([^\0]*/)? (torchrun | python[^\0/]*\0           # a program of that name, or Python, whose
    (-[^\0]*\0 | (?<=-[WX]\0)[^\0]*\0)*                 # options come before
    (([^\0]*/)?torchrun | torch\.distributed\.(run|launch))) \0  # the script, or the module after -m
    """,
    re.VERBOSE,
)
"""The command line of torchrun, not of what only names it: a shell, ``timeout 1h torchrun``, an init."""


def names() -> list[str]:
    """Names of this process's launch, shared by its repetitions; none outside torchrun and Slurm."""
    found = []
    if run := os.environ.get("TORCHELASTIC_RUN_ID"):
        # "none" is what torchrun calls a launch without a name: its agent stands for it then.
        found.append(f"torchrun {run if run != 'none' else _agent()}")
    if job := os.environ.get("SLURM_JOB_ID"):
        found.append(f"Slurm job {job}")
    return found


def record(run: Path, call: str, launch: Iterable[str]) -> None:
    """Records in RUN that the `launch` of these names started it over with `call`."""
    write_json(run / LAUNCH, {"names": sorted(set(launch)), "call": call})


def repeated(run: Path, call: str) -> str | None:
    """This launch's name where it started RUN over with the same call; else None."""
    try:
        kept = json.loads((run / LAUNCH).read_text(encoding="utf-8"))
        theirs = set(kept["names"]) if kept["call"] == call else set()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # else a person's second call in one job
    mine = [name for name in names() if requeued or not name.startswith("Slurm")]
    return next((name for name in mine if name in theirs), None)


def end() -> None:
    """Ends the torchrun that would restart this process, after a failure that every restart would repeat.

    No exit code tells torchrun so, but SIGTERM ends it.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and (agent := _torchrun()):
        os.kill(agent, signal.SIGTERM)


def _agent() -> str:
    """The machine, number and start of the process that starts us again: torchrun, else our parent."""
    agent = _torchrun() or os.getppid()
    try:
        started = _status(agent)[19]
    except OSError:  # no Linux
        started = ""
    return f"{socket.gethostname()} {agent} {started}"


def _torchrun() -> int | None:
    """The number of the nearest torchrun above this process, be it behind a shell or another program.

    None where it is gone, and another took its child, or where there is no /proc.
    """
    process = os.getppid()
    try:
        while process and not _TORCHRUN.match(Path(f"/proc/{process}/cmdline").read_bytes()):
            process = int(_status(process)[1])
    except OSError:
        return None
    return process or None


def _status(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, see proc(5): state, parent, ..., [19] the start."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
