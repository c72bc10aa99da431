"""Renders counts and gallery as one HTML page.

Its markup, style and behaviour stand beside this file in page.html (a Jinja template, escaped
throughout: labels and reasons can hold anything), page.css and page.js.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.dataset import Dataset
from pipeline.outcome import DUPLICATE, LEAK, LISTED, READY, REMOVED
from pipeline.report.counts import OUTCOMES, Counts
from pipeline.report.gallery import LEGEND

MEANINGS = {
    DUPLICATE: "another row asks for the same clip or video",
    LEAK: "its video is also in an evaluation split",
    LISTED: "in a list given with --exclude",
    REMOVED: "taken down",
    "gone": "the video is deleted, private or was never there",
    "unavailable": "the site says no more than that",
    "geo": "not shown in the country it was asked from",
    "age": "only for viewers who sign in",
    "blocked": "the site asks for proof of a person",
    "rate": "the site asks to come back later",
    "token": "the media host refused the link",
    "refused": "the server refused",
    "network": "the download broke off or timed out",
    "format": "the download is no video",
    "too_large": "beyond the limits on size",
    "unsafe": "led to an address or protocol that is not allowed",
    "missing": "in none of the folders or archives given",
    "corrupt": "cannot be decoded",
    "short": "less than a second of the clip is inside the source",
    "environment": "the installation, not the clip",
    "storage": "disk or object store",
    "manifest": "a malformed row of the list",
}


def render(data: Dataset, counts: Counts, *, sheets: Any, playing: Any, archives: Any) -> str:
    """Render index.html with the `sheets`, `playing` clips and `archives` shown; it names its ``media/``."""
    loader = PackageLoader("pipeline", "report")
    page = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {
        "bytes": _bytes, "number": _number, "percent": _percent, "sha256": _sha256,
        "source_facts": _source_facts, "total": lambda counted: sum(counted.values()),
    }  # fmt: skip
    style, script = (Markup(loader.get_source(page, name)[0]) for name in ("page.css", "page.js"))
    return page.get_template("page.html").render(
        data=data,
        counts=counts,
        sheets=sheets,
        playing=playing,
        archives=archives,
        outcomes=OUTCOMES,
        meanings=MEANINGS,
        labels=dict(sorted(counts.labels.items(), key=lambda item: (-item[1][READY], item[0]))),
        ready_clips=sorted(counts.labels[name][READY] for name in data.classes),
        legend=LEGEND,
        recipe=data.meta["recipe"],
        rate=data.rate,
        style=style,
        script=script,
    )


def _sha256(inline: str) -> str:
    return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")  # a narrow space, as ISO 80000-1 has it


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}\u202f%" if whole else "–"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}\u202f{unit}"
        size /= 1000
    return f"{size:.3g}\u202fTB"


def _source_facts(meta: Mapping[str, Any]) -> Iterator[str]:
    """The source's codec, size and rate, and the clip's note, as far as <key>.json has them."""
    source = meta.get("source")
    if isinstance(source, dict) and {"codec", "width", "height", "rate"} <= source.keys():
        rate = f"{source['rate']:g}" if isinstance(source["rate"], int | float) else source["rate"]
        yield f"from {source['codec']} {source['width']}×{source['height']} at {rate}/s"
    if note := meta.get("note"):
        yield note
