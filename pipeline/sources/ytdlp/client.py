"""The process in which yt-dlp runs: reads one JSON line a video and answers with one JSON line.

    python -m pipeline.sources.ytdlp.client     (started, and killed when it stalls, by `process`)

Extracts once, then brings each range with ffmpeg, or the whole file where a range cannot be had. Ends by
itself, with everything it started, when its standard input closes or its parent is gone.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from yt_dlp import YoutubeDL
from yt_dlp.networking import Request as YtRequest
from yt_dlp.utils import ExtractorError
from yt_dlp.utils.networking import HTTPHeaderDict, clean_proxies, select_proxy
from yt_dlp.version import __version__

from pipeline.media.probe import probe, reader_options
from pipeline.outcome import Failed, FailureClass
from pipeline.sources.ytdlp.failures import (
    FailedForNow,
    classify,
    classify_ffmpeg,
    might_be_redirect,
    record_of,
)
from pipeline.sources.ytdlp.network_guard import NO_RANGE_THROUGH_PROXY, Guard, brings_ranges
from pipeline.sources.ytdlp.options import COOKIES, FetchRequest, Log, options

RANGED = ("mp4", "mov", "webm", "mkv")
"""Containers of which a range keeps its clock; of any other the whole file is taken."""

_MAX_PAGE = 64 << 20  # bytes of a page or a playlist
_TAIL = 0.5  # seconds that a range may lack at its end before it counts as cut off
_RANGE_ONLY = (FailureClass.FORMAT, FailureClass.CORRUPT)  # after these, the whole file may still do


class Downloader(YoutubeDL):
    """yt-dlp that reports new requests to the guard and limits the pages that it reads into memory."""

    guard: Guard

    def proxy(self, url: str) -> str | None:
        """The proxy for `url`: the given one, else one that the environment names, else None."""
        proxies = self.proxies.copy()
        clean_proxies(proxies, HTTPHeaderDict())
        return select_proxy(url, proxies)

    def urlopen(self, req: Any) -> Any:
        """yt-dlp's own, for a new address, with a limited answer."""
        self.guard.new_address()
        answer = super().urlopen(req)
        read = answer.read

        def limited(amount: int | None = None) -> bytes:
            if amount is not None and amount >= 0:
                return read(amount)
            data = read(_MAX_PAGE + 1)  # after decompression, so that a small answer cannot fill the memory
            if len(data) > _MAX_PAGE:
                raise Failed(FailureClass.FORMAT, f"The page is larger than {_MAX_PAGE >> 20} MiB.")
            return data

        answer.read = limited
        return answer


