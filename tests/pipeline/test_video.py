"""Promises of reading whole videos: the frames of the clip bit for bit, in constant memory, from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import timestamped
from av.video.reformatter import Interpolation, VideoReformatter

from demo.site import Behaviour, Site
from pipeline.flow import FlowCoding, coding, tvl1_clip
from pipeline.media import clip, whole_video
from pipeline.media.probe import probe
from pipeline.outcome import Failed, FailureClass
from pipeline.sources import named_video

EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
SOURCES = {
    "plain.mp4": timestamped.constant(25, 2),
    "thirty.mkv": timestamped.constant(timestamped.RATES["29.97"], 2.5, start=1.5),
    "varying.webm": timestamped.variable(2.5),
    "broadcast.ts": timestamped.constant(50, 2),
    "old.avi": timestamped.constant(25, 2),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, times in SOURCES.items():
        timestamped.write(folder / name, times)
    return folder


def as_rgb(frames) -> np.ndarray:
    reformatter = VideoReformatter()
    pictures = (
        reformatter.reformat(f.picture, format="rgb24", interpolation=EXACT, threads=1) for f in frames
    )
    return np.stack([picture.to_ndarray() for picture in pictures])


@pytest.mark.parametrize("name", SOURCES)
def test_a_stream_gives_the_frames_of_the_clip_bit_for_bit(sources, name):
    rgb, _ = clip.read(sources / name)
    assert np.array_equal(as_rgb(whole_video.frames(sources / name)), rgb)


def test_the_flow_is_that_of_the_clips_planes_whatever_the_threads(tmp_path):
    source = timestamped.write(tmp_path / "a.mp4", timestamped.constant(25, 1)).path
    rgb, gray = clip.read(source)
    want = coding.quantise(tvl1_clip(gray), FlowCoding(bound=10))
    want = np.concatenate([want, want[-1:]])[: len(rgb)]
    for threads in (1, 3):
        got = np.stack(
            [
                f.flow
                for f in whole_video.frames(
                    source, solve=partial(coding.stored_flows, bound=10, threads=threads)
                )
            ]
        )
        assert np.array_equal(got, np.concatenate([want[..., 0], want[..., 1]], axis=1))


def test_real_footage_streams_to_the_same_frames(real_clips):
    source = real_clips / "ucf_320x240_mpeg4.avi"
    rgb, _ = clip.read(source)
    assert np.array_equal(as_rgb(whole_video.frames(source)), rgb)
    with pytest.raises(Failed, match="are damaged"):
        list(whole_video.frames(real_clips / "corrupted.mp4"))


def test_what_is_no_video_says_so(tmp_path):
    (tmp_path / "page.mp4").write_text("<html>")
    with pytest.raises(Failed, match="no video file"):
        next(whole_video.frames(tmp_path / "page.mp4"))


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1, 3), (10, 1)])
def test_a_video_shorter_than_a_second_gives_the_frames_it_has(tmp_path, count, threads):
    source = timestamped.write(tmp_path / "short.mp4", timestamped.constant(25, count / 25))
    found = list(
        whole_video.frames(source.path, solve=partial(coding.stored_flows, bound=10, threads=threads))
    )
    assert len(found) == count
    assert source.worst_error(as_rgb(found), 0) == 0
    assert (found[0].flow != 128).any() == (count > 1)


MEASURE = """
import resource, sys
from pathlib import Path
from functools import partial
from pipeline.flow import coding
from pipeline.media import whole_video
solve = partial(coding.stored_flows, bound=20.0) if sys.argv[2] == "flow" else None
count = sum(1 for _ in whole_video.frames(Path(sys.argv[1]), solve=solve))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def flat(path: Path, seconds: int) -> Path:
    """A video of one grey, which costs the flow nothing."""
    source = f"color=gray:size=320x256:rate=25:duration={seconds}"
    encode = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    command = [clip.ffmpeg_binary(), "-v", "error", "-y", "-f", "lavfi", "-i", source, *encode, str(path)]
    subprocess.run(command, check=True, timeout=120)
    return path


