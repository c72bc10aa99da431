"""What a lock object says: who holds it and since when; and whether that process is still there."""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime


def holder() -> bytes:
    """This process, this moment, and a word that no other holder has, as a line of JSON."""
    about = {
        "host": os.uname().nodename,
        "machine": _machine(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "started": _started(os.getpid()),
        "token": secrets.token_hex(8),
    }
    return json.dumps(about, sort_keys=True).encode() + b"\n"


def describe(content: bytes) -> str:
    """For a person: ``held by process 42 on node-7 since 2026-11-21T10:00:00+00:00``."""
    try:
        about = json.loads(content)
        return f"held by process {about['pid']} on {about['host']} since {about['since']}"[:200]
    except (ValueError, KeyError, TypeError):
        return "held by something unknown"


def is_dead(content: bytes) -> bool:
    """Whether the holder ran on this very machine, in this container, and does no longer. Of a holder
    elsewhere nothing is known."""
    try:
        about = json.loads(content)
        here = _machine() is not None and (about["host"], about["machine"]) == (
            os.uname().nodename,
            _machine(),
        )
        return here and _started(int(about["pid"])) != about["started"]
    except (ValueError, KeyError, TypeError):
        return False


def _machine() -> str | None:
    """This boot of this machine, and the namespace that process numbers are in; None where unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where there is none of that number."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
