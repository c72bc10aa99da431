"""Network namespaces that play the hosts of a cluster on one machine: each has an address on a common bridge,
a loopback and a host name of its own, and the machine's files. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "qvspark"  # of namespaces: qvspark-<pid of the owner>-<number of its cluster>-<number>
_CLUSTERS = itertools.count()  # of this process, which may have several at a time
NETWORK = "198.18"  # of the addresses set aside for tests of networks (RFC 2544)


@dataclass(frozen=True)
class Host:
    """One namespace, its address and its host name."""

    namespace: str
    address: str
    name: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` as it is run there."""
        named = f'hostname {self.name} && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", named, "sh", *argv]

    def kill(self) -> None:
        """SIGKILL every process there, as a power cut would."""
        for pid in _ip("netns", "pids", self.namespace, check=False).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


class Hosts:
    """A bridge and the hosts on it, owned by this process.

    Attributes:
        gateway: this machine's address on the bridge.
    """

    def __init__(self) -> None:
        _sweep()
        taken = _ip("-o", "-4", "addr")
        subnet = next(n for n in range(256) if f" {NETWORK}.{n}." not in taken)
        self.gateway = f"{NETWORK}.{subnet}.1"
        self._cluster = next(_CLUSTERS)
        self._bridge = f"{_bridges(os.getpid())}{self._cluster}"
        self._hosts: list[Host] = []
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def add(self) -> Host:
        """One host more."""
        number = len(self._hosts)
        address = f"{self.gateway.rpartition('.')[0]}.{number + 2}"
        host = Host(f"{PREFIX}-{os.getpid()}-{self._cluster}-{number}", address, f"{PREFIX}-{number}")
        self._hosts.append(host)
        files = Path("/etc/netns", host.namespace)  # shown there in place of /etc's
        files.mkdir(parents=True)
        (files / "hosts").write_text(f"127.0.0.1 localhost\n{address} {host.name}\n")
        link, inside = f"{self._bridge}-{number}", ("netns", "exec", host.namespace, "ip")
        _ip("netns", "add", host.namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "route", "add", "default", "via", self.gateway)
        return host

    def remove(self) -> None:
        """Take all away, with what runs there."""
        for host in self._hosts:
            host.kill()
            _delete(host.namespace)
        _ip("link", "del", self._bridge, check=False)


def possible() -> bool:
    """Whether this process may make namespaces and the links between them."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        return False
    trial, bridge = f"{PREFIX}-{os.getpid()}-trial", f"{_bridges(os.getpid())}t"
    try:
        _ip("netns", "add", trial)
        _ip("netns", "exec", trial, "unshare", "--uts", "hostname", trial)
        _ip("link", "add", bridge, "type", "bridge")
    except subprocess.CalledProcessError:
        return False
    finally:
        _ip("link", "del", bridge, check=False)
        _ip("netns", "del", trial, check=False)
    return True


def _bridges(owner: int) -> str:
    """Prefix of the names of an owner's bridges; a name of a link has 15 letters at most."""
    return f"qv{owner}c"


def _sweep() -> None:
    """Take away what is left of owners that were killed."""
    for line in _ip("netns", "list").splitlines():
        prefix, _, rest = line.split()[0].partition("-")
        owner = rest.partition("-")[0]
        if prefix == PREFIX and owner.isdigit() and not Path("/proc", owner).exists():
            Host(line.split()[0], "", "").kill()
            _delete(line.split()[0])
            for link in _ip("-o", "link").splitlines():
                name = link.split(": ")[1].partition("@")[0]
                if name.startswith(_bridges(int(owner))):
                    _ip("link", "del", name, check=False)


def _delete(namespace: str) -> None:
    _ip("netns", "del", namespace, check=False)
    shutil.rmtree(Path("/etc/netns", namespace), ignore_errors=True)


def _ip(*arguments: str, check: bool = True) -> str:
    command = ["ip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=30).stdout
