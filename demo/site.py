"""A small web server on loopback: it serves a folder, misbehaves on request and logs what it was asked.

Used by the demo and by the tests. It serves files with ranges; it knows nothing of videos.

    python -m demo.site FOLDER [--port 8000] [--behaviours FILE.json]
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_CHUNK = 64 * 1024
_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".ts": "video/mp2t",
    ".avi": "video/x-msvideo",
    ".html": "text/html; charset=utf-8",
}


@dataclass(frozen=True)
class Behaviour:
    """How one path answers; every field left alone means: like an ordinary server.

    Attributes:
        status: the status line; other than 200 the body is a short sentence unless `body` is given.
        body: bytes to send in place of the file.
        file: another file of the folder to send in place of the path's own.
        headers: added to the answer, replacing the server's own of that name.
        redirect: target of a 302.
        ranges: False ignores Range headers and says so (Accept-Ranges: none).
        declared: Content-Length as announced, whatever is sent.
        delay: seconds before the status line.
        truncate: close the connection after so many bytes of body.
        stall: say nothing more after so many bytes of body, for ever (until the server closes).
        rate: bytes a second of body.
    """

    status: int = 200
    body: bytes | None = None
    file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    redirect: str | None = None
    ranges: bool = True
    declared: int | None = None
    delay: float = 0.0
    truncate: int | None = None
    stall: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Request:
    """One line of the log: when (seconds of `time.time`), what was asked and what was answered."""

    time: float
    method: str
    path: str
    range: str | None
    agent: str
    status: int


Script = Behaviour | Sequence[Behaviour]


class Site:
    """Serves `folder` on a loopback port while the context lasts.

    Args:
        folder: files to serve; nothing outside it is ever opened.
        behaviours: path (with its leading slash) -> a `Behaviour`, or a sequence of them: one for each
            request to that path in turn, the last for all that follow.
        host, port: where to listen; port 0 takes a free one.

    Attributes:
        url: ``http://host:port``, without a trailing slash.
        requests: the log so far, oldest first.
    """

    def __init__(
        self,
        folder: str | Path,
        behaviours: Mapping[str, Script] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ):
        self.folder = Path(folder).resolve()
        self.behaviours: dict[str, Script] = dict(behaviours or {})
        self.closing = threading.Event()
        self._log: list[Request] = []
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Server((host, port), _Handler, self)
        self.port = self._server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._log)

    def count(self, path: str | None = None) -> int:
        """How many requests came, in all or for one path."""
        return sum(path is None or r.path == path for r in self.requests)

    def clear(self) -> None:
        """Forget the log; scripts go on where they are."""
        with self._lock:
            self._log.clear()

    def behaviour(self, path: str) -> Behaviour:
        """Returns the fault for the next request to `path`; takes one step in its script."""
        script = self.behaviours.get(path, Behaviour())
        if isinstance(script, Behaviour):
            return script
        with self._lock:
            turn = self._asked[path]
            self._asked[path] += 1
        return script[min(turn, len(script) - 1)]

    def log(self, request: Request) -> None:
        with self._lock:
            self._log.append(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], site: Site):
        self.site = site
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "demo-site"
    server: _Server
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        """Requests are logged by the site, not on standard error."""

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_CONNECT(self) -> None:
        self.send_error(501)

    def _answer(self, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)  # an absolute URL too: the site can be named as a proxy
        site = self.server.site
        how = site.behaviour(path)
        source, size = self._source(path, how)
        status = how.status if how.status != 200 or source is not None else 404
        if how.redirect is not None:
            status = 302
        start, stop = 0, size
        if status == 200 and how.ranges and (asked := self.headers.get("Range")):
            status, start, stop = _range(asked, size)
        site.log(
            Request(
                time.time(),
                self.command,
                path,
                self.headers.get("Range"),
                self.headers.get("User-Agent", ""),
                status,
            )
        )
        if how.delay:
            site.closing.wait(how.delay)
        if status not in (200, 206) and how.body is None:
            source, start = f"{status} for {path}\n".encode("utf-8", "replace"), 0
            if how.redirect is not None or self.command == "HEAD":
                source = b""
            stop = len(source)
        self._head(status, path, how, start, stop, size)
        if send_body and source is not None:
            self._body(source, start, stop, how)

    def _source(self, path: str, how: Behaviour) -> tuple[bytes | Path | None, int]:
        if how.body is not None:
            return how.body, len(how.body)
        name = how.file if how.file is not None else path.lstrip("/")
        if "\0" in name:
            return None, 0
        file = (self.server.site.folder / name).resolve()
        if not file.is_relative_to(self.server.site.folder) or not file.is_file():
            return None, 0
        return file, file.stat().st_size

    def _head(self, status: int, path: str, how: Behaviour, start: int, stop: int, size: int) -> None:
        suffix = Path(how.file or path).suffix.lower()
        headers = {
            "Content-Type": _TYPES.get(suffix, "application/octet-stream") if status < 300 else "text/plain",
            "Content-Length": str(how.declared if how.declared is not None else stop - start),
            "Accept-Ranges": "bytes" if how.ranges else "none",
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if status == 416:
            headers["Content-Range"] = f"bytes */{size}"
        if how.redirect is not None:
            headers["Location"] = how.redirect
        headers |= how.headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, source: bytes | Path, start: int, stop: int, how: Behaviour) -> None:
        """Send bytes start to stop, with the script's mishaps counted from the first byte of the body."""
        limits = [n for n in (how.truncate, how.stall) if n is not None]
        wanted = min([stop - start, *limits])
        if how.rate is None and isinstance(source, bytes):
            self.wfile.write(source[start : start + wanted])
        elif isinstance(source, bytes):
            self._drip(lambda a, n: source[a : a + n], start, wanted, how.rate)
        else:
            with source.open("rb") as file:

                def read(offset: int, count: int) -> bytes:
                    file.seek(offset)
                    return file.read(count)

                self._drip(read, start, wanted, how.rate)
        if how.stall is not None:
            self._hold()
        if how.truncate is not None or (how.declared is not None and how.declared != stop - start):
            self.close_connection = True

    def _drip(self, read, start: int, wanted: int, rate: float | None) -> None:
        step = _CHUNK if rate is None else max(1, int(rate / 10))
        sent = 0
        while sent < wanted and not self.server.site.closing.is_set():
            chunk = read(start + sent, min(step, wanted - sent))
            if not chunk:
                return
            self.wfile.write(chunk)
            sent += len(chunk)
            if rate is not None:
                self.server.site.closing.wait(len(chunk) / rate)

    def _hold(self) -> None:
        """Keep the connection and say nothing, until the client hangs up or the site closes."""
        self.wfile.flush()
        self.connection.settimeout(0.2)
        while not self.server.site.closing.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.close_connection = True