def measured(path: Path, kind: str) -> tuple[int, int]:
    """Frames and the peak of memory, MiB, of a process that streams a video."""
    command = [sys.executable, "-c", MEASURE, str(path), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    count, peak = map(int, done.stdout.split())
    return count, peak


@pytest.mark.parametrize(
    ("kind", "seconds"), [("rgb", 30), pytest.param("flow", 150, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_length(tmp_path, kind, seconds):
    short, long = (
        measured(flat(tmp_path / "a.mp4", 4), kind),
        measured(flat(tmp_path / "b.mp4", seconds), kind),
    )
    assert (short[0], long[0]) == (100, 25 * seconds)
    held = (long[0] - short[0]) * 320 * 256 / 2**20  # MiB that their luma planes alone would take
    assert long[1] - short[1] < max(20, held / 8)


def test_a_video_left_half_way_leaves_no_process_behind(tmp_path):
    frames = whole_video.frames(flat(tmp_path / "a.mp4", 30))
    assert len(list(islice(frames, 3))) == 3
    assert running_ffmpegs()
    frames.close()
    assert not running_ffmpegs()


def running_ffmpegs() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"ffmpeg" in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_an_ffmpeg_that_stalls_or_is_not_there_is_given_up(sources, tmp_path):
    stuck = tmp_path / "ffmpeg"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(Failed, match="gave nothing for"):
        next(whole_video.frames(sources / "plain.mp4", ffmpeg=str(stuck), timeout=0.5))
    assert time.monotonic() - began < 10
    with pytest.raises(Failed, match="does not run") as absent:
        next(whole_video.frames(sources / "plain.mp4", ffmpeg=str(tmp_path / "absent")))
    assert absent.value.failure_class is FailureClass.ENVIRONMENT


def test_a_video_is_had_from_an_address(sources, tmp_path):
    with Site(sources, {"/gone.mp4": Behaviour(status=404)}) as site:
        file = named_video.local_file(f"{site.url}/plain.mp4", tmp_path)
        assert file.read_bytes() == (sources / "plain.mp4").read_bytes()
        with pytest.raises(Failed, match="404"):
            named_video.local_file(f"{site.url}/gone.mp4", tmp_path)
    assert named_video.local_file(str(sources / "plain.mp4"), tmp_path) == sources / "plain.mp4"
    with pytest.raises(Failed, match="no file, address or YouTube id"):
        named_video.local_file("nonsense", tmp_path)


@pytest.mark.parametrize(
    ("name", "url", "title"),
    [
        ("0wR5jVB-WPk", "https://www.youtube.com/watch?v=0wR5jVB-WPk", "0wR5jVB-WPk"),
        ("https://youtu.be/0wR5jVB-WPk?t=7", "https://www.youtube.com/watch?v=0wR5jVB-WPk", "0wR5jVB-WPk"),
        (
            "https://www.youtube.com/watch?list=x&v=0wR5jVB-WPk",
            "https://www.youtube.com/watch?v=0wR5jVB-WPk",
            "0wR5jVB-WPk",
        ),
        ("https://host/a%20b/c%20d.mp4?x=1", "https://host/a%20b/c%20d.mp4?x=1", "c_d"),
        ("https://host/..", "https://host/..", "video"),
    ],
)
def test_a_name_says_where_it_is_fetched_from_and_what_its_files_are_called(name, url, title):
    source = named_video.source_of(name)
    assert source.url == url
    assert named_video.title(name) == title


def test_a_file_called_like_an_id_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("0wR5jVB-WPk").touch()
    assert named_video.source_of("0wR5jVB-WPk") is None


def test_an_annotated_video_shows_each_picture_in_its_time_upright(tmp_path):
    look = timestamped.Look(width=240, height=320, rotation=90)
    timestamped.write(tmp_path / "turned.mp4", timestamped.constant(30, 3), look)

    def colours(width: int, height: int):
        for number in range(3):
            picture = np.zeros((height, width, 4), np.uint8)
            picture[: height // 4, :, number] = 255
            picture[: height // 4, :, 3] = 255
            yield picture.tobytes()

    whole_video.annotate(tmp_path / "turned.mp4", tmp_path / "out.mp4", colours, 0.8)
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.rotation, info.duration) == (240, 320, 0, 3.0)
    rgb = clip.decode(tmp_path / "out.mp4")
    shown = rgb[:, 20, 100].argmax(axis=1)
    assert [int(shown[t]) for t in (2, 17, 22, 37, 42, 70)] == [0, 0, 1, 1, 2, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "turned.mp4"]
    with pytest.raises(Failed, match="cannot be written"):
        whole_video.annotate(tmp_path / "turned.mp4", tmp_path / "no" / "out.mp4", colours, 0.8)
    with pytest.raises(Failed, match="/no/such/ffmpeg does not run") as caught:
        whole_video.annotate(
            tmp_path / "turned.mp4", tmp_path / "out.mp4", colours, 0.8, ffmpeg="/no/such/ffmpeg"
        )
    assert caught.value.failure_class is FailureClass.ENVIRONMENT
