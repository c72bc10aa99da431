"""The section that holds the lists against the archives, where archives were sources."""

from __future__ import annotations

import html
import json
from typing import Any

from pipeline.maintenance.reconciliation import FILE
from pipeline.storage import Storage

_KINDS = {
    "missing": "in the lists, in no archive",
    "extra": "in an archive, in no list",
    "refused": "in an archive, and not to be read",
    "corrupt": "cannot be decoded",
    "wrong_length": "longer or shorter than its row says",
}
_MAX = 1 << 24  # bytes


def section(storage: Storage) -> str:
    """Markup of the whole section; empty where there is nothing to show."""
    try:
        found = json.loads(storage.read_bytes(FILE, _MAX))
        archives, clips, present = found["archives"], int(found["clips"]), int(found["found"])
        parts = "".join(_kind(name, found[name]) for name in _KINDS)
        cut = [a for a in archives if a["problem"]]
        broken = "".join(f"<li>{_text(a['path'])}: {_text(a['problem'])}</li>" for a in cut)
        videos = sum(int(a["videos"]) for a in archives)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    unreadable = f"<p>Not readable to their end:</p><ul>{broken}</ul>" if broken else ""
    return (
        '<section id="archives" aria-labelledby="archives-title"><h2 id="archives-title">Archives</h2>'
        f"<p>{len(archives)} archives with {videos} videos; {present} of the {clips} clips of the lists are "
        f"in them.</p>{parts}{unreadable}</section>"
    )


def _kind(name: str, found: dict[str, Any]) -> str:
    count, examples = int(found["count"]), found["examples"]
    if not count:
        return ""
    rows = "".join(f"<tr><td><code>{_text(_example(item))}</code></td></tr>" for item in examples)
    more = f"<p>and {count - len(examples)} more</p>" if count > len(examples) else ""
    return (
        f'<details class="cause"><summary><span class="name">{_text(name.replace("_", " "))}</span>'
        f'<span class="count">{count}</span><span class="meaning">{_KINDS[name]}</span></summary>'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>{more}</details>'
    )


def _example(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    if "reason" in item:
        return f"{item['name']} in {item['archive']} {item['reason']}"
    length = "less than a second" if item["seconds"] is None else f"{item['seconds']:g} s"
    return f"{item['key']}: {length} instead of {item['wanted']:g} s"


def _text(value: Any) -> str:
    return f"<bdi>{html.escape(str(value))}</bdi>"
