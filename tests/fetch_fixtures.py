"""Shared by the tests of fetching: clips by id, a fetch in a line, a stand-in for YouTube."""

from __future__ import annotations

from pathlib import Path

from pipeline import sources
from pipeline.lists.manifest import Clip
from pipeline.sources import Fetched, FetchOptions, Video, retrying

PLUGIN = '''
import json
import os

import yt_dlp.utils
from yt_dlp.extractor.youtube import YoutubeIE


class ScriptedIE(YoutubeIE, plugin_name="scripted"):
    """Answers for YouTube by a script: what to raise for an id, or which formats it has."""

    def _real_extract(self, url):
        video = self._match_id(url)
        with open(os.environ["SCRIPTED_VIDEOS"], encoding="utf-8") as file:
            script = json.load(file)[video]
        for warning in script.get("warnings", ()):
            self.report_warning(warning)
        if script.get("page"):
            self._download_webpage(script["page"], video)
        how, *arguments = script.get("raise", ("formats",))
        if how == "ExtractorError":
            raise yt_dlp.utils.ExtractorError(arguments[0], expected=len(arguments) > 1)
        if how == "GeoRestrictedError":
            raise yt_dlp.utils.GeoRestrictedError(arguments[0], countries=["DE"])
        if how != "formats":
            getattr(self, how)(*arguments)
        return {
            "id": video,
            "title": video,
            "formats": script.get("formats", []),
            "duration": script.get("duration"),
            "live_status": script.get("live_status"),
        }
'''


def install_plugin(folder: Path) -> Path:
    """Write the extractor plug-in below `folder`; returns what PYTHONPATH must name."""
    package = folder / "plugin" / "yt_dlp_plugins" / "extractor"
    package.mkdir(parents=True)
    (package / "scripted.py").write_text(PLUGIN, encoding="utf-8")
    return folder / "plugin"


def clip(youtube_id: str, start: float, end: float, label: str | None = "label") -> Clip:
    """A row of a list that says so."""
    return Clip("list.csv", 2, youtube_id, float(start), float(end), label, "train")


def get(source: str, folder: Path, options: FetchOptions, *clips: Clip) -> Fetched:
    """Fetch `clips` of one video from `source` into `folder`."""
    return retrying.fetch(Video(clips[0].youtube_id, clips), (sources.parse(source),), folder, options)
