"""Videos at addresses of the web: any URL that a template makes of a clip, or one that a person named.

Refused: addresses outside the open internet (unless the template or the proxy names them), schemes other than
http and https, playlists. Redirects are followed and checked by us. Not seen by us: ffmpeg looks up the name
of the media host once more by itself; before version 8 ffmpeg also follows redirects of the media host by
itself, over http and https only; behind a proxy, the proxy looks names up. ffmpeg is not used with a proxy or
a source_address that it does not know: those videos are downloaded in full.
"""

from __future__ import annotations

import string
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from pipeline.outcome import CallError
from pipeline.sources.base import Fetched, FetchOptions, Video, seconds_text
from pipeline.sources.ytdlp.fetch import fetch

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

_FIELDS = ("youtube_id", "key", "start", "end", "label")
_PER_CLIP = {"key", "start", "end"}


@dataclass(frozen=True)
class UrlSource:
    """A URL template: ``https://host/path/{youtube_id}.mp4``, fields quoted for a URL.

    With {key}, {start} or {end} every clip has its own address, which holds the clip already trimmed: the
    whole file is taken, from its own zero. Without them the address holds the whole video ({label} may stand
    in either), and sections of it are asked for. Times are written as plain numbers: 10, or 10.5.
    """

    template: str
    kind: str = "url"
    network: bool = True

    @classmethod
    def of(cls, template: str) -> UrlSource:
        """The source for `template`; `CallError` for unknown fields, or fields in the host."""
        try:
            fields = [
                (name, style, conversion) for _, name, style, conversion in string.Formatter().parse(template)
            ]
        except ValueError as error:
            raise CallError(f"{template!r} is no URL template: {error}.") from error
        names = {name for name, _, _ in fields if name is not None}
        if names - set(_FIELDS) or any(style or conversion for _, style, conversion in fields):
            allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise CallError(f"{template!r} has a field that is not known: write {allowed} as they are.")
        if not names & {"youtube_id", "key"}:
            raise CallError(
                f"{template!r} would be one address for all: put {{youtube_id}} or {{key}} into it."
            )
        try:
            parts = urlsplit(template)
            host = parts.hostname if parts.port is None or parts.port else None
        except ValueError:
            host = None
        if not host or "{" in parts.netloc:
            raise CallError(f"{template!r} needs a fixed host: the fields belong into the path.")
        return cls(template)

    @property
    def trimmed(self) -> bool:
        """Whether the template names clips that are already trimmed."""
        return bool(_PER_CLIP & {name for _, name, _, _ in string.Formatter().parse(self.template) if name})

    def url(self, clip: Clip) -> str:
        """The address of `clip`, or of its video."""
        values = {
            "youtube_id": clip.youtube_id,
            "key": clip.key,
            "start": seconds_text(clip.time_start),
            "end": seconds_text(clip.time_end),
            "label": clip.label or "",
        }
        return self.template.format(**{name: quote(value, safe="") for name, value in values.items()})

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """One extraction for each address, and one range for each clip of it."""
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in video.clips:
            groups[self.url(clip)].append(clip)
        clips = {url: tuple(some) for url, some in groups.items()}
        return fetch(self.kind, clips, folder, options, trusted=(self.template,), trimmed=self.trimmed)


@dataclass(frozen=True)
class AddressSource:
    """One address that a person named: the whole file there, whatever clip is asked for."""

    url: str
    kind: str = "url"
    network: bool = True

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """One extraction, and the whole file."""
        trusted = (self.url,) if self.kind == "url" else ()
        return fetch(self.kind, {self.url: video.clips}, folder, options, trusted=trusted, trimmed=True)
