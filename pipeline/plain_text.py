"""Shows text from outside (labels, file names, a site's words) without obeying it.

A terminal obeys control characters; a Markdown page loads images and has links. All that the commands print
passes through `shown`.
"""

from __future__ import annotations

import contextlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

_OBEYED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode's categories of invisible characters
_JOINERS = "\u200c\u200d"  # which some scripts need
_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*~[]!#|<>&"})
_ADDRESS = re.compile(r"(?<=www)\.|://")  # which Markdown makes links of


def visible(text: str) -> str:
    r"""Text whose control characters, direction marks and the like are escapes such as ``\x1b``.

    Line breaks and tabs stay.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(_escaped(c) if _is_obeyed(c) and c not in "\n\t" else c for c in text)


def one_line(text: str) -> str:
    """`visible` text without line breaks and tabs: a label cannot look like a line of an answer."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """The text as Markdown that shows it, on one line."""
    return _ADDRESS.sub(r"\\\g<0>", one_line(" ".join(text.split())).translate(_MARKDOWN))


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """All that the block prints to standard output and error becomes `visible`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Visible(unfiltered(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unfiltered(stream: Any) -> TextIO:
    """The stream itself, without `shown`: to draw on a terminal."""
    return stream.stream if isinstance(stream, _Visible) else stream


class _Visible:
    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.stream, name)


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in _OBEYED and character not in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
