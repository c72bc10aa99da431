"""A site that misbehaves in every way we know: each gives its class, in bounded time and requests."""

from __future__ import annotations

import gzip
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import timestamped
from fetch_fixtures import clip, get

from demo.site import Behaviour, Site
from pipeline.media import subprocesses
from pipeline.outcome import Failed, FailureClass
from pipeline.sources import FetchOptions, Piece
from pipeline.sources.ytdlp import process

VIDEO = {"Content-Type": "video/mp4"}
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
PAGE = b"<!doctype html><html><title>x</title><body><video src='/good.mp4'></video></body></html>"
GZIPPED = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
BOMB = gzip.compress(b"<html>" + bytes(300 << 20), 1)
GOOD = Behaviour(file="good.mp4")
QUICK = FetchOptions(timeout=30, backoff=0.01)

# name -> (script, class or None, requests at the server at most for a video of two clips)
MISBEHAVIOUR: dict[str, tuple[Behaviour | list[Behaviour], str | None, int]] = {
    "s401": (Behaviour(status=401), "refused", 1),
    "s403": (Behaviour(status=403), "refused", 1),
    "s404": (Behaviour(status=404), "gone", 1),
    "s410": (Behaviour(status=410), "gone", 1),
    "s429": (Behaviour(status=429, headers={"Retry-After": "7200"}), "rate", 1),
    "s451": (Behaviour(status=451), "geo", 1),
    "s500": (Behaviour(status=500), "network", 3),
    "s503-later": (Behaviour(status=503, headers={"Retry-After": "100"}), "network", 1),
    "flaky": ([Behaviour(status=502), GOOD], None, 9),
    "media403": ([GOOD, Behaviour(status=403)], "refused", 2),
    "media404": ([GOOD, Behaviour(status=404)], "gone", 2),
    "media429": ([GOOD, Behaviour(status=429)], "rate", 2),
    "media503": ([GOOD, Behaviour(status=503)], "network", 6),
    "truncated": (Behaviour(file="good.mp4", truncate=20_000), "network", 15),
    "truncated-whole": (Behaviour(file="good.mp4", truncate=20_000, ranges=False), "network", 12),
    "longer-than-sent": (Behaviour(file="good.mp4", declared=10**7, ranges=False), "network", 12),
    "shorter-than-sent": (Behaviour(file="good.mp4", declared=30_000, ranges=False), "corrupt", 4),
    "ten-gigabytes": (Behaviour(file="good.mp4", declared=10 << 30, ranges=False), "too_large", 4),
    "ten-gigabytes-of-zero": (Behaviour(body=bytes(1000), declared=10 << 30, headers=VIDEO), "too_large", 4),
    "no-ranges": (Behaviour(file="good.mp4", ranges=False), None, 4),
    "ranges-refused": ([GOOD, Behaviour(status=416), GOOD], None, 4),
    "html": (Behaviour(body=PAGE, headers={"Content-Type": "text/html"}), "format", 2),
    "bomb": (Behaviour(body=BOMB, headers=GZIPPED), "format", 2),
    "html-as-video": (Behaviour(body=PAGE, headers=VIDEO), "format", 4),
    "json": (Behaviour(body=b'{"a": 1}', headers=VIDEO), "format", 4),
    "empty": (Behaviour(body=b"", headers=VIDEO), "format", 4),
    "random": (Behaviour(body=os.urandom(50_000), headers=VIDEO), "format", 4),
    "picture": (Behaviour(body=b"\x89PNG\r\n\x1a\n" + bytes(999)), "format", 4),
    "concat": (Behaviour(body=b"ffconcat version 1.0\nfile /etc/passwd\n", headers=VIDEO), "format", 4),
    "playlist-as-video": (Behaviour(body=PLAYLIST, headers=VIDEO), "format", 4),
    "playlist": (Behaviour(body=PLAYLIST, headers={"Content-Type": "application/x-mpegurl"}), "format", 4),
    "loop": (Behaviour(redirect="ITSELF"), "network", 11),
    "to-file": (Behaviour(redirect="file:///etc/passwd"), "unsafe", 1),
    "to-ftp": (Behaviour(redirect="ftp://127.0.0.1/x.mp4"), "unsafe", 1),
    "to-private": (Behaviour(redirect="PRIVATE/good.mp4"), "unsafe", 1),
    "to-metadata": (Behaviour(redirect="http://169.254.169.254/latest/meta-data"), "unsafe", 1),
    "media-to-private": ([GOOD, Behaviour(redirect="PRIVATE/good.mp4")], "unsafe", 3),
    "media-to-file": ([GOOD, Behaviour(redirect="file:///etc/passwd")], "unsafe", 3),
    "to-itself": (Behaviour(redirect="/good.mp4"), None, 2),
    "media-to-itself": ([GOOD, Behaviour(redirect="/good.mp4")], None, 4),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_proxies():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    timestamped.write(folder / "good.mp4", timestamped.constant(50, 24), audio_from=0.1)
    return folder


def two(name: str):
    return clip(name, 4, 6), clip(name, 10, 12)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_every_misbehaviour_has_one_right_outcome_within_its_requests(footage, tmp_path):
    with Site(footage) as private, Site(footage) as site:
        site.behaviours |= _scripts(private, {name: name for name in MISBEHAVIOUR})
        wrong = []
        for name, (_, expected, most) in MISBEHAVIOUR.items():
            folder = tmp_path / name
            folder.mkdir()
            fetched = get(f"{site.url}/{{youtube_id}}.mp4", folder, QUICK, *two(name))
            got = [str(p.failure_class) if isinstance(p, Failed) else None for p in fetched.pieces.values()]
            asked = site.count(f"/{name}.mp4")
            if got != [expected] * 2 or asked > most:
                wrong.append((name, expected, most, asked, fetched))
            kept = {p.path for p in fetched.pieces.values() if isinstance(p, Piece)}
            if set(files(folder)) != kept:
                wrong.append((name, "leaves files", files(folder)))
        assert not wrong
        assert private.requests == []


def _scripts(private: Site, kinds: dict[str, str]) -> dict[str, list[Behaviour]]:
    """Path -> script, for names and the kind of misbehaviour of each; redirections lead where they must."""
    scripts = {}
    for name, kind in kinds.items():
        script = MISBEHAVIOUR[kind][0]
        parts = script if isinstance(script, list) else [script]
        for word, place in {"PRIVATE": private.url, "ITSELF": f"/{name}.mp4"}.items():
            parts = [replace(p, redirect=p.redirect and p.redirect.replace(word, place)) for p in parts]
        scripts[f"/{name}.mp4"] = parts
    return scripts


@pytest.mark.parametrize(
    "script",
    [
        Behaviour(file="good.mp4", stall=0),
        [GOOD, Behaviour(file="good.mp4", stall=9000)],
        [GOOD, Behaviour(file="good.mp4", stall=9000, ranges=False)],
        Behaviour(file="good.mp4", rate=3000),
        Behaviour(delay=60),
    ],
    ids=["at-once", "in-the-range", "in-the-file", "drip", "silence"],
)
def test_a_site_that_stalls_costs_no_more_than_the_time_limit(footage, tmp_path, script):
    with Site(footage, {"/slow.mp4": script}) as site:
        begin = time.monotonic()
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, FetchOptions(timeout=3), *two("slow"))
        assert time.monotonic() - begin < 3 + 5  # a new process may have to start
    for failure in fetched.pieces.values():
        assert isinstance(failure, Failed)
        assert failure.failure_class is FailureClass.NETWORK
        assert failure.retry_after > datetime.now(UTC)
    assert files(tmp_path) == []


