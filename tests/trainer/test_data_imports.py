"""The trainer stands on the published format alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import trainer

ALLOWED = {"dataset", "clip", "storage", "video"}


def imported(path: Path) -> set[str]:
    """Modules of the pipeline that a file names in any import, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = node.module == "pipeline"
            names |= {f"pipeline.{alias.name}" for alias in node.names} if whole else {node.module}
    return {name for name in names if name.split(".")[0] == "pipeline"}


def test_the_trainer_imports_only_the_published_format_of_the_pipeline():
    folder = Path(trainer.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert files
    wrong = {
        f"{path.relative_to(folder)}: {name}"
        for path in files
        for name in imported(path)
        if len(name.split(".")) != 2 or name.split(".")[1] not in ALLOWED
    }
    assert not wrong


def test_the_loader_brings_in_no_beam():
    code = "import sys, trainer.data.loader; sys.exit('apache_beam' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
