"""Promises on machines: a worker is let to work only where it gives the bytes of the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_flow import TARGETS

from pipeline.media.clip import ffmpeg_binary

WORKER = """
import sys
from pipeline.job import run
from pipeline.job.settings import Settings
from pipeline.media import clip
from pipeline.outcome import Failed
from pipeline.job.canary import check_canary
from pipeline.storage.work_store import WorkStore
settings = Settings(("list.csv",), "root", flow=sys.argv[2], ffmpeg=sys.argv[3])
recipe = run.make_recipe(settings)
try:
    check_canary(recipe, clip.ffmpeg_binary(), WorkStore(sys.argv[1]))
except Failed as failure:
    sys.exit(f"{failure.failure_class}: {failure.reason}")
"""
OTHER = """#!/bin/sh
# Encodes a little worse than it is told, and may say that it is another.
[ "$1" = -version ] && [ -n "{version}" ] && echo "ffmpeg version {version}" && exit
for word; do
    shift
    [ "$word" = 18 ] && word=19
    set -- "$@" "$word"
done
exec {ffmpeg} "$@"
"""


def other_encoder(path: Path, version: str = "") -> Path:
    path.write_text(OTHER.format(ffmpeg=ffmpeg_binary(), version=version))
    path.chmod(0o755)
    return path


def worker(store: Path, flow: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A worker of a run that was launched with the reference encoder."""
    return subprocess.run(
        [sys.executable, "-c", WORKER, str(store), flow, ffmpeg_binary()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_workers_whose_kernels_are_compiled_for_other_processors_work_together(tmp_path):
    first = worker(tmp_path, "tvl1")
    name = next(iter(TARGETS))
    second = worker(tmp_path, "tvl1", NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=TARGETS[name])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert len(list(tmp_path.rglob("canary.json"))) == 1


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("", "gives other bytes for encode than the first worker of this data set; use machines of one kind"),
        ("3.2.1", "encodes with 'ffmpeg version 3.2.1', the recipe with 'ffmpeg version"),
    ],
)
def test_a_worker_with_another_encoder_is_refused_with_the_remedy(tmp_path, version, sentence):
    encoder = other_encoder(tmp_path / "ffmpeg", version)
    assert worker(tmp_path / "store", "none").returncode == 0
    done = worker(tmp_path / "store", "none", IMAGEIO_FFMPEG_EXE=str(encoder))
    assert done.returncode == 1
    assert done.stderr.startswith("environment: ")
    assert sentence in done.stderr