def test_a_fetch_killed_at_the_limit_leaves_no_process(footage, tmp_path):
    with Site(footage, {"/slow.mp4": [GOOD, Behaviour(file="good.mp4", stall=9000)]}) as site:
        get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, FetchOptions(timeout=2, attempts=1), *two("slow"))
        assert not [line for line in _processes() if str(site.port) in line]
        again = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *two("good"))
        assert all(isinstance(p, Piece) for p in again.pieces.values())


def _processes() -> list[str]:
    return subprocesses.run(["ps", "-eo", "args"], timeout=20).stdout.decode("utf-8", "replace").splitlines()


def test_a_time_that_the_site_names_is_kept(footage, tmp_path):
    with Site(footage, {"/later.mp4": Behaviour(status=429, headers={"Retry-After": "7200"})}) as site:
        failure = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *two("later")).pieces[
            two("later")[0].key
        ]
    assert isinstance(failure, Failed)
    assert abs(failure.retry_after - datetime.now(UTC) - timedelta(seconds=7200)) < timedelta(minutes=1)


def test_an_unreachable_host_is_of_class_network(tmp_path):
    with Site(tmp_path) as gone:
        url = gone.url
    fetched = get(f"{url}/{{youtube_id}}.mp4", tmp_path, QUICK, *two("any"))
    assert {p.failure_class for p in fetched.pieces.values()} == {FailureClass.NETWORK}
    assert fetched.attempts == 3


def test_attempts_wait_longer_each_time_and_stop_at_what_is_final(footage, tmp_path):
    script = [Behaviour(status=500), Behaviour(status=500), Behaviour(status=404)]
    with Site(footage, {"/x.mp4": script}) as site:
        options = FetchOptions(timeout=60, backoff=0.4, attempts=9)
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, options, *two("x"))
        first, second, third = (r.time for r in site.requests)
    assert (fetched.attempts, fetched.requests) == (3, 3)
    assert {p.failure_class for p in fetched.pieces.values()} == {FailureClass.GONE}
    assert second - first >= 0.2
    assert third - second >= 0.4


def test_one_video_is_extracted_once_whatever_the_number_of_its_clips(footage, tmp_path):
    clips = tuple(clip("good", start, start + 1) for start in range(1, 13, 2))
    with Site(footage) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *clips)
        assert [r.range for r in site.requests].count(
            None
        ) == 1  # yt-dlp asks without a range, ffmpeg with one
    assert fetched.requests == 1 + len(clips)
    assert len({p.path for p in fetched.pieces.values()}) == len(clips)
    assert not fetched.whole


def test_refused_ranges_mean_one_full_download_for_all_clips_which_is_counted(footage, tmp_path):
    clips = tuple(clip("x", start, start + 1) for start in range(9, 22, 2))
    with Site(footage, {"/x.mp4": Behaviour(file="good.mp4", ranges=False)}) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *clips)
        assert site.count() <= 3
    assert fetched.whole
    assert len(fetched.fallbacks) == 1
    assert len({p.path for p in fetched.pieces.values()}) == 1


def test_a_small_file_of_a_server_without_ranges_comes_whole(tmp_path):
    # ffmpeg seeks in it, is sent the file from its start again, and says that the stream broke off.
    timestamped.write(tmp_path / "small.mp4", timestamped.constant(25, 12), audio_from=0.1)
    with Site(tmp_path, {"/x.mp4": Behaviour(file="small.mp4", ranges=False)}) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *two("x"))
        assert site.count() <= 4
    assert fetched.whole
    assert "prematurely" in fetched.fallbacks[0]


def test_a_range_that_fails_for_the_network_keeps_what_came_before(footage, tmp_path):
    """The first range takes up to four requests; then the site breaks down and comes back."""
    broken = [GOOD] * 4 + [Behaviour(status=500)] + [GOOD]
    with Site(footage, {"/x.mp4": broken}) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *two("x"))
    assert all(isinstance(p, Piece) for p in fetched.pieces.values())
    assert fetched.attempts == 2


def test_limits_of_size_and_length_hold(footage, tmp_path):
    size = (footage / "good.mp4").stat().st_size
    with Site(footage, {"/x.mp4": Behaviour(file="good.mp4", ranges=False)}) as site:
        small = FetchOptions(timeout=30, max_bytes=size - 1)
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, small, *two("x"))
        assert {p.failure_class for p in fetched.pieces.values()} == {FailureClass.TOO_LARGE}
        fetched = get(
            f"{site.url}/{{youtube_id}}.mp4", tmp_path, FetchOptions(timeout=30, max_bytes=9000), *two("good")
        )
        assert {p.failure_class for p in fetched.pieces.values()} == {FailureClass.TOO_LARGE}


def test_a_template_with_the_key_brings_each_trimmed_clip_whole(footage, tmp_path):
    one, other, lost = clip("a", 3, 5), clip("a", 7, 9), clip("a", 11, 13)
    behaviours = {f"/label/{c.key}.mp4": GOOD for c in (one, other)}
    with Site(footage, behaviours) as site:
        fetched = get(f"{site.url}/{{label}}/{{key}}.mp4", tmp_path, QUICK, one, other, lost)
        assert site.count() == 5
    assert fetched.pieces[lost.key].failure_class is FailureClass.GONE
    for wanted in (one, other):
        piece = fetched.pieces[wanted.key]
        assert (piece.start, piece.end, piece.trimmed) == (0.0, 2.0, True)
        assert piece.path.read_bytes() == (footage / "good.mp4").read_bytes()
    assert not fetched.whole


def test_processes_are_started_once_and_a_crashed_one_is_replaced(footage, tmp_path):
    with Site(footage) as site:
        template = f"{site.url}/{{youtube_id}}.mp4"
        get(template, tmp_path, QUICK, *two("good"))
        first = process._take()
        assert first is not None
        asked = first.asked
        process._idle.append(first)
        get(template, tmp_path, QUICK, *two("good"))
        assert first.asked == asked + 1
        first.kill()
        assert all(isinstance(p, Piece) for p in get(template, tmp_path, QUICK, *two("good")).pieces.values())


def test_many_threads_fetch_at_once_each_through_a_process_of_its_own(footage, tmp_path):
    with Site(footage) as site, ThreadPoolExecutor(4) as pool:

        def one(number: int):
            wanted = clip("good", number, number + 1)
            return get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, wanted).pieces[wanted.key]

        pieces = list(pool.map(one, range(12)))
    assert len({p.path for p in pieces if isinstance(p, Piece)}) == 12
    assert len(process._idle) <= 4


@pytest.mark.slow
def test_five_hundred_videos_that_misbehave_each_end_in_the_one_right_outcome(footage, tmp_path):
    kinds = {f"{name}-{i}": name for i in range(500 // len(MISBEHAVIOUR) + 1) for name in MISBEHAVIOUR}
    assert len(kinds) >= 500
    with Site(footage) as private, Site(footage) as site, ThreadPoolExecutor(4) as pool:
        site.behaviours |= _scripts(private, kinds)

        def one(name: str):
            return name, get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, QUICK, *two(name))

        wrong = []
        for name, fetched in pool.map(one, kinds):
            _, expected, most = MISBEHAVIOUR[kinds[name]]
            got = [str(p.failure_class) if isinstance(p, Failed) else None for p in fetched.pieces.values()]
            if got != [expected] * 2 or site.count(f"/{name}.mp4") > most:
                wrong.append((name, expected, fetched))
        assert not wrong
        assert private.requests == []
        kept = {f.parent for f in files(tmp_path)}
        assert len(kept) == sum(MISBEHAVIOUR[kind][1] is None for kind in kinds.values())


def test_a_process_whose_parent_is_gone_ends_with_all_it_started(footage, tmp_path):
    program = (
        "import os; from pipeline.sources.ytdlp import process; w = process.Worker();"
        "print(w._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    finished = subprocesses.run([sys.executable, "-c", program], timeout=60)
    pid = int(finished.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        assert not Path(f"/proc/{pid}").exists()