class Fetch:
    """One request in progress."""

    def __init__(self, request: FetchRequest, guard: Guard):
        self.request, self.guard, self.log = request, guard, Log()
        self.started = 0  # ffmpeg processes, each at least one request
        self.fallback: str | None = None
        self.folder = Path(request.folder)

    def run(self) -> dict[str, Any]:
        """Serve the request: a file or a failure for each range, or one of either for all."""
        try:
            with Downloader(options(self.request, self.log)) as self.ydl:
                self.ydl.guard = self.guard
                answers = self.bring(self.extract())
        except Exception as error:
            answers = [record_of(self.explain(error))]
        finally:
            (self.folder / COOKIES).unlink(missing_ok=True)
        return {
            "pieces": answers,
            "requests": self.guard.requests + self.started,
            "fallback": self.fallback,
            "tool": f"yt-dlp {__version__}",
        }

    def extract(self) -> dict[str, Any]:
        """yt-dlp's description of the format to take. Raises Failed for playlists, live streams and sound."""
        info = self.ydl.extract_info(self.request.url, download=False)
        if not info or info.get("_type", "video") != "video":
            raise Failed(FailureClass.FORMAT, "The address leads to a playlist or a page, not to one video.")
        if info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
            raise Failed(FailureClass.UNAVAILABLE, f"The video is live or to come ({info['live_status']}).")
        if not self.request.site and not info.get("direct"):
            raise Failed(FailureClass.FORMAT, "The address leads to a page, not to a video file.")
        parts = info.get("requested_formats") or [info]
        video = next((p for p in parts if p.get("vcodec") != "none"), parts[0])
        if video.get("vcodec") == "none":
            raise Failed(FailureClass.FORMAT, "There is sound and no video at the address.")
        return {key: value for key, value in {**info, **video}.items() if key != "requested_formats"}

    def bring(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """A file or a failure for each range, in order; after some failures no further range is tried."""
        answers: list[dict[str, Any]] = []
        whole: dict[str, Any] | None = None
        duration = info.get("duration")
        why_whole = self.why_not_ranges(info)
        self.fallback = why_whole if self.request.ranges else None
        for number, (low, high, start, end) in enumerate(self.request.ranges or [[0.0, 0.0, 0.0, 0.0]]):
            if self.request.ranges and duration and start >= duration + 1:
                reason = f"The clip starts at {start:g} s, the video ends at {duration:g} s."
                answers.append(record_of(Failed(FailureClass.SHORT, reason)))
                continue
            if why_whole is None:
                try:
                    answers.append(self.range(info, number, low, high, end))
                    continue
                except Exception as error:
                    for rest in self.folder.glob(f"{number}.*"):
                        rest.unlink()
                    failed = self.explain(error, media=True)
                    if failed.failure_class not in _RANGE_ONLY and not self.ignores_ranges(info, failed):
                        return answers + [record_of(failed)] * (len(self.request.ranges) - len(answers))
                    why_whole = self.fallback = failed.reason
            whole = whole or self.whole(info)
            answers.append(whole)
        return answers

    def why_not_ranges(self, info: dict[str, Any]) -> str | None:
        """The reason for a full download; None where ranges may be asked for."""
        if not self.request.ranges:
            return "no range is wanted"
        if info.get("protocol") not in ("http", "https"):
            return f"a range over {info.get('protocol')} does not keep its clock"
        if info.get("ext") not in RANGED:
            return f"a range of .{info.get('ext')} does not keep its clock"
        if not brings_ranges(self.ydl.proxy(info["url"])):
            return NO_RANGE_THROUGH_PROXY
        if self.request.ytdlp.get("source_address"):
            return "a range cannot be asked for from a source_address"  # ffmpeg does not know it
        return None

    def range(self, info: dict[str, Any], number: int, low: float, high: float, end: float) -> dict[str, Any]:
        """The answer for seconds `low` to `high` on the source's clock: a file that is whole up to `end`."""
        from yt_dlp.downloader.external import FFmpegFD

        path = self.folder / f"{number}.{info['ext']}"
        section = {**info, "section_start": low, "section_end": high}
        for turn in range(2):
            proxy = self.ydl.proxy(section["url"])
            self.guard.check_url(section["url"], proxy)
            self.started += 1
            said = ""
            with _proxy_of_children(proxy), _stderr() as captured:
                try:
                    FFmpegFD(self.ydl, self.ydl.params).download(str(path), section)
                except Exception as error:
                    said = captured()
                    if "exited with code" not in str(error):
                        raise
                else:
                    said = captured()
                    break
            if turn or not might_be_redirect(said) or not self.follow(section):
                raise self.explain_ffmpeg(said)
            info["url"] = section["url"]
        return {"file": str(path), "duration": self.check_range(path, said, low, end)}

    def follow(self, info: dict[str, Any]) -> bool:
        """Replace the address by the one that it redirects to, if any; yt-dlp asks, so the guard sees it."""
        with self.first_byte(info) as answer:
            moved = answer.url != info["url"]
            info["url"] = answer.url
        return moved

    def ignores_ranges(self, info: dict[str, Any], failed: Failed) -> bool:
        """Whether a range broke off because the server always sends the whole file."""
        if "prematurely" not in failed.reason:
            return False
        try:
            with self.first_byte(info) as answer:
                return answer.status == 200
        except Exception:  # the range's own failure says more
            return False

    def first_byte(self, info: dict[str, Any]) -> Any:
        """The answer to a request for the first byte of the media."""
        headers = {**(info.get("http_headers") or {}), "Range": "bytes=0-0"}
        return self.ydl.urlopen(YtRequest(info["url"], headers=headers))

    def check_range(self, path: Path, said: str, low: float, end: float) -> float | None:
        """The source's duration (s); `Failed` unless the file goes to `end`, or as far as the source."""
        size = path.stat().st_size
        if size >= self.request.max_bytes:
            raise Failed(FailureClass.TOO_LARGE, f"The range is larger than {self.request.max_bytes} bytes.")
        telling = self.explain_ffmpeg(said)
        if telling.failure_class not in _RANGE_ONLY:
            raise telling
        source = probe(path)
        match = re.search(r"Duration: (\d+):(\d+):([\d.]+)(?:, start: (-?[\d.]+))?", said)
        lasts, last = None, end
        if match:
            hours, minutes, seconds, begin = match.groups(default="0")
            lasts = round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 2)
            last = min(end, lasts + float(begin))
        late = low > 0 and source.start > low + _TAIL
        if late or source.end is None or source.end < last - _TAIL:
            raise Failed(FailureClass.FORMAT, f"the range came as {source.start:g} to {source.end} s")
        return lasts

    def whole(self, info: dict[str, Any]) -> dict[str, Any]:
        """Bring the whole file: its answer, or that of the failure."""
        try:
            duration = info.get("duration")
            if duration and duration > self.request.max_duration:
                reason = f"The whole video lasts {duration:g} s, more than {self.request.max_duration:g} s."
                raise Failed(FailureClass.TOO_LARGE, reason)
            if info.get("protocol") not in ("http", "https", "m3u8_native", "http_dash_segments"):
                reason = f"The video comes over {info.get('protocol')}, which is not read."
                raise Failed(FailureClass.FORMAT, reason)
            ext = info.get("ext") if re.fullmatch(r"[a-z0-9]{1,5}", info.get("ext") or "") else "video"
            path = self.folder / f"whole.{ext}"
            self.ydl.add_progress_hook(self.watch_size)
            done, _ = self.ydl.dl(str(path), info)
            if not done or not path.is_file():
                raise self.why_nothing()
            if path.stat().st_size > self.request.max_bytes:
                raise self.too_large()
            probe(path)
            return {"file": str(path), "duration": _duration(path)}
        except Exception as error:
            for rest in self.folder.glob("whole.*"):
                rest.unlink()
            return record_of(self.explain(error, media=True))

    def explain_ffmpeg(self, said: str) -> Failed:
        """The failure that the messages of ffmpeg mean."""
        declared = re.search(r"ends prematurely at \d+, should be (\d+)", said)
        if declared and int(declared[1]) > self.request.max_bytes:
            return self.too_large()
        return classify_ffmpeg(said, site=self.request.site)

    def watch_size(self, progress: dict[str, Any]) -> None:
        """Stop a full download that grows too large."""
        if max(progress.get("downloaded_bytes") or 0, 0) > self.request.max_bytes:
            raise self.too_large()

    def too_large(self) -> Failed:
        return Failed(FailureClass.TOO_LARGE, f"The file is larger than {self.request.max_bytes} bytes.")

    def why_nothing(self) -> Failed:
        """The failure of a download that ended without a file."""
        if any("larger than max-filesize" in line for line in self.log.lines):
            return self.too_large()
        said = next((line for line in reversed(self.log.lines) if line.strip()), "nothing")
        nothing = ExtractorError(f"The download came to nothing: {said.strip()}")
        return classify(nothing, site=self.request.site)

    def explain(self, error: BaseException, *, media: bool = False) -> Failed:
        """The failure that `error` means, unless the guard refused a connection."""
        if self.guard.refused:
            return Failed(FailureClass.UNSAFE, self.guard.refused)
        if self.guard.looped:
            return FailedForNow(FailureClass.NETWORK, "The address leads round in a redirect loop.")
        failed = classify(error, site=self.request.site, media=media)
        if failed.failure_class is FailureClass.ENVIRONMENT:
            runtime = next((w for w in self.log.warnings if "JavaScript runtime" in w), None)
            update = "Bring yt-dlp up to date and install a JavaScript runtime (pip install -U yt-dlp deno)."
            return Failed(FailureClass.ENVIRONMENT, f"{failed.reason} {runtime or update}")
        return failed


