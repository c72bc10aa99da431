"""Hostile inputs come back as typed failures, and touch nothing else."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timestamped

from pipeline.media.clip import command, cut, decode, encoder_version, ffmpeg_binary, probe
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass

FFMPEG = ffmpeg_binary()
RECIPE = EncodeRecipe()


def failure(path: Path, start=0.0, end=2.0, out=None, ffmpeg=FFMPEG, timeout=60.0) -> Failed:
    with pytest.raises(Failed) as failed:
        cut(path, start, end, RECIPE, out, ffmpeg=ffmpeg, timeout=timeout)
    return failed.value


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    return timestamped.write(path, timestamped.constant(25, 4)).path


REFERENCES = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{good}\n#EXT-X-ENDLIST\n",
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{good}\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile '{good}'\n",
    "concat.ffconcat": "ffconcat version 1.0\nfile '{good}'\n",
    "dash.mpd": '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation id="1">'
    "<BaseURL>{good}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "page.mp4": "<!doctype html><html><title>Video unavailable</title></html>",
    "titles.srt": "1\n00:00:00,000 --> 00:00:09,000\nno video\n",
    "image2.mp4": "{good}",
    "empty.mp4": "",
}


@pytest.mark.parametrize("name", list(REFERENCES))
def test_lists_pages_and_texts_are_refused_without_reading_what_they_name(tmp_path, good, name):
    path = tmp_path / name
    path.write_text(REFERENCES[name].format(good=good))
    assert failure(path, out=tmp_path / "out.mp4").failure_class == FailureClass.FORMAT
    bare = command(path, probe(good), 0.0, 50, RECIPE, None, FFMPEG)  # ffmpeg itself, past the probe
    finished = subprocess.run(bare, capture_output=True, timeout=60)
    assert finished.stdout == b""
    assert b"good.mp4" not in finished.stderr.replace(str(path).encode(), b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_pictures_and_sounds_are_no_videos(tmp_path):
    for name, arguments in {
        "picture.png": ["-f", "lavfi", "-i", "color=s=64x64", "-frames:v", "1"],
        "picture.mp4": [
            "-f",
            "lavfi",
            "-i",
            "color=s=64x64",
            "-frames:v",
            "1",
            "-f",
            "image2",
            "-c:v",
            "mjpeg",
        ],
        "sound.m4a": ["-f", "lavfi", "-i", "anullsrc", "-t", "1", "-c:a", "aac"],
    }.items():
        subprocess.run([FFMPEG, "-v", "error", *arguments, str(tmp_path / name)], check=True)
        assert failure(tmp_path / name).failure_class == FailureClass.FORMAT, name


def test_what_is_no_file_is_missing_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path, tmp_path / "absent.mp4"):
        assert failure(path).failure_class == FailureClass.MISSING


def avi_header(width: int, height: int) -> bytes:
    """An AVI file of raw pictures said to be width x height, with one small chunk of data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    main = struct.pack("<14I", 40000, 0, 0, 0x10, 100, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = b"vids" + b"\0" * 4 + struct.pack("<10I", 0, 0, 0, 1, 25, 0, 100, 0, 0, 0) + b"\0" * 8
    bitmap = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    streams = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", bitmap))
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + streams)
    return chunk(b"RIFF", b"AVI " + header + chunk(b"LIST", b"movi" + chunk(b"00db", b"\0" * 4096)))


@pytest.mark.parametrize(("width", "height"), [(40000, 40000), (16000, 9000), (8000, 100)])
def test_a_picture_out_of_bounds_is_refused_before_memory_is_taken_for_it(tmp_path, width, height):
    path = tmp_path / "huge.avi"
    path.write_bytes(avi_header(width, height))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert failure(path).failure_class in (FailureClass.TOO_LARGE, FailureClass.CORRUPT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_video_beyond_8k_is_too_large(tmp_path):
    look = timestamped.Look(8192, 4608)
    path = timestamped.write(tmp_path / "huge.mp4", timestamped.constant(1, 1), look).path
    assert failure(path).failure_class == FailureClass.TOO_LARGE


def test_absurd_pixels_are_too_large(tmp_path):
    look = timestamped.Look(pixel_aspect=Fraction(200, 1))
    path = timestamped.write(tmp_path / "absurd.mp4", timestamped.constant(25, 2), look).path
    assert failure(path).failure_class == FailureClass.TOO_LARGE


def test_a_section_that_no_memory_holds_is_too_large(good):
    assert failure(good, 0.0, 1e6).failure_class == FailureClass.TOO_LARGE


def test_a_picture_that_changes_size_on_the_way_stays_one_clip(tmp_path):
    small = timestamped.write(tmp_path / "small.ts", timestamped.constant(25, 3))
    large = timestamped.write(
        tmp_path / "large.ts", timestamped.constant(25, 3, 3), timestamped.Look(640, 480)
    )
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.path.read_bytes() + large.path.read_bytes())
    piece = cut(joined, 1.0, 5.0, RECIPE, tmp_path / "out.mp4", ffmpeg=FFMPEG, timeout=60)
    assert piece.planes.shape == (101, 256, 342)
    assert decode(tmp_path / "out.mp4").shape == (100, 256, 342, 3)


