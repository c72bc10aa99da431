"""How the kernels are compiled, and where the machine code is kept between processes.

Numba's own cache knows a function's file but not the files it calls into, and two machines that share a
home folder can overwrite each other's entries. So machine code lies in a folder named by everything it
depends on: these sources, the versions of Numba and LLVM, the Python, and the processor it was
compiled for. Entries are only ever written whole (a temporary name, then a rename), so first
compilations may race.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching
from numba.core.registry import cpu_target


def kernel(function: Callable) -> Any:
    """A function compiled on its first call, without the interpreter lock and with IEEE arithmetic."""
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)


def inlined(function: Callable) -> Any:
    """A kernel whose body stands where it is called, however large: for what runs once a vector."""
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", inline="always")(function)


def entry(function: Callable) -> Any:
    """A kernel that Python calls: its machine code is kept on disk where a folder can be had."""
    compiled = kernel(function)
    if _folder() is not None:
        compiled._cache = _Cache(function)
    return compiled


@functools.cache
def _digest() -> str:
    """16 hex digits over all that machine code depends on: the name of its folder."""
    codegen = cpu_target.target_context.codegen()
    parts = [numba.__version__, llvmlite.__version__, sys.version, repr(codegen.magic_tuple())]
    sources = sorted(Path(__file__).parent.glob("*.py"))
    parts += [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _candidates() -> Iterator[Path]:
    """Folders in order of preference."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen) / "quovadis-flow"
    yield Path(__file__).parent / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(home):
        yield Path(home) / "quovadis" / "flow"
    yield Path(tempfile.gettempdir()) / f"quovadis-flow-{os.getuid()}"


@functools.cache
def _folder() -> Path | None:
    """The first candidate that this user can write and nobody else; None if there is none."""
    for parent in _candidates():
        folder = parent / _digest()
        try:
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            if _is_private(parent) and _is_private(folder):
                tempfile.TemporaryFile(dir=folder).close()
                return folder
        except OSError:
            continue
    return None


def _is_private(folder: Path) -> bool:
    """Whether nobody else can have put machine code here, which would run as this user."""
    status = folder.lstat()
    ours = status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode)
    return ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class _Locator(caching._CacheLocator):
    def __init__(self, function: Callable, file: str) -> None:
        self._py_file = file
        self._function = function

    @classmethod
    def from_function(cls, py_func: Any, py_file: Any) -> Any:
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        return str(_folder())

    def get_source_stamp(self) -> str:
        return _digest()

    def get_disambiguator(self) -> str:
        return str(self._function.__code__.co_firstlineno)


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 - the name and type are Numba's


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation
