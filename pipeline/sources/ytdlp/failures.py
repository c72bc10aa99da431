"""Classifies failures of yt-dlp and ffmpeg: exception or stderr -> `Failed` with its class.

Sentences of a site are read here only. The table follows yt-dlp 2026.10; more specific sentences come before
more general ones, since "Sign in" and "Video unavailable" begin many of them.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.outcome import Failed, FailureClass

LONGEST_WAIT = timedelta(days=30)
"""The latest time to ask again that a site may name."""


class FailedForNow(Failed):
    """A network failure that is not retried in this run: a redirect loop, or the site named a time."""


def record_of(failed: Failed) -> dict[str, Any]:
    """A failure as plain values for the pipe to the process that runs yt-dlp; `failure_of` reads them."""
    return {
        "failed": str(failed.failure_class),
        "reason": failed.reason,
        "retry_after": failed.named.isoformat() if failed.named else None,
        "for_now": isinstance(failed, FailedForNow),
    }


def failure_of(record: dict[str, Any]) -> Failed:
    """The failure of which `record_of` made a record."""
    named = datetime.fromisoformat(record["retry_after"]) if record["retry_after"] else None
    kind = FailedForNow if record["for_now"] else Failed
    return kind(FailureClass(record["failed"]), record["reason"], named)


_SENTENCES: tuple[tuple[FailureClass, str], ...] = (
    (FailureClass.BLOCKED, r"confirm you're not a bot|captcha|ip is likely being blocked"),
    (FailureClass.AGE, r"confirm your age|age.restricted|inappropriate for some users"),
    (
        FailureClass.GEO,
        r"available in your (country|region|location)|available from your (location|country)|"
        r"blocked it in your country|geo.?restrict",
    ),
    (
        FailureClass.GONE,
        r"private video|video is private|removed by the u(ploader|ser)|has been removed|been terminated|"
        r"(closed|deleted) their youtube account|violati(ng|on of) youtube's|drm protect|copyright claim|"
        r"blocked it on copyright grounds|no longer exists|does not exist",
    ),
    (FailureClass.RATE, r"isn't available,? (please )?try again later|rate.?limited|too many requests"),
    (
        FailureClass.ENVIRONMENT,
        r"no supported javascript runtime|failed to extract any player response|"
        r"ffmpeg could not be found|ffmpeg is not installed|failed to load cookies|"
        r"certificate.verify.failed|update yt-dlp|yt-dlp -u\b.*outdated",
    ),
    (
        FailureClass.REFUSED,
        r"members.only|join this channel|requires payment|rent or buy|music premium|login required|"
        r"sign in|log in|account cookies|requires authentication",
    ),
    (FailureClass.STORAGE, r"no space left|disk quota exceeded|read-only file system|file too large"),
    (FailureClass.TOO_LARGE, r"larger than max.filesize"),
    (
        FailureClass.UNSAFE,
        r"file:// urls are disabled|unsupported url scheme|no connection adapters were found",
    ),
    (
        FailureClass.NETWORK,
        r"timed? ?out|bytes read, \d+ more expected|content too short|incomplete ?read|got error:|"
        r"connection (was )?(reset|refused|aborted|closed)|remote end closed|network is unreachable|"
        r"name or service not known|temporary failure in name resolution|failed to (establish|resolve)|"
        r"eof occurred|unable to continue|broken pipe|getaddrinfo|ssl: ",
    ),
)
_NO_FORMAT = re.compile(r"requested format is not available|no video formats found")
_NO_VIDEO = re.compile(
    r"unsupported url|did not get any data blocks|not a valid url|no video|is empty|"
    r"unsafe .*extension|invalid data"
)
_STATUS = re.compile(r"http error (\d{3})", re.IGNORECASE)
_MEDIA = "unable to download video data"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def classify(error: BaseException, *, site: bool = False, media: bool = False) -> Failed:
    """The class, the sentence and the time to ask again, for any exception of yt-dlp.

    Args:
        error: the exception; those that it holds or came from are looked at too.
        site: the video belongs to YouTube: a 403 on media means tokens, missing formats mean our
            installation. For a plain URL they mean that we are refused, and that there is no video.
        media: the error came from the media host, not from the page.

    Returns:
        `FailedForNow` for a network failure that an immediate retry would only repeat.
    """
    from yt_dlp.networking.exceptions import HTTPError, NoSupportingHandlers, RequestError, TransportError
    from yt_dlp.utils import GeoRestrictedError, YoutubeDLError

    if isinstance(error, Failed):
        return error
    unknown = FailureClass.UNAVAILABLE if site else FailureClass.FORMAT
    chain = _chain(error)

    def holds(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    text = _sentence(chain)
    plain = text.lower().replace("’", "'")
    media = media or _MEDIA in plain
    if holds(GeoRestrictedError):
        return Failed(FailureClass.GEO, text)
    for e in chain:
        if isinstance(e, HTTPError):
            if e.redirect_loop:
                return FailedForNow(FailureClass.NETWORK, text)
            return of_status(e.status, text, e.response.headers, token=site and media)
    status = _STATUS.search(text)
    if status:
        return of_status(int(status[1]), text, {}, token=site and media)
    if any(isinstance(e, OSError) and e.errno in _FULL for e in chain):
        return Failed(FailureClass.STORAGE, text)
    for failure_class, pattern in _SENTENCES:
        if re.search(pattern, plain):
            return Failed(failure_class, text)
    if _NO_FORMAT.search(plain):
        return Failed(FailureClass.ENVIRONMENT if site else FailureClass.FORMAT, text)
    if _NO_VIDEO.search(plain) and not (site and "video unavailable" in plain):
        return Failed(unknown, text)
    if holds(TransportError, TimeoutError, ConnectionError):
        return Failed(FailureClass.NETWORK, text)
    if holds(NoSupportingHandlers) or any(type(e) is RequestError for e in chain):
        return Failed(FailureClass.UNSAFE, text)
    return Failed(unknown, text if holds(YoutubeDLError) else f"{type(error).__name__}: {text}")


_STATUSES = {404: FailureClass.GONE, 410: FailureClass.GONE, 429: FailureClass.RATE, 451: FailureClass.GEO}


def of_status(status: int, reason: str, headers: Mapping[str, str], *, token: bool = False) -> Failed:
    """The failure that an HTTP status means.

    Args:
        headers: of the answer; Retry-After (seconds or a date) becomes the time to ask again.
        token: a 403 here means the client or the token, not the video.
    """
    due = retry_after(headers)
    if status in _STATUSES:
        return Failed(_STATUSES[status], reason, due)
    if status == 407:
        return Failed(FailureClass.ENVIRONMENT, f"{reason} (the proxy wants a name and a password)")
    if status == 403 and token:
        return Failed(FailureClass.TOKEN, reason, due)
    if status in (408, 425) or status >= 500 or status < 400:
        return (FailedForNow if due else Failed)(FailureClass.NETWORK, reason, due)
    return Failed(FailureClass.REFUSED, reason)


def retry_after(headers: Mapping[str, str]) -> datetime | None:
    """The UTC time in a Retry-After header, not before now; None without a header that can be read."""
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), "").strip()
    now = datetime.now(UTC).replace(microsecond=0)
    if re.fullmatch(r"\d{1,9}", value):
        return now + min(timedelta(seconds=int(value)), LONGEST_WAIT)
    try:
        named = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    if named.tzinfo is None:
        named = named.replace(tzinfo=UTC)
    return min(max(named.astimezone(UTC), now), now + LONGEST_WAIT)


_FFMPEG = (
    (FailureClass.STORAGE, r"No space left on device|Disk quota exceeded|Read-only file system"),
    (FailureClass.FORMAT, r"Format not on whitelist"),
    (FailureClass.UNSAFE, r"not on whitelist"),
    (
        FailureClass.NETWORK,
        r"Stream ends prematurely|Connection (refused|timed out|reset)|Failed to resolve|Broken pipe|"
        r"Operation timed out|Network is unreachable|No route to host|Error in the pull function|"
        r"Immediate exit|Input/output error",
    ),
)
_FFMPEG_STATUS = re.compile(r"HTTP error (\d{3})|Server returned (\d{3})\b")
_RANGE_REFUSED = (400, 405, 412, 416, 501)


def classify_ffmpeg(stderr: str, *, site: bool = False) -> Failed:
    """The failure of a range by the messages of ffmpeg; the most telling line is the reason.

    Class format only means that the range could not be read: a full download may still work.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    status = _FFMPEG_STATUS.search(stderr)
    if status:
        reason = f"ffmpeg: {_without_prefix(next(line for line in lines if _FFMPEG_STATUS.search(line)))}"
        number = int(status[1] or status[2])
        if number in _RANGE_REFUSED:
            return Failed(FailureClass.FORMAT, reason)
        return of_status(number, reason, {}, token=site)
    if "Server returned 5XX" in stderr:
        return Failed(FailureClass.NETWORK, "ffmpeg: Server returned 5XX")
    for failure_class, pattern in _FFMPEG:
        for line in lines:
            if re.search(pattern, line):
                return Failed(failure_class, f"ffmpeg: {_without_prefix(line)}")
    said = next((line for line in lines if "Error" in line or "Invalid" in line), lines[-1] if lines else "")
    return Failed(FailureClass.FORMAT, f"ffmpeg: {_without_prefix(said)}" if said else "ffmpeg said nothing")


