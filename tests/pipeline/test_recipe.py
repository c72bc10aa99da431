"""Promises on the recipe: it may grow, and what was made before stays valid."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from published import prepare

from pipeline import dataset
from pipeline.dataset import DatasetError
from pipeline.flow.recipe import FlowRecipe
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass
from pipeline.recipe import Recipe, plain, stage_hash, unknown
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage.work_store import WorkStore

ENCODER = "ffmpeg version 7.0.2-static"
FETCH, ENCODE, FLOW = FetchRecipe(), EncodeRecipe(encoder=ENCODER), FlowRecipe(encoder=ENCODER)


def test_the_default_recipe_has_the_hashes_it_always_had():
    assert stage_hash(FETCH) == "3e7a136ed370868f"
    assert stage_hash(FETCH, ENCODE) == "c6534513aca953a5"
    assert stage_hash(FETCH, ENCODE, FLOW) == "d8eaff358562e530"
    assert stage_hash(FETCH, ENCODE, None) == "703dcd3553564ea0"
    assert stage_hash(ENCODE, FLOW) == "8a4c17cbbe4b66c3"  # the canary's


@dataclass(frozen=True)
class Grown(EncodeRecipe):
    denoise: int = field(default=0, metadata={"added": "9.0"})
    profiles: tuple[str, ...] = field(default_factory=tuple, metadata={"added": "9.0"})


Grown.__name__ = "EncodeRecipe"


def test_a_parameter_added_later_leaves_hashes_as_they_were_at_its_default():
    grown = Grown(encoder=ENCODER)
    assert stage_hash(FETCH, grown) == stage_hash(FETCH, ENCODE)
    assert Recipe(FETCH, grown, FLOW).as_dict() == Recipe(FETCH, ENCODE, FLOW).as_dict()
    assert "denoise" not in plain(grown)


@pytest.mark.parametrize("change", [{"denoise": 3}, {"profiles": ("high",)}])
def test_a_parameter_added_later_changes_hashes_away_from_its_default(change):
    grown = Grown(encoder=ENCODER, **change)
    assert stage_hash(FETCH, grown) != stage_hash(FETCH, ENCODE)
    assert plain(grown) == {**plain(ENCODE), **change}


def test_parameters_of_the_first_version_always_stand_in_the_recipe():
    made = Recipe(FETCH, ENCODE, FLOW).as_dict()
    assert made["encode"]["rate"] == 25
    assert made["encode"]["short_side"] == made["fetch"]["short_side"] == 256
    assert made["flow"]["coding"]["bound"] == 20
    assert unknown(Recipe, made) is None
    assert unknown(Recipe, {**made, "flow": None}) is None


@pytest.mark.parametrize("name", ["encode.denoise", "flow.solver.mu", "depth"])
def test_a_recipe_of_a_newer_version_is_refused_with_a_sentence(tmp_path, name):
    prepare(tmp_path).publish()
    *path, last = name.split(".")
    meta = json.loads((tmp_path / "dataset.json").read_text())
    part = meta["recipe"]
    for step in path:
        part = part[step]
    part[last] = 1
    (tmp_path / "dataset.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=f"{name}, which this version does not know: upgrade"):
        dataset.open(tmp_path)


def test_a_record_of_a_newer_version_is_refused_with_a_sentence(tmp_path):
    store = WorkStore(tmp_path)
    source = tmp_path / "a.mp4"
    source.write_bytes(b"video")
    stored = {**store.put_file("encode", "0" * 16, "a", ".mp4", source).as_dict(), "crc32c": 7}
    store.write_record("encode", "0" * 16, "a", {"files": {"mp4": stored}})
    with pytest.raises(Failed, match="crc32c, which this version does not know: upgrade") as refused:
        store.read_record("encode", "0" * 16, "a")
    assert refused.value.failure_class == FailureClass.ENVIRONMENT
