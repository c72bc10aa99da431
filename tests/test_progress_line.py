"""The progress line: one line redrawn on a terminal, lines of its own now and then elsewhere."""

from __future__ import annotations

import io
import os
import pty
import termios
import threading

import pytest

from pipeline.progress_line import ProgressLine, duration


def test_to_a_file_there_is_a_line_every_few_seconds_and_a_last_one():
    stream = io.StringIO()
    line = ProgressLine("prepare", 1000, "clips", every=3600, stream=stream)
    for done in range(1, 901):
        line.show(done, f"{done - 2} ready", "2 gone")
    line.close()
    first, last = stream.getvalue().splitlines()
    assert first == "prepare: 0/1000 clips"
    assert last.startswith("prepare: 900/1000 clips, 898 ready, 2 gone, ")
    assert last.endswith(" s left")


@pytest.mark.parametrize("columns", [0, 60])  # 0: a terminal that does not know its size
def test_on_a_terminal_there_is_one_line_that_fits_it_also_off_the_main_thread(columns: int):
    mine, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(theirs, "w", buffering=1) as terminal:
        line = ProgressLine("prepare", 10, "clips", stream=terminal)
        facts = ["so many facts"] * (9 if columns else 1)
        worker = threading.Thread(target=lambda: [line.show(done, *facts) for done in range(11)])
        worker.start()
        worker.join()
        line.close()
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(mine, 1 << 16).decode()
    os.close(mine)
    assert "prepare: 10/10 clips, so many" in shown
    assert shown.count("\n") == 1
    assert not columns or max(map(len, shown.split("\r"))) < columns


def test_a_resumed_run_is_as_fast_as_its_own_steps_are():
    line = ProgressLine("train", 1000, "steps", done=900, stream=io.StringIO())
    line.start_t -= 100  # seconds ago
    line.show(910)
    assert str(line) == "train: 910/1000 steps, 15 min left"


@pytest.mark.parametrize(
    ("seconds", "words"), [(40, "40 s"), (420, "7 min"), (9600, "2 h 40 min"), (273_600, "3 d 4 h")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str):
    assert duration(seconds) == words
