"""The loopback site: what it serves, how it misbehaves and what it logs."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from demo.site import Behaviour, Site

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "served"
    root.mkdir()
    (root / "a.mp4").write_bytes(CONTENT)
    (tmp_path / "secret.txt").write_text("not served")
    return root


def get(url: str, **headers: str) -> tuple[int, dict, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.status, dict(answer.headers), answer.read()


def test_a_file_is_served_whole_by_range_and_by_head(folder):
    with Site(folder) as site:
        status, headers, body = get(f"{site.url}/a.mp4")
        assert (status, body, headers["Content-Type"]) == (200, CONTENT, "video/mp4")
        status, headers, body = get(f"{site.url}/a.mp4", Range="bytes=100-199")
        assert (status, body) == (206, CONTENT[100:200])
        assert headers["Content-Range"] == f"bytes 100-199/{len(CONTENT)}"
        assert get(f"{site.url}/a.mp4", Range="bytes=10000-")[2] == CONTENT[10000:]
        assert get(f"{site.url}/a.mp4", Range="bytes=-5")[2] == CONTENT[-5:]
        assert get(f"{site.url}/a.mp4", Range="bytes=0-1,5-6")[0] == 200
        head = urllib.request.Request(f"{site.url}/a.mp4", method="HEAD")
        with urllib.request.urlopen(head) as answer:
            assert answer.headers["Content-Length"] == str(len(CONTENT))
            assert answer.read() == b""
        with pytest.raises(urllib.error.HTTPError, match="416"):
            get(f"{site.url}/a.mp4", Range="bytes=20000-")
        assert [r.status for r in site.requests] == [200, 206, 206, 206, 200, 200, 416]
        assert site.count("/a.mp4") == 7
        site.clear()
        assert site.count() == 0


@pytest.mark.parametrize(
    "path", ["/none.mp4", "/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/%00"]
)
def test_nothing_outside_the_folder_is_served(folder, path):
    with Site(folder) as site, pytest.raises(urllib.error.HTTPError, match="404"):
        get(site.url + path)


def test_a_script_gives_one_answer_a_request_and_then_its_last(folder):
    flaky = [Behaviour(status=503, headers={"Retry-After": "7"}), Behaviour(status=429), Behaviour()]
    with Site(folder, {"/a.mp4": flaky}) as site:
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(f"{site.url}/a.mp4")
        assert caught.value.headers["Retry-After"] == "7"
        with pytest.raises(urllib.error.HTTPError, match="429"):
            get(f"{site.url}/a.mp4")
        assert get(f"{site.url}/a.mp4")[2] == get(f"{site.url}/a.mp4")[2] == CONTENT


def test_bodies_are_truncated_mislabelled_dripped_and_stalled(folder):
    behaviours = {
        "/truncated": Behaviour(file="a.mp4", truncate=1000),
        "/declared": Behaviour(file="a.mp4", declared=10 * 2**30),
        "/drip": Behaviour(body=b"x" * 500, rate=1000),
        "/stall": Behaviour(file="a.mp4", stall=300),
        "/html": Behaviour(body=b"<html></html>", headers={"Content-Type": "text/html"}),
        "/norange": Behaviour(file="a.mp4", ranges=False),
        "/away": Behaviour(redirect="/html"),
    }
    with Site(folder, behaviours) as site:
        for path in ("/truncated", "/declared"):
            with pytest.raises(http.client.IncompleteRead):
                get(site.url + path)
        begin = time.monotonic()
        assert get(f"{site.url}/drip")[2] == b"x" * 500
        assert time.monotonic() - begin > 0.3
        with urllib.request.urlopen(f"{site.url}/stall", timeout=0.5) as answer:
            assert len(answer.read(300)) == 300
            with pytest.raises(TimeoutError):
                answer.read(1)
        assert get(f"{site.url}/html")[1]["Content-Type"] == "text/html"
        assert get(f"{site.url}/norange", Range="bytes=5-9")[2] == CONTENT
        assert get(f"{site.url}/away")[2] == b"<html></html>"


def test_a_connection_is_kept_over_several_requests(folder):
    with Site(folder) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port)
        for path in ("/a.mp4", "/none", "/a.mp4"):
            connection.request("GET", path)
            connection.getresponse().read()
        sock = connection.sock
        assert sock is not None
        connection.close()
        assert site.count() == 3


def test_the_site_runs_as_a_program_with_its_script_in_a_file(folder, tmp_path):
    script = tmp_path / "script.json"
    script.write_text('{"/b.mp4": {"status": 410}, "/c.mp4": [{"body": "once"}, {"status": 404}]}')
    argv = [sys.executable, "-m", "demo.site", str(folder), "--behaviours", str(script)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert get(f"{url}/a.mp4")[2] == CONTENT
            assert get(f"{url}/c.mp4")[2] == b"once"
            with pytest.raises(urllib.error.HTTPError, match="410"):
                get(f"{url}/b.mp4")
        finally:
            process.kill()
