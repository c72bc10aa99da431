"""Turns counts and gallery into the page. All text from outside goes through `_text`: it can hold anything.

Shape and behaviour stand beside this file in page.html, page.css and page.js.
"""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import resources
from string import Template
from typing import Any

from pipeline.dataset import Dataset
from pipeline.outcome import EXCLUDED, FAILED, READY
from pipeline.report.counts import OUTCOMES, Cause, Counts
from pipeline.report.gallery import LEGEND, Playing, Sheet, Shown

_MEANING = {
    "duplicate": "another row asks for the same clip or video",
    "leak": "its video is also in an evaluation split",
    "listed": "in a list given with --exclude",
    "removed": "taken down",
    "gone": "the video is deleted, private or was never there",
    "unavailable": "the site says no more than that",
    "geo": "not shown in the country it was asked from",
    "age": "only for viewers who sign in",
    "blocked": "the site asks for proof of a person",
    "rate": "the site asks to come back later",
    "token": "the media host refused the link",
    "refused": "the server refused",
    "network": "no whole answer came",
    "format": "what came is no video",
    "too_large": "beyond the limits on size",
    "unsafe": "led to an address or protocol that is not allowed",
    "missing": "in none of the folders or archives given",
    "corrupt": "cannot be decoded",
    "short": "less than a second of the clip is inside the source",
    "environment": "the installation, not the clip",
    "storage": "disk or object store",
    "manifest": "a malformed row of the list",
}


def render(data: Dataset, counts: Counts, shown: Shown, archives: str = "") -> str:
    """The whole of index.html; media are named relative to it, in ``media/``; `archives` is markup."""
    style, script = _file("page.css"), _file("page.js")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}; img-src 'self' file:; media-src 'self' file:"
    )
    parts = {
        "policy": policy,
        "style": style,
        "script": script,
        "summary": _summary(data, counts),
        "tiles": _tiles(counts),
        "splits": _splits(counts),
        "causes": _causes(counts),
        "archives": archives,
        "classes": _classes(data, counts),
        "sheets": "".join(map(_sheet, shown.sheets)) or "<p>No clip is ready.</p>",
        "gallery": _gallery(shown),
        "recipe": _recipe(data.meta.get("recipe", {})),
    }
    return Template(_file("page.html")).substitute(parts)