def might_be_redirect(stderr: str) -> bool:
    """Whether ffmpeg, forbidden to follow redirects, may have met one: it gives no reason then."""
    return "Error opening input: Input/output error" in stderr and not (
        _FFMPEG_STATUS.search(stderr) or re.search(r"Connection|timed out|resolve|prematurely", stderr)
    )


def _without_prefix(line: str) -> str:
    return re.sub(r"^\[[^\]]*\] ", "", line)


def _chain(error: BaseException) -> list[BaseException]:
    """`error` and the exceptions that it holds or came from, outermost first, each once."""
    chain: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting and len(chain) < 20:
        e = waiting.pop(0)
        if not isinstance(e, BaseException) or any(e is seen for seen in chain):
            continue
        chain.append(e)
        held = getattr(e, "exc_info", None)
        waiting += [held[1] if isinstance(held, tuple) and len(held) > 1 else None]
        waiting += [getattr(e, "cause", None), getattr(e, "reason", None), e.__cause__]
        waiting += list(getattr(e, "unsupported_errors", ())) + list(getattr(e, "unexpected_errors", ()))
    return chain


def _sentence(chain: list[BaseException]) -> str:
    """The site's own words, without the frame, the colours and the bug-report plea of yt-dlp."""
    told = next((e for e in chain if getattr(e, "orig_msg", None)), chain[0])
    text = str(chain[0]) if _MEDIA in str(chain[0]) else str(getattr(told, "orig_msg", None) or told)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "")
    text = re.split(r"; please report this issue on|\(caused by ", text)[0]
    text = re.sub(r"^(ERROR: )+", "", text.strip())
    return text or type(told).__name__
