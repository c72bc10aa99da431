"""Every failure of the site has its class, read from what yt-dlp really raises, in the process that runs it.

A plug-in answers in the site's place; its errors go the way of all of yt-dlp's.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import timestamped
from fetch_fixtures import clip, get, install_plugin

from demo.site import Behaviour, Site
from pipeline.outcome import RETRY_AFTER, Failed, FailureClass
from pipeline.sources import FetchOptions, Piece
from pipeline.sources.ytdlp import process
from pipeline.sources.ytdlp.failures import classify, classify_ffmpeg, retry_after

NOWHERE = "http://192.0.2.1"  # an address for documents: nothing is there, and it is not public
HINT = (
    "Use --cookies-from-browser or --cookies for the authentication. See  https://github.com/yt-dlp/yt-dlp/wiki/"
    "FAQ#how-do-i-pass-cookies-to-yt-dlp  for how to manually pass cookies. Also see  https://github.com/yt-dlp/"
    "yt-dlp/wiki/Extractors#exporting-youtube-cookies  for tips on effectively exporting YouTube cookies"
)
SENTENCES = {
    # class, how yt-dlp's extractor raises it, the site's sentence
    "private": ("gone", "raise_no_formats", f"Private video. Sign in if you've been granted access. {HINT}"),
    "private2": ("gone", "raise_no_formats", "Video unavailable. This video is private"),
    "uploader": (
        "gone",
        "raise_no_formats",
        "Video unavailable. This video has been removed by the uploader",
    ),
    "terminated": (
        "gone",
        "raise_no_formats",
        "Video unavailable. This video is no longer available because the YouTube account associated with "
        "this video has been terminated.",
    ),
    "closed": (
        "gone",
        "raise_no_formats",
        "This video is no longer available because the uploader has closed their YouTube account.",
    ),
    "terms": (
        "gone",
        "raise_no_formats",
        "This video has been removed for violating YouTube’s Terms of Service",
    ),
    "claim": (
        "gone",
        "raise_no_formats",
        "Video unavailable. This video is no longer available due to a copyright claim by Somebody",
    ),
    "drm": ("gone", "report_drm", "drm"),
    "bare": ("unavailable", "raise_no_formats", "Video unavailable"),
    "bare2": ("unavailable", "raise_no_formats", "Video unavailable. This video is not available"),
    "premiere": ("unavailable", "raise_no_formats", "Premieres in 3 days"),
    "unknown": ("unavailable", "ExtractorError", "Unable to extract something"),
    "geo": (
        "geo",
        "GeoRestrictedError",
        "The uploader has not made this video available in your country",
    ),
    "geo2": (
        "geo",
        "raise_no_formats",
        "Video unavailable. The uploader has not made this video available in your country",
    ),
    "geo3": (
        "geo",
        "raise_no_formats",
        "This video contains content from UMG, who has blocked it in your country on copyright grounds",
    ),
    "everywhere": (
        "gone",
        "raise_no_formats",
        "This video contains content from UMG, who has blocked it on copyright grounds",
    ),
    "age": (
        "age",
        "raise_no_formats",
        f"Sign in to confirm your age. This video may be inappropriate for some users. {HINT}",
    ),
    "bot": ("blocked", "raise_no_formats", f"Sign in to confirm you’re not a bot. {HINT}"),
    "bot2": ("blocked", "raise_no_formats", f"Sign in to confirm you're not a bot. {HINT}"),
    "captcha": (
        "blocked",
        "raise_no_formats",
        "Please. YouTube is requiring a captcha challenge before playback",
    ),
    "ip": (
        "blocked",
        "ExtractorError",
        "All player responses are invalid. Your IP is likely being blocked by Youtube",
    ),
    "later": (
        "rate",
        "raise_no_formats",
        "Video unavailable. This content isn’t available, try again later. The current session has been "
        "rate-limited by YouTube for up to an hour. It is recommended to use `-t sleep` to add a delay "
        "between video requests to avoid exceeding the rate limit.",
    ),
    "members": (
        "refused",
        "raise_no_formats",
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
    ),
    "pay": ("refused", "raise_no_formats", "This video requires payment to watch"),
    "login": ("refused", "raise_login_required", "Login required"),
    "player": ("environment", "ExtractorError", "Failed to extract any player response"),
    "formats": ("environment", "raise_no_formats", "No video formats found!"),
    "timeout": ("network", "ExtractorError", "Unable to download API page: The read operation timed out"),
    "resolve": (
        "network",
        "ExtractorError",
        "Unable to download webpage: Failed to resolve 'www.youtube.com' (Name or service not known)",
    ),
}


def as_id(name: str) -> str:
    return name.ljust(11, "_")


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    timestamped.write(folder / "media.mp4", timestamped.constant(25, 14))
    return folder


@pytest.fixture(scope="module")
def youtube(tmp_path_factory):
    """Sets the script of the plug-in that answers for YouTube, in processes that know the plug-in."""
    folder = tmp_path_factory.mktemp("youtube")
    script = folder / "script.json"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", str(install_plugin(folder)))
        patch.setenv("SCRIPTED_VIDEOS", str(script))
        process.close()
        yield lambda videos: script.write_text(json.dumps({as_id(k): v for k, v in videos.items()}), "utf-8")
        process.close()


def fetched(name: str, folder: Path, *clips, **options):
    clips = clips or (clip(as_id(name), 6, 8),)
    return get("youtube", folder, FetchOptions(backoff=0.01, timeout=20, **options), *clips)


def failure(name: str, folder: Path, **options) -> Failed:
    piece = fetched(name, folder, **options).pieces[clip(as_id(name), 6, 8).key]
    assert isinstance(piece, Failed), piece
    return piece


def test_every_sentence_of_the_site_has_its_class(youtube, tmp_path):
    youtube(
        {
            name: {"raise": [how, sentence, *([True] if how == "raise_no_formats" else [])]}
            for name, (_, how, sentence) in SENTENCES.items()
        }
    )
    wrong = []
    for name, (expected, _, _) in SENTENCES.items():
        got = failure(name, tmp_path, attempts=1)
        if got.failure_class != expected:
            wrong.append((name, expected, str(got)))
        assert (got.retry_after is not None) == (got.failure_class in RETRY_AFTER)
        assert "\n" not in got.reason
        assert "\x1b" not in got.reason
    assert not wrong


def test_a_missing_javascript_runtime_is_named_where_formats_are_missing(youtube, tmp_path):
    warning = "No supported JavaScript runtime could be found. Only deno is enabled by default"
    board = {"url": f"{NOWHERE}/a.jpg", "ext": "mhtml", "vcodec": "none", "acodec": "none"}
    youtube({"a": {"warnings": [warning], "formats": [board]}, "b": {"formats": [board]}})
    assert failure("a", tmp_path).failure_class is FailureClass.ENVIRONMENT
    assert "JavaScript runtime" in failure("a", tmp_path).reason
    assert "Requested format is not available" in failure("b", tmp_path).reason


def media(url: str, **more) -> list[dict]:
    return [
        {"format_id": "18", "url": url, "ext": "mp4", "vcodec": "avc1", "acodec": "none", "height": 360}
        | more
    ]


def test_a_403_of_the_media_host_means_tokens_and_other_statuses_keep_their_classes(
    youtube, tmp_path, footage
):
    """The site's hosts are reached through a proxy, which here is the loopback site."""
    statuses = {"403": "token", "404": "gone", "410": "gone", "429": "rate", "503": "network"}
    youtube({name: {"formats": media(f"http://media.example/{name}.mp4")} for name in statuses})
    behaviours = {f"/{name}.mp4": Behaviour(status=int(name)) for name in statuses}
    with Site(footage, behaviours) as site:
        for name, expected in statuses.items():
            got = failure(name, tmp_path, proxy=site.url)
            assert (name, got.failure_class) == (name, expected)
            assert site.count(f"/{name}.mp4") == (3 if expected == "network" else 1)


