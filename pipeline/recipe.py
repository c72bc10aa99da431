"""The parameters of all stages and their hashes.

Each stage's parameters stand beside the stage. Its files are keyed by the hash of its own part and of those
before it, so that another flow parameter fetches and encodes nothing. No location, host or time stands in a
recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pipeline.flow.recipe import FlowRecipe
from pipeline.media.recipe import EncodeRecipe
from pipeline.sources.recipe import FetchRecipe


@dataclass(frozen=True)
class Recipe:
    """All three parts; `flow` is None with ``--flow none``."""

    fetch: FetchRecipe
    encode: EncodeRecipe
    flow: FlowRecipe | None

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as they stand in dataset.json."""
        return plain(self)


def plain(part: Any) -> dict[str, Any]:
    """A recipe or a part of one as nested plain values.

    A parameter that was added after data sets had been made is declared as
    ``field(default=..., metadata={"added": VERSION})``, with a default that means "as before". It is left out
    while it has that default, so that older data sets, work stores and hashes stay valid.
    """
    values = ((f, getattr(part, f.name)) for f in fields(part))
    return {f.name: plain(v) if is_dataclass(v) else v for f, v in values if not _as_before(f, v)}


def _as_before(parameter: Field, value: object) -> bool:
    made = parameter.default_factory
    return "added" in parameter.metadata and value == (parameter.default if made is MISSING else made())


def unknown(kind: type, values: Mapping[str, Any]) -> str | None:
    """Dotted name of the first value that the dataclass `kind` has no field for: a newer version wrote it."""
    kinds = get_type_hints(kind)
    for name, value in values.items():
        if name not in kinds:
            return name
        part = next((k for k in (kinds[name], *get_args(kinds[name])) if is_dataclass(k)), None)
        if isinstance(part, type) and isinstance(value, Mapping) and (inner := unknown(part, value)):
            return f"{name}.{inner}"
    return None


def stage_hash(*parts: object) -> str:
    """16 hex digits over parts of a recipe (or None), the same in every process and on every machine."""
    named = [None if p is None else {"part": type(p).__name__, **plain(p)} for p in parts]
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
