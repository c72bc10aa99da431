"""The TCP ports on which processes listen, as the kernel's table has them."""

from __future__ import annotations

import os
from pathlib import Path


def listening(pids: list[str]) -> list[str]:
    """The addresses, as the kernel writes them, of TCP sockets on which these processes listen."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                sockets[f"socket:[{inode}]"] = address
    held = set()
    for descriptor in (path for pid in pids for path in Path(f"/proc/{pid}/fd").glob("*")):
        try:
            held.add(os.readlink(descriptor))
        except OSError:
            continue
    return [address for name, address in sockets.items() if name in held]


def of_session(leader: int) -> list[str]:
    """The processes of the session that a process leads."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[3] == str(leader):
                found.append(path.parent.name)
        except OSError:
            continue
    return found
