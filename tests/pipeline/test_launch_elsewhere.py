"""A cluster's job is watched or told to end, and no process stays behind, whenever a signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import make_list

JOB_SERVER = Path(__file__).parents[1] / "job_server.py"
STOPPED = "stopped; nothing is lost, repeat the same command to go on."
NO_ANSWER = "stopped while SparkRunner gave no answer; see whether it has taken the job."
PROGRAM = """
import os, sys
from pipeline import __main__
from pipeline.job import launch, packing

def end(*_):  # in place of reading what no worker made
    os.kill(os.getpid(), 15)

launch._ANSWER_SECONDS = float(sys.argv.pop(1))
packing.read_parts = end
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(
    ("how", "seconds", "says", "cancelled"),
    [
        ("slow", 60, STOPPED, True),
        pytest.param("deaf", 0.5, NO_ANSWER, False, marks=pytest.mark.slow),
        pytest.param("done", 60, STOPPED, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_no_job_unwatched_and_no_process(tmp_path, how, seconds, says, cancelled):
    """While the engine takes the job, before it answers at all, and between its end and publishing."""
    java, jar = tmp_path / "java", tmp_path / "job-server.jar"
    java.write_text(f'#!/bin/sh\nexec {sys.executable} {JOB_SERVER} {tmp_path} "$@"\n')
    java.chmod(0o755)
    jar.touch()
    (tmp_path / "how").write_text(how)
    rows = make_list(tmp_path / "list.csv", ["a,video_00000,0,10,train,0"])
    given = ["--rehearse", "--shared", "--manifest", rows, "--output", tmp_path / "root"]
    spark = ["--runner=SparkRunner", f"--spark_job_server_jar={jar}", f"--job_server_java_launcher={java}"]
    spark += ["--environment_type=EXTERNAL", "--environment_config=localhost:9"]
    command = [sys.executable, "-c", PROGRAM, seconds, "prepare", *given, *spark]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    left = int((tmp_path / "pid").read_text())
    try:
        os.kill(left, signal.SIGKILL)
    except ProcessLookupError:
        left = 0
    assert not left, "an orphan"
    assert done.returncode == 1
    assert says in done.stderr
    assert (tmp_path / "cancelled").exists() is cancelled
