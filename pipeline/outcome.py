"""The outcomes of a clip: ready, excluded or failed, with the reason and the time of a retry.

Every manifest row ends as exactly one `Outcome`; its fields are the columns of the published
``outcomes/<generation>.parquet``. A command that fails ends with 1, with 2 for a `CallError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

READY, EXCLUDED, FAILED = "ready", "excluded", "failed"
PROCESS = "process"
"""The plan's decision for a row that has to become ready or fail; its others are EXCLUDED and FAILED."""

DUPLICATE, LEAK, LISTED, REMOVED = EXCLUDED_FOR = ("duplicate", "leak", "listed", "removed")
"""The reasons of an exclusion. Listed: by --exclude. Removed: taken down."""


class FailureClass(StrEnum):
    """The closed list of reasons why a clip failed."""

    GONE = "gone"  # 404, 410, private, removed
    UNAVAILABLE = "unavailable"  # a bare "Video unavailable"
    GEO = "geo"
    AGE = "age"
    BLOCKED = "blocked"  # bot check, captcha: the whole fleet must pause
    RATE = "rate"  # 429, "try again later"
    TOKEN = "token"  # 403 from the media host
    REFUSED = "refused"  # other 401 and 403
    NETWORK = "network"  # time-out, 5xx, truncated, wrong length, stalled, redirect loop
    FORMAT = "format"  # HTML, playlist, concat list, empty, no video
    TOO_LARGE = "too_large"
    UNSAFE = "unsafe"  # redirect or reference to an address or protocol that is not allowed
    MISSING = "missing"  # not in dir: or archive:
    CORRUPT = "corrupt"  # undecodable, or too few frames for its length
    SHORT = "short"  # less than a second inside the source: its end comes too early, or its pictures too late
    ENVIRONMENT = "environment"  # the installation, not the clip: stop early
    STORAGE = "storage"
    MANIFEST = "manifest"  # malformed row


RETRY_AFTER = {
    FailureClass.UNAVAILABLE: timedelta(days=3),
    FailureClass.BLOCKED: timedelta(hours=6),
    FailureClass.RATE: timedelta(hours=1),
    FailureClass.TOKEN: timedelta(hours=6),
    FailureClass.NETWORK: timedelta(minutes=10),
    FailureClass.ENVIRONMENT: timedelta(0),
    FailureClass.STORAGE: timedelta(0),
}
"""The transient classes, and how long to wait before a retry."""


class Failed(Exception):
    """A clip or a video failed, for a reason that has a class.

    Args:
        failure_class: one of `FailureClass`.
        reason: one sentence for a person, in the site's or tool's own words where it has any.
        retry_after: when the site itself named a time (kept as `named`); otherwise `RETRY_AFTER` decides.
    """

    def __init__(self, failure_class: FailureClass, reason: str, retry_after: datetime | None = None):
        super().__init__(f"{failure_class}: {reason}")
        self.failure_class = failure_class
        self.reason = " ".join(reason.split())[:500] or str(failure_class)
        delay = RETRY_AFTER.get(failure_class)
        self.named = self.retry_after = None if delay is None else retry_after
        if delay is not None and retry_after is None:
            self.retry_after = datetime.now(UTC).replace(microsecond=0) + delay

    def __reduce__(self) -> tuple[type[Failed], tuple[FailureClass, str, datetime | None]]:
        return type(self), (self.failure_class, self.reason, self.named)


class CallError(Exception):
    """The call was wrong: one sentence with the remedy."""


class Misplaced(Failed, CallError):
    """No file or folder can be at the place named: it is below a file or a link, or its bucket is absent."""

    def __init__(self, reason: str):
        super().__init__(FailureClass.STORAGE, reason)

    def __reduce__(self) -> tuple[type[Misplaced], tuple[str]]:  # type: ignore[override]
        return Misplaced, (self.reason,)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one manifest row; field for field the published columns.

    ``key``, ``youtube_id``, ``time_start`` and ``time_end`` (seconds) are None for a malformed row.
    ``retry_after`` is UTC and set only for transient classes.
    """

    key: str | None
    manifest: str
    row: int
    youtube_id: str | None
    time_start: float | None
    time_end: float | None
    label: str | None
    split: str
    outcome: str
    excluded_for: str | None = None
    failure_class: str | None = None
    reason: str | None = None
    retry_after: datetime | None = None
    attempts: int = 0
    yielded_to: str | None = None
    generation: str | None = None