def test_the_pages_statuses_keep_their_classes_and_their_time(youtube, tmp_path, footage):
    statuses = {"403": "refused", "404": "gone", "429": "rate", "451": "geo", "500": "network"}
    youtube({name: {"page": f"http://page.example/{name}"} for name in statuses})
    later = {"Retry-After": "7200"}
    behaviours = {f"/{n}": Behaviour(status=int(n), headers=later if n == "429" else {}) for n in statuses}
    with Site(footage, behaviours) as site:
        for name, expected in statuses.items():
            got = failure(name, tmp_path, proxy=site.url, attempts=1)
            assert (name, got.failure_class) == (name, expected)
            if name == "429":
                assert abs(got.retry_after - datetime.now(UTC) - timedelta(seconds=7200)) < timedelta(
                    minutes=1
                )


def test_sections_come_from_the_media_host_with_one_extraction(youtube, tmp_path, footage):
    youtube({"good": {"formats": media("http://media.example/media.mp4"), "duration": 14}})
    clips = tuple(clip(as_id("good"), start, start + 1) for start in (4, 7, 10))
    with Site(footage) as site:
        got = fetched("good", tmp_path, *clips, proxy=site.url)
    assert [p.kind for p in got.pieces.values() if isinstance(p, Piece)] == ["youtube"] * 3
    assert not got.whole
    assert got.tool.startswith("yt-dlp 20")
    assert all(p.duration == 14.0 for p in got.pieces.values())


