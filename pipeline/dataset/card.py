"""The README card beside dataset.json: describes the data set to a person who finds the folder."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plain_text
from pipeline.dataset import schema
from pipeline.outcome import EXCLUDED, FAILED, READY

TITLE = "# A data set made by Quovadis"
TERMS = """\
The lists of Kinetics-400, 600, 700 and 700-2020 are published by Google under CC BY 4.0. The videos are
their uploaders': this data set gives no right to them, and whoever passes it on must hold one. A video
that its owner withdrew is taken out with `python -m pipeline remove`; `removed.jsonl` says what was."""
_OUTCOMES = (READY, EXCLUDED, FAILED)
_LABELS = 1000  # rows of the table by label


def text(meta: dict[str, Any], outcomes: pa.Table) -> str:
    """The card in Markdown, of dataset.json and the latest outcome of each manifest row.

    Its bytes depend on these only.
    """
    size = sum(shard["size"] for shard in meta["shards"])
    ready = sum(row.get(READY, 0) for row in meta["counts"].values())
    rate, short_side = schema.rate(meta), schema.short_side(meta)
    sections = [
        TITLE,
        f"{ready} clips in {len(meta['shards'])} shards, {size / 1e9:.3f} GB, "
        f"{len(meta['classes'])} classes, generations {', '.join(meta['generations'])}.\n\n"
        "The shards are plain tar files in WebDataset's layout: each sample has `<key>.cls` (class index), "
        f"`<key>.mp4` ({rate} frames a second, short side {short_side} pixels), `<key>.json` and, with flow, "
        "`<key>.flow.mp4` (u above v; a luma value g stands for (g - 128) * 20 / 127 pixels). "
        "`dataset.json` names them, `index/` says where each sample lies, `outcomes/` what became of each "
        "row of the lists.\n\n"
        '```python\nimport pipeline.dataset\n\nsample = pipeline.dataset.open("ROOT").read(KEY)\n```',
        "## Counts",
        _table(("split", *_OUTCOMES), [(split, *_by_outcome(row)) for split, row in meta["counts"].items()]),
        "## Why clips are missing",
        _table(("outcome", "reason", "split", "clips"), _causes(outcomes)),
        "## By label",
        _table(("label", "listed", *_OUTCOMES), _labels(outcomes)),
        "## Recipe",
        f"```json\n{json.dumps(meta['recipe'], indent=2, sort_keys=True)}\n```",
        "## Terms",
        TERMS,
    ]
    return "\n\n".join(sections) + "\n"


def _by_outcome(counted: dict[str, int]) -> list[int]:
    return [counted.get(name, 0) for name in _OUTCOMES]


def _causes(outcomes: pa.Table) -> list[tuple]:
    missing = outcomes.filter(pc.not_equal(outcomes["outcome"], READY))
    cause = pc.coalesce(missing["failure_class"], missing["excluded_for"])
    grouped = missing.append_column("cause", cause).group_by(["outcome", "cause", "split"])
    rows = grouped.aggregate([("row", "count")]).to_pylist()
    rows.sort(key=lambda r: (-r["row_count"], r["outcome"], r["cause"], r["split"]))
    return [(r["outcome"], r["cause"], r["split"], r["row_count"]) for r in rows]


def _labels(outcomes: pa.Table) -> list[tuple]:
    found: dict[str, dict[str, int]] = {}
    grouped = outcomes.group_by(["label", "outcome"]).aggregate([("row", "count")])
    for row in grouped.to_pylist():
        found.setdefault(row["label"] or "(none)", {})[row["outcome"]] = row["row_count"]
    return [(label, sum(row.values()), *_by_outcome(row)) for label, row in sorted(found.items())[:_LABELS]]


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    if not rows:
        return "None."
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return plain_text.markdown(str(value))