def _file(name: str) -> str:
    return resources.files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _hash(inline: str) -> str:
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _text(value: Any) -> str:
    """Any text from outside as markup that shows it, its own direction of writing kept inside."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def _label(label: str) -> str:
    return _text(label) if label else "<i>no label</i>"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")  # a narrow space, as ISO 80000-1 has it


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}\u202f%" if whole else "–"


def _bar(parts: dict[str, int], scale: int) -> str:
    """A horizontal bar; its parts, in the order given, are shares of `scale`."""
    left, cells = 0.0, []
    for name, value in parts.items():
        width = 100 * value / scale if scale else 0
        if value:
            cells.append(f'<rect class="{name}" x="{left:.3f}%" width="{width:.3f}%" height="100%"/>')
        left += width
    return f'<svg class="bar" aria-hidden="true">{"".join(cells)}</svg>'


def _summary(data: Dataset, counts: Counts) -> str:
    size = sum(shard.size for shard in data.shards.values())
    generations = len(data.generations)
    return (
        f"{_number(counts.outcomes[READY])} clips of {_number(len(data.classes))} classes in "
        f"{_number(len(data.shards))} shard{'s' if len(data.shards) != 1 else ''} ({_bytes(size)}), "
        f"{generations} generation{'s' if generations != 1 else ''}; "
        f"from {_number(counts.rows)} manifest rows."
    )


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g}\u202f{unit}"
        size /= 1000
    return f"{size:.3g}\u202fTB"


def _tiles(counts: Counts) -> str:
    tiles = [
        f'<li class="{outcome}"><strong>{_number(counts.outcomes[outcome])}</strong> {outcome} '
        f"<span>{_percent(counts.outcomes[outcome], counts.rows)}</span></li>"
        for outcome in OUTCOMES
    ]
    return "".join(tiles)


def _row(head: str, counted: dict[str, int], scale: int) -> str:
    cells = "".join(f"<td>{_number(counted[outcome])}</td>" for outcome in OUTCOMES)
    bar = _bar({o: counted[o] for o in OUTCOMES}, scale)
    return f'<tr><th scope="row">{head}</th>{cells}<td class="wide">{bar}</td></tr>'


def _splits(counts: Counts) -> str:
    largest = max((sum(c.values()) for c in counts.splits.values()), default=0)
    return "".join(_row(_text(name), counted, largest) for name, counted in counts.splits.items())


def _causes(counts: Counts) -> str:
    if not counts.causes:
        return "<p>Every row is ready.</p>"
    largest = max(cause.count for cause in counts.causes)
    retry = ""
    if transient := sum(c.count for c in counts.causes if c.outcome == FAILED and c.transient):
        retry = (
            f"<p>{_number(transient)} of the failed may succeed when asked again"
            f"{', the first from ' + html.escape(counts.due) if counts.due else ''}: "
            "repeat the command that made the data set.</p>"
        )
    return retry + "".join(_cause(cause, largest, counts.rows) for cause in counts.causes)


def _cause(cause: Cause, largest: int, rows: int) -> str:
    kind = EXCLUDED if cause.outcome == EXCLUDED else FAILED
    reasons = "".join(
        f"<tr><td>{_number(r.count)}</td><td>{_text(r.text or 'no reason given')}</td>"
        f"<td><code>{_text(r.example)}</code></td></tr>"
        for r in cause.reasons
    )
    more = cause.distinct - len(cause.reasons)
    rest = f"<p>and {_number(more)} further reasons</p>" if more else ""
    return (
        f'<details class="cause"><summary><span class="name">{_text(cause.name)}</span>'
        f'<span class="count">{_number(cause.count)}</span>{_bar({kind: cause.count}, largest)}'
        f'<span class="meaning">{kind}, {_percent(cause.count, rows)} of all rows: '
        f"{_MEANING.get(cause.name, '')}</span></summary>"
        f'<div class="scroll"><table><thead><tr><th scope="col">rows</th><th scope="col">reason</th>'
        f'<th scope="col">for example</th></tr></thead><tbody>{reasons}</tbody></table></div>{rest}</details>'
    )


def _classes(data: Dataset, counts: Counts) -> str:
    ready = sorted(counts.labels.get(name, {}).get(READY, 0) for name in data.classes)
    if not ready:
        return "<p>The lists name no classes.</p>"
    largest = max(sum(counted.values()) for counted in counts.labels.values())
    order = sorted(counts.labels.items(), key=lambda item: (-item[1][READY], item[0]))
    body = "".join(_row(_label(label), counted, largest) for label, counted in order)
    return (
        f"<p>Ready clips a class: {_number(ready[0])} at least, {_number(ready[len(ready) // 2])} in the "
        f"middle, {_number(ready[-1])} at most.</p>"
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="Outcomes by class"><table>'
        f"{_HEAD}<tbody>{body}</tbody></table></div>"
    )


_HEAD = (
    '<thead><tr><th scope="col"><span class="unseen">name</span></th><th scope="col">ready</th>'
    '<th scope="col">excluded</th><th scope="col">failed</th><th scope="col" class="wide">'
    '<span class="unseen">as a bar</span></th></tr></thead>'
)


def _sheet(sheet: Sheet) -> str:
    below = ", their optical flow below" if sheet.flow else ""
    name = html.escape(sheet.label or "no label")
    return (
        f"<figure><figcaption>{_label(sheet.label)}</figcaption>"
        f'<img src="media/{sheet.file}" loading="lazy" '
        f'width="{sheet.width}" height="{sheet.height}" '
        f'alt="{sheet.frames} frames of {name}{below}"></figure>'
    )


def _gallery(shown: Shown) -> str:
    if not shown.playing:
        return "<p>No clip is ready.</p>"
    legend = ""
    if any(playing.flow for playing in shown.playing):
        legend = (
            f'<p class="legend"><img src="media/{LEGEND}" width="64" height="64" alt="The colour wheel: '
            'right is red, down is yellow, left is cyan, up is violet"> '
            "Flow: the hue is where a pixel moves to, as on the wheel; white stands still.</p>"
        )
    return legend + '<div class="clips">' + "".join(map(_clip, shown.playing)) + "</div>"


def _clip(playing: Playing) -> str:
    row, source = playing.row, playing.meta.get("source")
    key = html.escape(row["key"])
    ratio = f'width="{row["width"]}" height="{row["height"]}"'
    videos = [("RGB", playing.rgb, playing.poster)]
    if playing.flow and playing.flow_poster:
        videos.append(("Flow", playing.flow, playing.flow_poster))
    elements = "".join(
        f'<figure><video src="media/{file}" poster="media/{poster}" {ratio} muted playsinline controls '
        f'preload="none" aria-label="{name} of {key}"></video><figcaption>{name}</figcaption></figure>'
        for name, file, poster in videos
    )
    facts = [row["split"], f"{row['frames']} frames of {row['width']}×{row['height']}"]
    if isinstance(source, dict) and {"codec", "width", "height", "rate"} <= source.keys():
        rate = f"{source['rate']:g}" if isinstance(source["rate"], int | float) else source["rate"]
        facts.append(f"from {source['codec']} {source['width']}×{source['height']} at {rate}/s")
    if note := playing.meta.get("note"):
        facts.append(note)
    line = " · ".join(_text(fact) for fact in facts)
    if playing.stored_flow:
        line += (
            f" · full colour at {playing.longest:.1f} pixels a frame"
            f", {100 * (row['flow_saturation'] or 0):.2g}\u202f% beyond the bound · "
            f'<a href="media/{playing.stored_flow}">as stored</a>'
        )
    return (
        f'<article class="clip" data-rate="25" data-frames="{row["frames"]}">'
        f"<h3>{_label(row['label'] or '')}</h3>"
        f'<div class="pair">{elements}</div><p><code>{key}</code> · {line}</p></article>'
    )


def _recipe(recipe: dict[str, Any], path: str = "") -> str:
    rows = []
    for name, value in recipe.items():
        if isinstance(value, dict):
            rows.append(_recipe(value, f"{path}{name}."))
        else:
            rows.append(f'<tr><th scope="row">{_text(path + name)}</th><td>{_text(value)}</td></tr>')
    return "".join(rows)
