"""The site YouTube: a video by its id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.outcome import Failed, FailureClass
from pipeline.sources.base import Fetched, FetchOptions, Video, all_failed
from pipeline.sources.ytdlp.fetch import fetch

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


@dataclass(frozen=True)
class YoutubeSource:
    """``youtube``: the site itself, by its own address of the video."""

    kind: str = "youtube"
    network: bool = True

    @classmethod
    def of(cls, spec: str) -> YoutubeSource:
        """The source for ``youtube``."""
        return cls()

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """One extraction, and one range for each clip."""
        if not YOUTUBE_ID.fullmatch(video.youtube_id):
            reason = f"{video.youtube_id[:64]!r} is no YouTube id."
            return all_failed(video, Failed(FailureClass.MANIFEST, reason))
        return fetch(self.kind, {address(video.youtube_id): video.clips}, folder, options)


def address(youtube_id: str) -> str:
    """The page of a video."""
    return f"https://www.youtube.com/watch?v={youtube_id}"
