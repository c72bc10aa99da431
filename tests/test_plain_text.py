"""Text from outside is shown and not obeyed, by every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import plain_text

EVIL = "\x1b[2Jwalk\u202e\x07\r\x9b1m"
SHOWN = "\\x1b[2Jwalk\\u202e\\x07\\r\\x9b1m"


def test_what_a_terminal_would_obey_is_escaped_and_scripts_stay():
    assert plain_text.visible(EVIL) == SHOWN
    assert plain_text.visible("a\nb") == "a\nb"
    assert plain_text.one_line("0.9\n0.1\tjump") == "0.9\\n0.1\\tjump"
    for text in ("walk the dog", "сальто", "跳\u3000舞", "نمی\u200cدانم", "café"):
        assert plain_text.visible(text) == text
    assert plain_text.visible("caf\udce9") == "caf\\udce9"


def test_a_cell_of_the_card_has_no_image_and_no_link():
    text = "![x](https://evil/pixel)<img src=x> | *b*\n# head"
    assert plain_text.markdown(text) == (
        "\\!\\[x\\](https\\://evil/pixel)\\<img src=x\\> \\| \\*b\\* \\# head"
    )


@pytest.mark.parametrize("half", ["pipeline", "trainer"])
def test_no_command_prints_a_control_character_of_its_input(half, tmp_path):
    folder = tmp_path / EVIL
    calls = {
        "pipeline": (
            ["verify", folder],
            ["prepare", "--manifest", folder, "--output", tmp_path],
        ),
        "trainer": (
            ["predict", "--checkpoint", folder, folder],
            ["train", "--data", folder, "--output", tmp_path / "run"],
        ),
    }
    for call in calls[half]:
        command = [sys.executable, "-m", half, *map(str, call)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1]
        )
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert "\\x1b[2J" in said, said
        assert not set(said) & set("\x1b\x07\r\u202e\x9b"), call
