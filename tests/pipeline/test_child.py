"""A child process stays within its limits, and takes what it started with it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.media import subprocesses


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def dies(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_output_errors_and_status_come_back():
    finished = subprocesses.run(
        ["sh", "-c", "cat; echo said >&2; exit 3"], timeout=20, stdin=[b"one ", b"two"]
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (3, b"one two", "said\n")


def test_a_stalled_child_is_killed_at_its_limit_with_its_grandchildren(tmp_path):
    pids = tmp_path / "pids"
    script = f"sleep 300 & echo $! > {pids}; echo $$ >> {pids}; sleep 300"
    before = time.monotonic()
    with pytest.raises(subprocesses.ChildTimeout):
        subprocesses.run(["sh", "-c", script], timeout=0.7)
    assert time.monotonic() - before < 5
    assert all(dies(int(pid)) for pid in pids.read_text().split())


def test_a_grandchild_that_left_the_group_and_holds_the_pipe_does_not_hold_us(tmp_path):
    pid = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pid}; exec sleep 30' & sleep 300"
    before = time.monotonic()
    try:
        with pytest.raises(subprocesses.ChildTimeout):
            subprocesses.run(["sh", "-c", script], timeout=0.7)
        assert time.monotonic() - before < 10
    finally:
        os.kill(int(pid.read_text()), 9)


def test_a_child_that_drips_output_is_killed_too():
    script = "import time\nwhile True: print('x', flush=True); time.sleep(.05)"
    with pytest.raises(subprocesses.ChildTimeout):
        subprocesses.run([sys.executable, "-c", script], timeout=1.0)


def test_a_child_that_writes_too_much_is_killed():
    with pytest.raises(subprocesses.ChildOutputTooLarge):
        subprocesses.run(["sh", "-c", "yes"], timeout=20, max_stdout=1 << 20)


def test_the_output_of_a_child_that_was_killed_is_freed_at_once():
    before = _resident_mib()
    gc.disable()
    try:
        for _ in range(4):
            with pytest.raises(subprocesses.ChildOutputTooLarge):
                subprocesses.run(["sh", "-c", "yes"], timeout=20, max_stdout=50 << 20)
    finally:
        gc.enable()
    assert _resident_mib() < before + 120, "one output may still be mapped, four are a leak"


def _resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") >> 20


def test_a_child_that_stops_reading_its_input_ends_by_itself():
    finished = subprocesses.run(
        ["sh", "-c", "head -c 1"], timeout=20, stdin=(b"x" * 65536 for _ in range(100))
    )
    assert finished.stdout == b"x"


def test_an_error_of_the_input_kills_the_child(tmp_path):
    pid = tmp_path / "pid"

    def broken():
        until = time.monotonic() + 5
        while time.monotonic() < until and not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        raise KeyError("no more frames")
        yield b""

    with pytest.raises(KeyError, match="no more frames"):
        subprocesses.run(["sh", "-c", f"echo $$ > {pid}; sleep 300"], timeout=20, stdin=broken())
    assert dies(int(pid.read_text()))


def test_what_a_child_left_running_ends_with_it(tmp_path):
    pid = tmp_path / "pid"
    subprocesses.run(["sh", "-c", f"sleep 300 > /dev/null 2>&1 & echo $! > {pid}"], timeout=20)
    assert dies(int(pid.read_text()))


def test_the_last_of_a_flood_of_errors_is_kept():
    script = "import sys; sys.stderr.write('x' * 2_000_000 + 'the end')"
    stderr = subprocesses.run([sys.executable, "-c", script], timeout=20).stderr
    assert stderr.endswith("the end")
    assert len(stderr) <= 256 * 1024


PLUGIN = """
from yt_dlp.extractor.common import InfoExtractor
open("ran", "w").close()
class EvilIE(InfoExtractor):
    _VALID_URL = "evil:"
"""
CHILD = """
import os, sys
sys.path.remove("")
from pipeline.media.clip import ffmpeg_binary
from pipeline.sources.ytdlp.options import FetchRequest
from pipeline.sources.ytdlp.process import Worker
url = "http://127.0.0.1:9/"
facts = {"ffmpeg": ffmpeg_binary(), "trusted": [url], "cookies": None, "proxy": None, "ytdlp": {}}
limits = {"codec": "h264", "short_side": 256, "max_bytes": 1000, "max_duration": 9.0, "stall_seconds": 5.0}
os.environ["PYTHONPATH"] += os.pathsep  # an empty part is the current folder
worker = Worker()
worker.ask(FetchRequest(url, False, [], os.getcwd(), **facts, **limits), 60)
worker.kill()
"""


@pytest.mark.parametrize("installed", [False, True])
def test_plugins_of_the_current_folder_do_not_run_but_installed_ones_do(installed, tmp_path):
    plugins = tmp_path / ("packages" if installed else "here")
    (plugins / "yt_dlp_plugins" / "extractor").mkdir(parents=True)
    (plugins / "yt_dlp_plugins" / "extractor" / "evil.py").write_text(PLUGIN)
    (tmp_path / "here").mkdir(exist_ok=True)
    (tmp_path / "here" / "json.py").write_text("open('ran', 'w').close()")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *([str(plugins)] if installed else [])])
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "-c", CHILD], cwd=tmp_path / "here", env=environment, check=True, timeout=120
    )
    assert (tmp_path / "here" / "ran").exists() == installed
