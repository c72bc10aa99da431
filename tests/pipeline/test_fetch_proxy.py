"""ffmpeg goes the way that yt-dlp does: by its proxy, by none, or not at all, and the whole file comes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import timestamped
from fetch_fixtures import clip, get

from demo.site import Site
from pipeline.outcome import CallError, Failed, FailureClass
from pipeline.sources import FetchOptions, Piece, check_ytdlp
from pipeline.sources.ytdlp import process
from pipeline.sources.ytdlp.client import Downloader
from pipeline.sources.ytdlp.network_guard import Guard

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    timestamped.write(folder / "good.mp4", timestamped.constant(25, 12))
    return folder


@contextlib.contextmanager
def socks(port: int) -> Iterator[tuple[str, list[str]]]:
    """A SOCKS 5 proxy that takes every name for this machine's `port`; its URL, and the names asked for."""
    names: list[str] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        client.recv(262)
        client.sendall(b"\5\0")
        assert client.recv(4)[3] == 3  # a name, for the proxy to look up
        names.append(client.recv(client.recv(1)[0]).decode())
        client.recv(2)
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            client.sendall(b"\5\0\0\1" + bytes(6))
            threading.Thread(target=pump, args=(server, client), daemon=True).start()
            pump(client, server)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"socks5://127.0.0.1:{listener.getsockname()[1]}", names


def test_a_socks_proxy_carries_every_request_of_a_full_download(footage, tmp_path):
    wanted = clip("good", 4, 8)
    with Site(footage) as site, socks(int(site.url.rsplit(":", 1)[1])) as (proxy, names):
        options = FetchOptions(timeout=60, backoff=0.01, proxy=proxy)
        got = get("http://only.the.proxy.knows/{youtube_id}.mp4", tmp_path, options, wanted)
        assert site.count() == len(names)
    piece = got.pieces[wanted.key]
    assert isinstance(piece, Piece), piece
    assert piece.path.read_bytes() == (footage / "good.mp4").read_bytes()
    assert got.fallbacks == ("a range cannot go through this proxy, which is not an http:// one",)
    assert set(names) == {"only.the.proxy.knows"}


def test_a_source_address_means_full_downloads(footage, tmp_path):
    wanted = clip("good", 4, 8)
    with Site(footage) as site:
        options = FetchOptions(timeout=60, ytdlp={"source_address": "127.0.0.1"})
        got = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, options, wanted)
    assert isinstance(got.pieces[wanted.key], Piece)
    assert got.whole
    assert got.fallbacks == ("a range cannot be asked for from a source_address",)


@pytest.mark.parametrize(
    ("given", "environment", "url", "proxy"),
    [
        (None, {}, "https://host/x", None),
        ("http://p:1", {}, "https://host/x", "http://p:1"),
        ("p:1", {}, "http://host/x", "http://p:1"),
        ("http://p:1", {"no_proxy": "host"}, "http://host/x", "http://p:1"),
        (None, {"http_proxy": "http://p:1"}, "https://host/x", "http://p:1"),
        (None, {"http_proxy": "http://p:1", "https_proxy": "http://q:1"}, "https://host/x", "http://q:1"),
        (None, {"https_proxy": "http://p:1"}, "http://host/x", None),
        (None, {"HTTP_PROXY": "http://p:1", "NO_PROXY": "host"}, "http://host/x", None),
        (None, {"ALL_PROXY": "p:1", "no_proxy": "other"}, "http://host/x", "http://p:1"),
        ("", {"all_proxy": "socks5://p:1"}, "http://host/x", None),
        ("https://p:1", {}, "http://host/x", "https://p:1"),
        (None, {"all_proxy": "socks5h://p:1"}, "http://host/x", "socks5h://p:1"),
    ],
)
def test_the_proxy_is_the_one_that_yt_dlp_asks(monkeypatch, given, environment, url, proxy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Downloader({"proxy": given}, auto_init=False).proxy(url) == proxy
    if proxy and not proxy.startswith("http://"):
        with pytest.raises(Failed, match="a range cannot go through this proxy") as caught:
            Guard().check_url(url, proxy)
        assert caught.value.failure_class is FailureClass.FORMAT  # so the whole file is taken


@pytest.mark.parametrize(
    ("host", "environment"),
    [
        ("http://only.the.proxy.knows", {"HTTP_PROXY": "SITE"}),
        ("SITE", {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}),
    ],
)
def test_ffmpeg_goes_the_way_that_yt_dlp_does(footage, tmp_path, monkeypatch, host, environment):
    """Not by the variables that ffmpeg would choose by itself: at port 9 nobody answers."""
    wanted = clip("good", 4, 8)
    with Site(footage) as site:
        for name, value in environment.items():
            monkeypatch.setenv(name, value.replace("SITE", site.url))
        process.close()  # it has the environment that it was started in
        source = f"{host.replace('SITE', site.url)}/{{youtube_id}}.mp4"
        got = get(source, tmp_path, FetchOptions(timeout=60, attempts=1), wanted)
        process.close()
    assert isinstance(got.pieces[wanted.key], Piece), got.pieces
    assert got.fallbacks == ()
    assert not got.whole


def test_a_private_address_is_checked_without_a_proxy():
    guard = Guard()
    guard.begin([], None)
    guard.check_url("http://127.0.0.1/x", "http://p:1")
    with pytest.raises(Failed, match="private address"):
        guard.check_url("http://127.0.0.1/x", None)


def test_an_option_that_yt_dlp_does_not_have_is_refused():
    check_ytdlp([])
    check_ytdlp(["ratelimit", "extractor_args", "source_address", "sleep_interval_requests", "http_headers"])
    with pytest.raises(CallError, match=r"no option 'rate_limit'; did you mean 'ratelimit'\?"):
        check_ytdlp(["ratelimit", "rate_limit"])
    with pytest.raises(CallError, match="no option 'xyzzyxyzzy'; names are those of"):
        check_ytdlp(["xyzzyxyzzy"])
