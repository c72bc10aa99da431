"""Guards the sockets of this process: refuses private addresses and counts requests.

The guard is an audit hook, so it sees every connection of Python code, redirects included, whichever library
makes it. It cannot see the connections of ffmpeg: their hosts are checked before ffmpeg starts.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.outcome import Failed, FailureClass

MAX_HOPS = 10
"""Requests that one address may lead to by redirection."""

NO_RANGE_THROUGH_PROXY = "a range cannot go through this proxy, which is not an http:// one"
"""The reason for a full download: ffmpeg would not use the proxy."""

_REQUEST_LINE = re.compile(rb"[A-Z]{3,8} \S")
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080, "socks4": 1080, "socks4a": 1080}
_PROXY_NAMES = ("http", "https", "all")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# IPv6 networks that old Pythons call global: IPv4 in IPv6 (compatible, translated), local NAT64, site-local.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "fec0::/10")))


class Refused(Exception):
    """The guard refused a connection."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet; an embedded IPv4 address decides."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _NOT_PUBLIC):
            return False
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = ip.ipv4_mapped or ip.sixtofour or (last if ip in _NAT64 else ip)
    return ip.is_global and not ip.is_multicast


def host_and_port(url: str) -> tuple[str, int] | None:
    """The host and port that `url` names, or None where it names none."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port or _PORTS.get(parts.scheme.lower())
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def brings_ranges(proxy: str | None) -> bool:
    """Whether ffmpeg, which reads the ranges, knows how to ask this proxy; None is none."""
    return proxy is None or proxy.startswith("http://")


class Guard:
    """Refuses private addresses that the user did not name; counts requests and redirects.

    Attributes:
        refused: why the last connection was refused, or None.
        looped: whether one address led to more than `MAX_HOPS` requests.
        requests: HTTP requests sent by this process since `begin`.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self.looped = False
        self.requests = 0
        self._hops = 0
        self._trusted: set[tuple[str, int]] = set()
        self._active = False

    def install(self) -> None:
        """Watch this process from now on; it cannot be undone."""
        sys.addaudithook(self._hook)

    def begin(self, named: Iterable[str], proxy: str | None) -> None:
        """Start a fetch: the hosts of the URLs in `named`, and of the proxies, may be private."""
        self._active = False
        proxies = [proxy] if proxy else [url for name, url in getproxies().items() if name in _PROXY_NAMES]
        self._trusted = set()
        for url in (*named, *proxies):
            place = host_and_port(url)
            if place is not None:
                self._trusted.update((address, place[1]) for address in _resolve(*place))
        self.refused, self.looped, self.requests, self._hops = None, False, 0, 0
        self._active = True

    def new_address(self) -> None:
        """The next request is not a redirection of the one before."""
        self._hops = 0

    def check_url(self, url: str, proxy: str | None) -> None:
        """Raise `Failed` unless ffmpeg may be sent to `url`, by way of `proxy` if there is one: unsafe,
        network where its name has no address, or format where only the whole file comes through the proxy."""
        parts, place = urlsplit(url), host_and_port(url)
        if parts.scheme.lower() not in ("http", "https") or place is None:
            raise Failed(FailureClass.UNSAFE, f"The video refers to {url[:200]!r}, which is not fetched.")
        if proxy:
            if not brings_ranges(proxy):
                raise Failed(FailureClass.FORMAT, NO_RANGE_THROUGH_PROXY)
            return  # the proxy looks the name up
        addresses = _resolve(*place)
        if not addresses:
            raise Failed(FailureClass.NETWORK, f"The name {place[0]!r} has no address.")
        for address in addresses:
            if not self._allows(address, place[1]):
                raise Failed(
                    FailureClass.UNSAFE, f"The video is at the private address {address}:{place[1]}."
                )

    def _allows(self, address: str, port: int) -> bool:
        try:
            return is_public(address) or (address, port) in self._trusted
        except ValueError:
            return False

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self._active:
            return
        if event == "socket.connect":
            self._on_connect(arguments[1])
        elif event == "http.client.send":
            self._on_send(arguments[1])

    def _on_connect(self, address: object) -> None:
        if not isinstance(address, tuple):
            return  # a local socket: no URL leads there
        host, port = str(address[0]), int(address[1])
        for number in _resolve(host, port):  # itself where it is a number already
            if not self._allows(number, port):
                self._hops = MAX_HOPS  # so that another handler of yt-dlp does not follow the redirects again
                self.refused = f"A redirect or reference leads to the private address {number}:{port}."
                raise Refused(self.refused)

    def _on_send(self, data: object) -> None:
        if not isinstance(data, bytes | bytearray) or not _REQUEST_LINE.match(data):
            return
        self._hops += 1
        if self._hops > MAX_HOPS:
            self.looped = True
            raise Refused(f"redirect loop: given up after {MAX_HOPS} redirections")
        self.requests += 1


def _resolve(host: str, port: int) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()