def test_a_clip_beyond_the_videos_end_is_short_and_a_live_video_is_unavailable(youtube, tmp_path):
    url = f"{NOWHERE}/none.mp4"  # never asked for
    youtube(
        {
            "short": {"formats": media(url), "duration": 4},
            "live": {"formats": media(url), "live_status": "is_live"},
        }
    )
    assert failure("short", tmp_path).failure_class is FailureClass.SHORT
    assert failure("live", tmp_path).failure_class is FailureClass.UNAVAILABLE


def test_the_smallest_format_that_serves_is_taken_h264_first_and_over_plain_http(youtube, tmp_path, footage):
    def offer(name: str, height: int, codec: str, **more) -> dict:
        width = height * 16 // 9
        form = {"format_id": name, "url": f"http://media.example/{name}.mp4", "ext": "mp4", "vcodec": codec}
        return form | {"acodec": "none", "height": height, "width": width} | more

    plain = [
        offer("240", 240, "avc1", tbr=100),
        offer("360-vp9", 360, "vp9", tbr=900),
        offer("360-hls", 360, "avc1", tbr=990, protocol="m3u8_native"),
        offer("360", 360, "avc1", tbr=300),
        offer("720", 720, "avc1", tbr=2000),
    ]
    small = [offer("144", 144, "avc1"), offer("240", 240, "avc1")]
    tall = [offer("tall-256", 454, "avc1", width=256), offer("tall-144", 256, "avc1", width=144)]
    vp9 = [offer("480-vp9", 480, "vp9"), offer("1080", 1080, "avc1")]
    offers = {
        "plain": (plain, "360"),
        "small": (small, "240"),
        "tall": (tall, "tall-256"),
        "vp9": (vp9, "480-vp9"),
    }
    youtube({name: {"formats": formats} for name, (formats, _) in offers.items()})
    with Site(footage) as site:
        for name, (_, expected) in offers.items():
            site.clear()
            failure(name, tmp_path, proxy=site.url)
            assert {r.path for r in site.requests} == {f"/{expected}.mp4"}, name


def test_a_stream_in_fragments_comes_whole_and_a_missing_fragment_fails_it(youtube, tmp_path, footage):
    timestamped.write(footage / "part.ts", timestamped.constant(25, 9))
    lists = {
        name: f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{part}\n#EXT-X-ENDLIST\n".encode()
        for name, part in {"good": "part.ts", "lost": "none.ts"}.items()
    }
    youtube({n: {"formats": media(f"http://media.example/{n}.m3u8", protocol="m3u8_native")} for n in lists})
    with Site(footage, {f"/{n}.m3u8": Behaviour(body=body) for n, body in lists.items()}) as site:
        got = fetched("good", tmp_path, proxy=site.url)
        assert got.whole
        assert len(got.fallbacks) == 1
        piece = got.pieces[clip(as_id("good"), 6, 8).key]
        assert isinstance(piece, Piece)
        assert piece.path.read_bytes() == (footage / "part.ts").read_bytes()
        lost = failure("lost", tmp_path, proxy=site.url)
        assert lost.failure_class in (FailureClass.GONE, FailureClass.NETWORK)


def test_a_long_video_gives_sections_but_is_not_downloaded_whole(youtube, tmp_path, footage):
    long = {"duration": 8 * 3600}
    youtube(
        {
            "section": {"formats": media("http://media.example/media.mp4")} | long,
            "whole": {"formats": media("http://media.example/media.mp4", protocol="m3u8_native")} | long,
        }
    )
    with Site(footage) as site:
        assert isinstance(next(iter(fetched("section", tmp_path, proxy=site.url).pieces.values())), Piece)
        site.clear()
        assert failure("whole", tmp_path, proxy=site.url).failure_class is FailureClass.TOO_LARGE
        assert site.requests == []


def test_sound_alone_is_no_video(youtube, tmp_path):
    youtube({"a": {"formats": media(f"{NOWHERE}/a.m4a", vcodec="none", acodec="aac", ext="m4a")}})
    assert failure("a", tmp_path).failure_class is FailureClass.FORMAT


def test_the_site_cannot_send_us_to_a_private_address(youtube, tmp_path, footage):
    with Site(footage) as inside:
        local = f"{inside.url}/media.mp4"
        youtube(
            {
                "section": {"formats": media(local)},
                "page": {"page": local},
                "whole": {"formats": media(local, ext="flv")},
                "name": {"formats": media(local.replace("127.0.0.1", "localhost"))},
                "list": {"formats": media(f"{inside.url}/list.m3u8", protocol="m3u8_native")},
            }
        )
        for name in ("section", "page", "whole", "name", "list"):
            assert (name, failure(name, tmp_path).failure_class) == (name, FailureClass.UNSAFE)
        assert inside.requests == []


