"""Where a video comes from: the site, a URL template, a folder, archives.

`parse` reads what users write after ``--source``; `pipeline.sources.retrying` asks several sources in order.
"""

from pipeline.sources.base import Fetched, FetchOptions, Piece, Source, Video
from pipeline.sources.registry import parse, usage
from pipeline.sources.ytdlp.options import check_ytdlp

__all__ = ["FetchOptions", "Fetched", "Piece", "Source", "Video", "check_ytdlp", "parse", "usage"]
