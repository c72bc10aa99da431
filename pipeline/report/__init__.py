"""Writes a page that shows the clips of a data set and the outcome of every row of its manifests.

``ROOT/report/index.html`` and the pictures and videos beside it need no network and no server: the
folder can be opened from disk, copied or sent.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline import dataset
from pipeline.report import archives, counts, gallery, page
from pipeline.report.gallery import Limits
from pipeline.storage import Storage

__all__ = ["Limits", "write"]


def write(root: str | os.PathLike[str] | Storage, limits: Limits | None = None) -> str:
    """Write the report of the published data set under `root`; returns the place of its page.

    Raises:
        DatasetError: there is no data set, or a damaged one.
        Failed: class storage, the report cannot be written; class environment, ffmpeg does not work.
    """
    data = dataset.open(root)
    with tempfile.TemporaryDirectory(prefix="quovadis-report-") as name:
        folder = Path(name)
        sheets, playing = gallery.make(data, folder, limits or Limits())
        found, compared = counts.count(data), archives.read(data.storage)
        text = page.render(data, found, sheets=sheets, playing=playing, archives=compared)
        _publish(data.storage, folder, text)
    return data.storage.where("report/index.html")


def _publish(storage: Storage, folder: Path, text: str) -> None:
    """Write the media, then the page that names them; then delete the media of an earlier page."""
    for file in sorted(folder.iterdir()):
        storage.write(f"report/media/{file.name}", file)
    storage.write("report/index.html", text.encode())
    there = {file.name for file in folder.iterdir()}
    for name in storage.names("report/media"):
        if name not in there:
            storage.delete(f"report/media/{name}")
