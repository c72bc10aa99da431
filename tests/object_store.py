"""A real S3 server for the tests, as a process of its own, and a proxy before it that counts and breaks.

The server is moto's; what it keeps is gone with it. The proxy is what the tests' AWS_ENDPOINT_URL names.
"""

from __future__ import annotations

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BUCKET = "clips"
_SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests end
"""


@dataclass(frozen=True)
class Request:
    """A request that the proxy saw; `status` is 0 where it gave no answer."""

    method: str
    key: str  # of the object, without the bucket
    query: dict[str, list[str]]
    status: int

    @property
    def lists(self) -> bool:
        return self.method == "GET" and ("list-type" in self.query or "prefix" in self.query or not self.key)


@dataclass
class Fault:
    """Sets the fault of the next `times` requests that match.

    ``kind``: status (`status` instead of an answer), slow (`seconds` before it), drop (the connection,
    before the store hears of it), deaf (the store does it, the answer is lost), reset (in the middle of
    the body), trickle (the body a few bytes at a time).
    """

    kind: str
    matches: Callable[[str, str], bool]  # method and key
    times: int = 1
    status: int = 503
    seconds: float = 0.5


@dataclass
class Store:
    """The server as the tests see it: where it is, what was asked, and what shall go wrong."""

    url: str
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a user would set, and nothing of the machine's own."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def fault(self, kind: str, method: str = "", key: str = "", **more) -> Fault:
        """Break what has this method (any) and a key that contains `key`."""
        self.faults.append(Fault(kind, lambda m, k: m == (method or m) and key in k, **more))
        return self.faults[-1]

    def taken(self, method: str, key: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.matches(method, key):
                fault.times -= 1
                return fault
        return None

    def count(self, method: str = "", key: str = "") -> int:
        return sum(r.method == (method or r.method) and key in r.key for r in self.requests)

    def names(self, prefix: str = "") -> list[str]:
        """Objects in the bucket, listed by another client than the project's."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **_KEYS)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def empty(self) -> None:
        """Forget everything: objects, requests, faults."""
        import boto3

        self.faults.clear()
        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **_KEYS)
        for name in self.names():
            client.delete_object(Bucket=BUCKET, Key=name)
        self.requests.clear()

    def download(self, prefix: str, folder: Path) -> Path:
        """A copy of all below a prefix, as files."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **_KEYS)
        for key in self.names(prefix):
            target = folder / key.removeprefix(prefix).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, key, str(target))
        return folder


_KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


@contextmanager
def serve(host: str = "127.0.0.1") -> Iterator[Store]:
    """The server, with one empty bucket, behind the proxy, which listens on this address."""
    import boto3

    pipe = subprocess.PIPE
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        proxy = ThreadingHTTPServer((host, 0), _Handler)
        proxy.daemon_threads = True
        store = proxy.store = Store(f"http://{host}:{proxy.server_address[1]}")  # type: ignore[attr-defined]
        proxy.behind = port  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        client = boto3.client("s3", endpoint_url=store.url, region_name="us-east-1", **_KEYS)
        client.create_bucket(Bucket=BUCKET)
        store.requests.clear()
        yield store
        proxy.shutdown()
        proxy.server_close()
    finally:
        server.stdin.close()
        server.wait(timeout=30)


class _Handler(BaseHTTPRequestHandler):
    """Passes a request on and its answer back, unless a fault says otherwise."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        store: Store = self.server.store  # type: ignore[attr-defined]
        address = urlsplit(self.path)
        key = address.path.lstrip("/").partition("/")[2]
        body = self._body()
        fault = store.taken(self.command, key)
        kind = fault.kind if fault else ""
        status, headers, answer = 0, [], b""
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if fault and kind == "status":
            code = {503: "SlowDown", 500: "InternalError"}.get(fault.status, "Refused")
            text = f"<Error><Code>{code}</Code><Message>as the test asked</Message></Error>"
            status, headers, answer = fault.status, [("Content-Type", "application/xml")], text.encode()
        elif kind != "drop":
            status, headers, answer = self._forward(store, body)
        store.requests.append(
            Request(self.command, key, parse_qs(address.query, keep_blank_values=True), status)
        )
        if kind in ("drop", "deaf"):
            self._hang_up()
        else:
            self._reply(status, headers, answer, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, store: Store, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)  # type: ignore[attr-defined]
        skipped = {"transfer-encoding", "content-length", "connection", "expect"}
        headers = {n: v for n, v in self.headers.items() if n.lower() not in skipped}
        with store.writing:  # moto looks and writes in two steps; a store does it in one
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def _reply(self, status: int, headers: list[tuple[str, str]], answer: bytes, fault: Fault | None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = {n.lower(): v for n, v in headers}.get("content-length", str(len(answer)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(answer)))
        self.end_headers()
        if self.command == "HEAD" or status in (204, 304):
            return
        kind = fault.kind if fault else ""
        size = {"reset": len(answer) // 2, "trickle": len(answer) // 20}.get(kind, 0) or max(1, len(answer))
        for first in range(0, len(answer), size):
            self.wfile.write(answer[first : first + size])
            self.wfile.flush()
            if fault and kind == "trickle":
                time.sleep(fault.seconds / 20)
            if kind == "reset":
                self._hang_up()
                break

    def _hang_up(self) -> None:
        """Reset the connection, as a machine that dies does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass
