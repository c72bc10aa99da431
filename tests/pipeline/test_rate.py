"""Promises on --rate and --short-side: every command takes them from the data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import make_list, make_videos, pipeline

from pipeline import dataset
from pipeline.job.settings import Settings
from pipeline.maintenance.verify_media import inspect
from pipeline.outcome import CallError
from pipeline.sources.recipe import FetchRecipe


@pytest.fixture(scope="module")
def slow_and_small(tmp_path_factory) -> Path:
    """A data set of one clip of two seconds, 15 frames a second, short side 128."""
    folder = tmp_path_factory.mktemp("rate")
    videos = make_videos(folder / "videos", ["walk"])
    rows = make_list(folder / "list.csv", ["walking,walk,0.5,2.5,train,0"])
    sizes = ["--rate", "15", "--short-side", "128", "--direct_num_workers", "1"]
    done = pipeline(
        *("prepare", "--manifest", rows, "--source", f"dir:{videos}", "--output", folder / "root", *sizes)
    )
    assert done.returncode == 0, done.stderr
    return folder / "root"


def test_clips_and_flow_have_the_rate_and_the_size_that_were_asked_for(slow_and_small):
    opened = dataset.open(slow_and_small)
    assert (opened.rate, opened.short_side) == (15, 128)
    sample = opened.read("walk_000000_000002")
    assert sample.rgb.shape == (30, 128, 160, 3)
    assert sample.flow.shape == (30, 128, 160, 2)
    for member in ("mp4", "flow.mp4"):
        assert inspect(sample.members[member], 15).constant_rate


def test_it_verifies_and_its_card_and_report_say_so(slow_and_small):
    verified = pipeline("verify", slow_and_small)
    assert verified.returncode == 0, verified.stdout
    assert "(15 frames a second, short side 128 pixels)" in (slow_and_small / "README.md").read_text()
    assert pipeline("report", slow_and_small).returncode == 0
    assert 'data-rate="15"' in (slow_and_small / "report/index.html").read_text()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rate": 0}, "--rate is 0: give 1 to 60 frames a second"),
        ({"rate": 61}, "--rate is 61: give 1 to 60 frames a second"),
        ({"short_side": 127}, "--short-side is 127: give an even number of 32 to 2160 pixels"),
    ],
)
def test_a_rate_or_size_that_cannot_be_is_refused_with_a_sentence(wrong, sentence):
    with pytest.raises(CallError, match=sentence):
        Settings(("list.csv",), "root", **wrong)


@pytest.mark.parametrize(("side", "asked"), [(128, 256), (256, 256), (300, 360), (1080, 1080), (2200, 2200)])
def test_the_smallest_format_with_enough_pixels_is_asked_for(side, asked):
    assert FetchRecipe.of(side).short_side == asked
