"""The rooms of the pipeline stand on floors: a file imports from its own folder and from lower floors only.

The floors are written down here once; docs/architecture.md says what each room is for.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pipeline
import trainer

FLOORS = (  # from the ground up; the longest name that fits a module is its own
    (
        "pipeline.outcome",
        "pipeline.command_line",
        "pipeline.progress_line",
        "pipeline.plain_text",
        "pipeline.keys",
        "pipeline.recipe",
        "pipeline.sources.recipe",
        "pipeline.media.recipe",
        "pipeline.flow.recipe",
    ),
    ("pipeline.storage",),
    ("pipeline.media",),
    ("pipeline.flow",),
    ("pipeline.dataset",),
    ("pipeline.lists",),
    ("pipeline.sources",),
    ("pipeline.maintenance",),
    ("pipeline.job", "pipeline.report"),
    ("pipeline.__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
DOORS = (
    "command_line",
    "plain_text",
    "dataset",
    "media",
    "flow",
    "sources",
    "storage",
    "outcome",
    "progress_line",
    "recipe",
)
"""Rooms of the pipeline that the trainer may enter."""


def home(module: str) -> str | None:
    """The longest name of `FLOORS` that `module` is, or is in."""
    fits = [name for name in FLOOR if module == name or module.startswith(f"{name}.")]
    return max(fits, key=len, default=None)


def imported(path: Path) -> Iterator[str]:
    """Modules that a file names in any import, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            parts = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (part if is_module(part) else node.module for part in parts)


def is_module(name: str) -> bool:
    """Whether `name` is a file or folder of ours."""
    path = Path(pipeline.__file__).parents[1].joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def modules(package) -> Iterator[tuple[str, Path]]:
    folder = Path(package.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def climbs() -> list[str]:
    """Every import of the pipeline that leads to a higher floor, or to another room of the same one."""
    found = []
    for name, path in modules(pipeline):
        mine = home(name)
        for other in imported(path):
            theirs = home(other)
            if theirs is None or theirs == mine or mine is None or name == "pipeline":
                continue
            if FLOOR[theirs] > FLOOR[mine] or (FLOOR[theirs] == FLOOR[mine] > 0):
                found.append(f"{name} -> {other}")
    return sorted(set(found))


def test_every_file_of_the_pipeline_has_a_floor():
    assert [name for name, _ in modules(pipeline) if home(name) is None and name != "pipeline"] == []


def test_no_import_leads_to_a_higher_floor():
    assert climbs() == []


def test_no_file_imports_another_that_imports_it():
    edges = {name: set(imported(path)) for p in (pipeline, trainer) for name, path in modules(p)}
    edges = {name: {other for other in targets if other in edges} for name, targets in edges.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name] - {name}):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_the_trainer_enters_the_pipeline_by_its_doors_only():
    wrong = [
        f"{name} -> {other}"
        for name, path in modules(trainer)
        for other in imported(path)
        if other.split(".")[0] == "pipeline" != other
        and name != "trainer.quovadis"  # the console script has the commands of both
        and other.split(".")[1:2] not in [[door] for door in DOORS]
    ]
    assert wrong == []


def test_the_loader_brings_in_no_beam():
    code = "import sys, trainer.data.loader; sys.exit('apache_beam' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