def _range(asked: str, size: int) -> tuple[int, int, int]:
    """(status, start, stop) for a Range header; several ranges, or nonsense, are ignored (RFC 9110, 14.2)."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.strip())
    if not match or not (match[1] or match[2]):
        return 200, 0, size
    if not match[1]:
        return (206, max(0, size - int(match[2])), size) if int(match[2]) and size else (416, 0, 0)
    start = int(match[1])
    if start >= size:
        return 416, 0, 0
    return 206, start, min(size, int(match[2]) + 1 if match[2] else size)


def main(argv: list[str] | None = None) -> int:
    """Serve a folder until interrupted; prints the address on the first line."""
    parser = argparse.ArgumentParser(prog="python -m demo.site", description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behaviours", help="JSON: path -> Behaviour fields, or a list of them")
    arguments = parser.parse_args(argv)
    behaviours: dict[str, Script] = {}
    if arguments.behaviours:
        for path, script in json.loads(Path(arguments.behaviours).read_text(encoding="utf-8")).items():
            parts = [_behaviour(part) for part in (script if isinstance(script, list) else [script])]
            behaviours[path] = parts if isinstance(script, list) else parts[0]
    with Site(arguments.folder, behaviours, port=arguments.port) as site:
        print(site.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


def _behaviour(fields: dict) -> Behaviour:
    body = fields.get("body")
    return Behaviour(**{**fields, "body": body.encode() if isinstance(body, str) else None})


if __name__ == "__main__":
    raise SystemExit(main())
