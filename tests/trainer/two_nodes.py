"""Two machines and an S3 server for the tests: network namespaces joined by a bridge, or else loopback."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = {"store": "10.77.0.9", "one": "10.77.0.1", "two": "10.77.0.2"}


@dataclass(frozen=True)
class Host:
    """A machine as far as its network goes: the command that runs another there, and its address."""

    before: tuple[str, ...]
    address: str
    interface: str


@contextlib.contextmanager
def hosts() -> Iterator[dict[str, Host]]:
    """The machines "store", "one" and "two", each with a network stack of its own where we may make them."""
    tag = secrets.token_hex(3)
    names = {name: f"quovadis-{tag}-{name}" for name in ADDRESSES}
    try:
        try:
            _lay(names, tag)
        except (OSError, subprocess.CalledProcessError):
            yield {name: Host((), "127.0.0.1", "lo") for name in names}
            return
        enter = ("ip", "netns", "exec")
        yield {
            name: Host((*enter, names[name]), address, "eth0" if name != "store" else "br0")
            for name, address in ADDRESSES.items()
        }
    finally:
        for name in names.values():
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _lay(names: dict[str, str], tag: str) -> None:
    store = names["store"]
    for name in names.values():
        _call("netns", "add", name)
        _call("-n", name, "link", "set", "lo", "up")
    _call("-n", store, "link", "add", "br0", "type", "bridge")
    _call("-n", store, "addr", "add", f"{ADDRESSES['store']}/24", "dev", "br0")
    _call("-n", store, "link", "set", "br0", "up")
    for number, node in enumerate(("one", "two")):
        port, node_name = f"q{tag}{number}", names[node]
        _call("-n", store, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node_name)
        _call("-n", store, "link", "set", port, "master", "br0", "up")
        _call("-n", node_name, "addr", "add", f"{ADDRESSES[node]}/24", "dev", "eth0")
        _call("-n", node_name, "link", "set", "eth0", "up")


def _call(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def s3_server(host: Host, folder: Path, log: Path) -> Iterator[dict[str, str]]:
    """`folder` as s3://media, served on `host` from memory; yields the environment of its clients."""
    port = free_port()
    url = f"http://{host.address}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    call = [*host.before, sys.executable, "-m", "moto.server", "-H", host.address, "-p", str(port)]
    fill = (
        "import fsspec, sys; s3 = fsspec.filesystem('s3'); s3.mkdir('media'); "
        "s3.put(sys.argv[1] + '/', 'media/', recursive=True)"
    )
    with log.open("w") as stream:
        server = subprocess.Popen(call, stdout=stream, stderr=stream)
    try:
        for _ in range(240):
            done = subprocess.run(
                [*host.before, sys.executable, "-c", _ASK, host.address, str(port)], check=False
            )
            if done.returncode == 0:
                break
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.25)
        subprocess.run(
            [*host.before, sys.executable, "-c", fill, str(folder)],
            check=True,
            env={**os.environ, **environment},
        )
        yield environment
    finally:
        server.kill()
        server.wait()


_ASK = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)"


def free_port() -> int:
    """A port of loopback that nobody had a moment ago; in a fresh namespace all are free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