def fake_ffmpeg(folder: Path, script: str) -> str:
    path = folder / "fake-ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_hanging_ffmpeg_is_ended_at_its_limit(tmp_path, good):
    pid = tmp_path / "pid"
    hanging = fake_ffmpeg(tmp_path, f"sleep 300 & echo $! > {pid}; wait")
    before = time.monotonic()
    assert failure(good, ffmpeg=hanging, timeout=0.7).failure_class == FailureClass.TOO_LARGE
    assert time.monotonic() - before < 6
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    assert not state.exists() or ") Z " in state.read_text()


def test_a_missing_or_wrong_ffmpeg_is_the_environment(tmp_path, good):
    for binary in (str(tmp_path / "absent"), str(good), fake_ffmpeg(tmp_path, "kill -KILL $$")):
        assert failure(good, ffmpeg=binary).failure_class == FailureClass.ENVIRONMENT
    lacking = fake_ffmpeg(tmp_path, "echo \"Unknown encoder 'libx264'\" >&2; exit 1")
    assert "libx264" in failure(good, ffmpeg=lacking).reason
    for binary in (str(tmp_path / "absent"), sys.executable):
        with pytest.raises(Failed, match="environment"):
            encoder_version(binary)
    assert encoder_version(FFMPEG).startswith("ffmpeg version")


def test_a_full_disk_is_storage_and_leaves_nothing(tmp_path, good):
    out = tmp_path / "out.mp4"
    limit, previous = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        assert failure(good, out=out).failure_class == FailureClass.STORAGE
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_storage(tmp_path, good):
    assert failure(good, out=tmp_path / "absent" / "out.mp4").failure_class == FailureClass.STORAGE


def spoil(good: Path, path: Path, how: str) -> Path:
    """A copy of `good` in `path`'s container, spoiled as `how` says."""
    subprocess.run([FFMPEG, "-v", "error", "-y", "-i", str(good), "-c", "copy", str(path)], check=True)
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "zeros":
        data[len(data) // 3 : len(data) * 2 // 3] = bytes(len(data) // 3)
    else:
        random = np.random.default_rng(1)
        for at in random.integers(len(data) // 4, len(data) - 2000, len(data) // 100):
            data[at] = int(random.integers(256))
    path.write_bytes(bytes(data))
    return path


DAMAGE = [(c, h) for c in ("mp4", "mkv", "avi") for h in ("cut", "zeros", "noise")]
DAMAGE.remove(("avi", "cut"))  # its length is told by the file's size: cut short, it is short


@pytest.mark.parametrize(("container", "how"), DAMAGE)
def test_damaged_footage_is_corrupt_every_time(tmp_path, real_clips, container, how):
    path = spoil(real_clips / "test_340x256_30fps.mp4", tmp_path / f"damaged.{container}", how)
    outcomes = [failure(path, 0.0, 10.0, tmp_path / "out.mp4") for _ in range(2)]
    assert {o.failure_class for o in outcomes} == {FailureClass.CORRUPT}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_corrupted_clip_is_corrupt(real_clips, tmp_path):
    for start, end in ((0.0, 5.0), (0.0, 10.0), (1.0, 4.0)):
        failed = failure(real_clips / "corrupted.mp4", start, end, tmp_path / "out.mp4")
        assert failed.failure_class == FailureClass.CORRUPT
        assert "pictures are damaged" in failed.reason


def test_a_file_cut_behind_the_section_is_as_good_as_whole(tmp_path, real_clips):
    whole = real_clips / "flipping_pancake.mkv"
    part = tmp_path / "part.mkv"
    part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.8)])
    pieces = [cut(p, 1.0, 5.0, RECIPE, None, ffmpeg=FFMPEG, timeout=60) for p in (whole, part)]
    np.testing.assert_array_equal(pieces[0].planes, pieces[1].planes)
    assert pieces[1].note is None


def test_an_awkward_path_is_only_a_path(tmp_path, good):
    for name in ("-i.mp4", "http:x.mp4", "a 'b';[c],%d.mp4", "concat:x|y.mp4"):
        shutil.copy(good, tmp_path / name)
        out = tmp_path / f"out of {name}"
        assert cut(tmp_path / name, 0.0, 2.0, RECIPE, out, ffmpeg=FFMPEG, timeout=60).frames == 50
        assert len(decode(out)) == 50


def test_noise_for_a_header_never_hangs(tmp_path):
    random = np.random.default_rng(3)
    marks = (
        b"\0\0\0\x18ftypisom",
        b"\x1a\x45\xdf\xa3",
        b"RIFF\xff\xff\xff\x7fAVI ",
        b"FLV\x01\x05",
        b"OggS",
        b"G",
    )
    for mark in marks:
        path = tmp_path / "noise.bin"
        path.write_bytes(mark + random.integers(0, 256, 300_000, dtype=np.uint8).tobytes())
        failed = failure(path, timeout=20)
        assert failed.failure_class in (FailureClass.CORRUPT, FailureClass.FORMAT, FailureClass.TOO_LARGE)


def test_a_clip_that_is_none_cannot_be_decoded(good):
    data = good.read_bytes()
    for bad in (b"", b"no clip", data[:500], REFERENCES["concat.mp4"].format(good=good).encode()):
        with pytest.raises(Failed, match="corrupt"):
            decode(bad)
    with pytest.raises(IndexError):
        decode(data, range(90, 120))


def test_failures_name_no_place(tmp_path, good):
    """Reasons are published: they say what is wrong with the source, not where it lay."""
    (tmp_path / "page.mp4").write_text("<html>")
    assert str(tmp_path) not in failure(tmp_path / "page.mp4").reason