def _duration(path: Path) -> float | None:
    """Seconds, rounded as ffmpeg writes them, of a file that passed `probe`."""
    import av

    with av.open(f"file:{path}", options=reader_options()) as container:
        return None if container.duration is None else (container.duration + 5000) // 10000 / 100


@contextmanager
def _proxy_of_children(proxy: str | None) -> Iterator[None]:
    """Make ffmpeg use this proxy, or none: unlike yt-dlp it looks at these two variables."""
    before = {name: os.environ.pop(name, None) for name in ("http_proxy", "no_proxy")}
    if proxy is not None:
        os.environ["http_proxy"] = proxy
    try:
        yield
    finally:
        os.environ.pop("http_proxy", None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def _stderr() -> Iterator[Any]:
    """Catch the standard error of children; yields a function that reads its last 64 KiB."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            return file.read().decode("utf-8", "replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _read_requests(lines: SimpleQueue[bytes]) -> None:
    """Pass lines on; at the end of input, or without the parent, end the whole process group."""
    parent, held = os.getppid(), b""
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], 1.0)
        if not ready:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            break
        held += chunk
        *whole, held = held.split(b"\n")
        for line in whole:
            lines.put(line)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Answer requests until standard input closes. Must lead a process group of its own."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # keeps other output of this process out of the answers
    guard = Guard()
    guard.install()
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(lines,), daemon=True).start()
    answers.write(json.dumps({"ready": True}).encode() + b"\n")
    while True:
        request = FetchRequest(**json.loads(lines.get()))
        guard.begin(request.trusted, request.proxy)
        answers.write(json.dumps(Fetch(request, guard).run()).encode() + b"\n")


if __name__ == "__main__":
    if os.getpgrp() != os.getpid():
        sys.exit("This program is started by pipeline.sources.ytdlp.process, in a process group of its own.")
    main()
