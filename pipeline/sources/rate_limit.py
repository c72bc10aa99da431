"""Limits the requests of all workers to a site: start times in lanes, backing off, and a common pause.

A lane is a fixed share of the videos (a stable hash of the name), processed one by one: N lanes that each
start a video every 3600 N / budget seconds keep the budget together. Without lanes all workers share one
queue of turns. The time of the next turn stands in the work store, so it outlives a worker and no service has
to count requests.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.outcome import Failed, FailureClass
from pipeline.storage import AlreadyExists, Changed, Storage

_FLAG = "pause.json"
_LOOK_SECONDS = 5.0  # between two looks at the flag of the pause
_BROKEN = 3  # failures of the installation in a row that stop the job
_FARTHEST_SECONDS = 7 * 86400.0  # a turn or pause later than that was written by a wrong clock
_MOST_FLAG_BYTES = 1 << 16


@dataclass(frozen=True)
class RateLimit:
    """How fast all workers together may ask a site.

    Attributes:
        budget: videos an hour for all workers; None: no limit.
        lanes: videos fetched at a time, each by a worker of its own; None: as many as there are workers.
        pause: seconds that all workers wait when the site says that it blocks us.
        pauses: how often a video is asked for again after such a pause, before it counts as blocked.
        backoff: seconds a lane waits after a rate limit, doubled for each one in a row, with jitter; longer
            where the site names a longer time.
        longest: seconds; a lane never backs off for longer.
    """

    budget: float | None = None
    lanes: int | None = 1
    pause: float = 1800.0
    pauses: int = 2
    backoff: float = 2.0
    longest: float = 600.0

    @property
    def interval(self) -> float:
        """Seconds between two starts in one lane; of all workers where there are no lanes."""
        return 3600.0 * (self.lanes or 1) / self.budget if self.budget else 0.0


class Lane:
    """Decides when one worker may ask the site for its next video."""

    def __init__(self, limit: RateLimit, storage: Storage):
        self._rate_limit, self._storage = limit, storage
        self._backoff = 0.0  # until when, on the monotonic clock
        self._limited = 0  # rate limits in a row
        self._broken = 0  # failures of the installation in a row

    def wait(self, lane: int | None = None) -> None:
        """Return when the next video of a lane may be started: in its turn, and not during a pause."""
        while True:
            while (left := self._paused_for()) > 0:
                time.sleep(min(left, _LOOK_SECONDS))
            left = max(0.0, self._backoff - time.monotonic())
            if self._rate_limit.interval:
                left = _take_turn(self._storage, self._rate_limit, lane, left)
            if left <= 0:
                return
            time.sleep(left)
            if self._paused_for() <= 0:
                return

    def record_result(self, fetched: Mapping[str, object]) -> bool:
        """Note the pieces of a video: a failure of class blocked pauses all workers, rate slows this lane.

        Returns:
            Whether the same video is worth another request after the pause.

        Raises:
            Failed: class environment, the third time in a row: the installation is at fault, not a video.
        """
        failures = {p.failure_class: p for p in fetched.values() if isinstance(p, Failed)}
        self._broken = self._broken + 1 if FailureClass.ENVIRONMENT in failures else 0
        if self._broken >= _BROKEN:
            raise failures[FailureClass.ENVIRONMENT]
        self._limited = self._limited + 1 if FailureClass.RATE in failures else 0
        if self._limited:
            backoff = self._rate_limit.backoff * 2 ** (self._limited - 1) * random.uniform(0.5, 1.0)
            named = failures[FailureClass.RATE].named
            asked = (named - datetime.now(UTC)).total_seconds() if named else 0.0
            wait = min(self._rate_limit.longest, max(backoff, asked))
            self._backoff = max(self._backoff, time.monotonic() + wait)
        blocked = failures.get(FailureClass.BLOCKED)
        if blocked:
            until = datetime.now(UTC) + timedelta(seconds=self._rate_limit.pause)
            flag = {"until": until.isoformat(), "reason": blocked.reason}
            self._storage.write(_FLAG, json.dumps(flag).encode())
        return blocked is not None

    def _paused_for(self) -> float:
        pause = paused_until(self._storage, self._rate_limit.pause)
        return (pause[0] - datetime.now(UTC)).total_seconds() if pause else 0.0


def _turn_file(limit: RateLimit, lane: int | None) -> str:
    return f"lanes/{limit.lanes or 'all'}-{lane or 0:05d}.json"


def _take_turn(storage: Storage, limit: RateLimit, lane: int | None, earliest: float) -> float:
    """Take a lane's next turn, at least `earliest` seconds from now; returns the seconds until then."""
    path = _turn_file(limit, lane)
    while True:
        version = storage.version(path)
        now = time.time()
        start = max(now + earliest, _next_turn(storage, path, now)) if version else now + earliest
        turn = json.dumps({"next": start + limit.interval}).encode()
        with contextlib.suppress(AlreadyExists, Changed):  # another worker was faster
            if version:
                storage.replace(path, turn, version)
            else:
                storage.create(path, turn)
            return start - now


def _next_turn(storage: Storage, path: str, now: float) -> float:
    """The time of the next turn (seconds since the epoch); 0 where it is unknown or absurdly late."""
    try:
        turn = float(json.loads(storage.read_bytes(path))["next"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0.0
    return turn if turn - now < _FARTHEST_SECONDS else 0.0


def forget_turns(storage: Storage, limit: RateLimit) -> None:
    """Give back the turns in the common queue that workers of an earlier run took and will not use."""
    if limit.interval and limit.lanes is None:
        path, soon = _turn_file(limit, None), time.time() + limit.interval
        if _next_turn(storage, path, time.time()) > soon:
            storage.write(path, json.dumps({"next": soon}).encode())


def paused_until(storage: Storage, longest: float = 0.0) -> tuple[datetime, str] | None:
    """The end of the common pause (UTC) and its reason; None if there never was one.

    Args:
        longest: seconds that a pause may last, if more than 7 days.

    Raises:
        Failed: class environment, where the flag was not written by a worker with a right clock.
    """
    longest = max(longest, _FARTHEST_SECONDS)
    try:
        flag = json.loads(storage.read_bytes(_FLAG, _MOST_FLAG_BYTES))
        until, reason = datetime.fromisoformat(flag["until"]), str(flag["reason"])
        if until - datetime.now(UTC) < timedelta(seconds=longest):  # TypeError without a time zone
            return until, reason
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    where = storage.where(_FLAG)
    raise Failed(
        FailureClass.ENVIRONMENT,
        f"{where} names no pause within the next {longest / 86400:g} days: delete it",
    )
