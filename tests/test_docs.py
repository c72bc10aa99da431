"""The pages say what is there: pictures, scripts, versions. Dead links are for ``make docs`` to find."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from test_floors import FLOORS

from pipeline import __version__

ROOT = Path(__file__).resolve().parent.parent


def test_the_drawn_picture_has_every_label_of_the_mermaid_text():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    drawn = (ROOT / "docs" / "assets" / "architecture.svg").read_text("utf-8")
    mermaid = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert mermaid is not None
    labels = {line for label in re.findall(r'"([^"]+)"', mermaid[1]) for line in label.split("<br>")}
    shown = " ".join(unescape(text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", drawn))
    assert {label for label in labels if label not in shown} == set()


def test_files_that_the_picture_and_the_rooms_name_are_there():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    folders = [
        ROOT,
        ROOT / "pipeline",
        ROOT / "trainer",
        *(p for p in (ROOT / "pipeline").iterdir() if p.is_dir()),
    ]
    folders += [p for p in (ROOT / "trainer").iterdir() if p.is_dir()]
    named = set(re.findall(r"[\w./]+\.py\b|\b[\w/]+/(?=[`\"<\s])", page))
    assert {name for name in named if not any((folder / name).exists() for folder in folders)} == set()


def test_the_page_s_floors_are_those_of_the_test():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    block = re.search(r"```\n(__main__\n.*?)```", page, re.DOTALL)
    assert block is not None
    shown = [{f"pipeline.{name}" for name in line.split()} for line in block[1].splitlines()]
    assert shown == [set(floor) for floor in reversed(FLOORS)]


def test_every_benchmark_stands_on_its_page():
    page = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    assert {path.name for path in (ROOT / "benchmarks").glob("*.py") if f"`{path.name}`" not in page} == set()


def test_the_constraints_name_one_version_of_everything_and_no_place_to_get_it_from():
    text = (ROOT / "constraints.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.match(r"[\w.-]+==[\w.]+( ; .*)?$", line)] == []
    assert "//" not in text


def test_the_citation_is_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
