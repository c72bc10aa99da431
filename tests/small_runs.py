"""Small runs for the tests of the whole job: moving pictures in a folder, a list, and the command."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.media.clip import ffmpeg_binary

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
SIZES = ("320x256", "256x340", "340x256")


def make_videos(folder: Path, names: list[str], seconds: float = 3.0) -> Path:
    """Write a short moving video for each name, of differing sizes and rates."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        size, rate = SIZES[number % 3], (25, 30, 24)[number % 3]
        source = f"testsrc2=size={size}:rate={rate}:duration={seconds},hue=h={40 * number}"
        command = [ffmpeg_binary(), "-v", "error", "-y", "-f", "lavfi", "-i", source]
        encode = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
        subprocess.run([*command, *encode, str(folder / f"{name}.mp4")], check=True, timeout=60)
    return folder


def make_list(path: Path, rows: list[str]) -> Path:
    """Write a list in the published form."""
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def pipeline(*arguments: object, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pipeline`` as a user would."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def published_bytes(root: Path) -> dict[str, str]:
    """sha256 of every shard, index file and dataset.json below `root`, by relative path."""
    files = [*root.glob("shards/*"), *root.glob("index/*"), root / "dataset.json"]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def start(argv: list[str], root: Path) -> subprocess.Popen[bytes]:
    """Start ``python -m pipeline`` in a process group of its own, its workers marked for `workers_of`."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "QUOVADIS_TEST_ROOT": str(root)},
    )


def wait_for_workers(root: Path, seconds: float) -> None:
    """Return when no worker of a killed job is left; they end by themselves."""
    deadline = time.monotonic() + seconds
    while workers_of(root):
        assert time.monotonic() < deadline, "workers outlived their launcher"
        time.sleep(0.1)


def workers_of(root: Path) -> list[str]:
    """Processes that were started with QUOVADIS_TEST_ROOT naming `root`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"QUOVADIS_TEST_ROOT={root}\0".encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found