@pytest.mark.parametrize("protocol", ["http", "m3u8_native", "http_dash_segments", "rtmp", "file"])
def test_a_playlist_of_the_site_cannot_read_local_files(youtube, tmp_path, footage, protocol):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes((footage / "media.mp4").read_bytes())
    body = f"#EXTM3U\n#EXT-X-TARGETDURATION:14\n#EXTINF:14,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    url = (
        f"file://{secret}"
        if protocol == "file"
        else f"{protocol[:4]}://media.example/list.m3u8".replace("m3u8:", "http:")
    )
    more = {"protocol": protocol} if protocol not in ("http", "file") else {}
    if protocol == "http_dash_segments":
        more["fragments"] = [{"url": f"file://{secret}"}]
    youtube({"list": {"formats": media(url, **more)}})
    with Site(footage, {"/list.m3u8": Behaviour(body=body)}) as site:
        got = failure("list", tmp_path, proxy=site.url)
    assert got.failure_class in (FailureClass.UNSAFE, FailureClass.FORMAT), got
    assert not [p for p in tmp_path.rglob("*.mp4") if p != secret]


def test_cookies_and_other_options_reach_the_site_and_the_file_is_left_alone(youtube, tmp_path, footage):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(
        "# Netscape HTTP Cookie File\n.example\tTRUE\t/\tFALSE\t4102444800\tname\tvalue\n", encoding="utf-8"
    )
    before = cookies.read_bytes()
    youtube({"good": {"formats": media("http://media.example/media.mp4")}})
    with Site(footage) as site:
        options = {
            "proxy": site.url,
            "cookies": str(cookies),
            "ytdlp": {"http_headers": {"User-Agent": "ours"}},
        }
        got = fetched("good", tmp_path, **options)
        assert {r.agent for r in site.requests} == {"ours"}
    assert isinstance(next(iter(got.pieces.values())), Piece)
    assert cookies.read_bytes() == before
    assert not [p for p in tmp_path.rglob("cookies.txt") if p != cookies]
    lost = FetchOptions(cookies=str(cookies))
    cookies.unlink()
    got = get("youtube", tmp_path, lost, clip(as_id("good"), 6, 8))
    assert {p.failure_class for p in got.pieces.values()} == {FailureClass.ENVIRONMENT}


def test_an_installation_without_ytdlp_says_so(tmp_path, monkeypatch):
    broken = tmp_path / "broken" / "yt_dlp"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('yt_dlp is broken here')")
    own = tmp_path / "broken" / "pipeline" / "media" / "subprocesses.py"
    monkeypatch.setattr(process.subprocesses.Path, "resolve", lambda self: own)
    process.close()
    with pytest.raises(Failed, match="pip install") as caught:
        process.Worker()
    assert caught.value.failure_class is FailureClass.ENVIRONMENT


def test_retry_after_is_read_as_seconds_or_as_a_date_and_not_believed_beyond_reason():
    now = datetime.now(UTC)
    assert abs(retry_after({"retry-after": "90"}) - now - timedelta(seconds=90)) < timedelta(seconds=3)
    assert retry_after({"Retry-After": "Wed, 21 Oct 2076 07:28:00 GMT"}) < now + timedelta(days=31)
    assert retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) >= now - timedelta(seconds=3)
    for nonsense in ("", "soon", "-5", "1e9", "9" * 40):
        assert retry_after({"Retry-After": nonsense}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[http @ 0x1] HTTP error 404 Not Found", "gone"),
        ("[https @ 0x1] Server returned 403 Forbidden (access denied)", "refused"),
        ("Server returned 5XX Server Error reply", "network"),
        ("[http @ 0x1] HTTP error 416 Requested Range Not Satisfiable", "format"),
        ("[tcp @ 0x1] Connection to tcp://h failed: Connection refused", "network"),
        ("[http @ 0x1] Stream ends prematurely at 5, should be 9", "network"),
        ("[http @ 0x1] Protocol 'file' not on whitelist 'http'!", "unsafe"),
        ("[in#0] Format not on whitelist 'mov,matroska'", "format"),
        ("av_interleaved_write_frame(): No space left on device", "storage"),
        ("Error opening input: Invalid data found when processing input", "format"),
        ("", "format"),
    ],
)
def test_messages_of_ffmpeg_have_their_class(said, expected):
    assert classify_ffmpeg(said).failure_class == expected


def test_errors_from_outside_ytdlp_have_a_class_too():
    assert classify(OSError(28, "No space left on device")).failure_class is FailureClass.STORAGE
    assert classify(TimeoutError()).failure_class is FailureClass.NETWORK
    assert classify(KeyError("x")).failure_class is FailureClass.FORMAT
    assert classify(KeyError("x"), site=True).failure_class is FailureClass.UNAVAILABLE
    same = Failed(FailureClass.GONE, "so it is")
    assert classify(same) is same
