"""Frame i of a clip is the one shown at start + i / 25 s, through a folder and through sections alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timestamped
from fetch_fixtures import clip, get

from demo.site import Site
from pipeline.media import clip as clips
from pipeline.media.recipe import EncodeRecipe
from pipeline.sources import FetchOptions, Piece

SECONDS = 14
START, END = 8.0, 10.0  # past several keyframes, so that a section begins within the file
QUICK = ("mp4-hole", "mp4-audio-first", "webm-variable", "webm-late-start", "mkv-29.97", "ts-variable")


def cases():
    for name, (container, _, audio) in timestamped.plain_cases().items():
        kind = name.split("-", 1)[1]
        times = {
            "variable": lambda: timestamped.variable(SECONDS),
            "hole": lambda: timestamped.variable(SECONDS, hole=(6.2, 8.9)),
            "late-start": lambda: timestamped.constant(timestamped.RATES["29.97"], SECONDS, start=1.5),
            "audio-first": lambda: timestamped.constant(timestamped.RATES["23.976"], SECONDS, start=0.7),
        }.get(kind, lambda kind=kind: timestamped.constant(timestamped.RATES[kind], SECONDS))
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(container, times, audio, id=name, marks=marks)


def make(path: Path, start: float, end: float, out: Path) -> tuple[clips.ClipFrames, bytes]:
    ffmpeg = clips.ffmpeg_binary()
    cut = clips.cut(path, start, end, EncodeRecipe(), out, ffmpeg=ffmpeg, timeout=120)
    return cut, out.read_bytes()


@pytest.mark.parametrize(("container", "times", "audio"), cases())
def test_a_section_and_the_whole_file_give_the_same_bytes_with_every_frame_at_its_time(
    container, times, audio, tmp_path
):
    source = timestamped.write(tmp_path / f"video.{container}", times(), audio_from=audio)
    wanted = clip("video", START, END)
    with Site(tmp_path) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.{container}", tmp_path, FetchOptions(), wanted)
    local = get(f"dir:{tmp_path}/video.{container}", tmp_path, FetchOptions(), wanted).pieces[wanted.key]
    piece = fetched.pieces[wanted.key]
    assert isinstance(piece, Piece)
    assert isinstance(local, Piece)
    assert local.path == source.path
    assert fetched.whole == (container == "ts")
    if container != "ts":
        assert piece.path.stat().st_size < local.path.stat().st_size
    section, section_bytes = make(piece.path, piece.start, piece.end, tmp_path / "section.out.mp4")
    whole, whole_bytes = make(local.path, local.start, local.end, tmp_path / "whole.out.mp4")
    assert source.worst_error(section.planes, START) <= 1
    assert section_bytes == whole_bytes
    assert np.array_equal(section.planes, whole.planes)
    assert (section.frames, len(section.planes)) == (50, 51)


@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "flipping_pancake.mkv"])
def test_real_footage_gives_the_same_bytes_by_section_and_by_file(real_clips, name, tmp_path):
    stem, suffix = name.split(".")
    wanted = clip(stem, 5, 7)
    with Site(real_clips) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.{suffix}", tmp_path, FetchOptions(), wanted)
    piece = fetched.pieces[wanted.key]
    assert isinstance(piece, Piece)
    assert not fetched.whole
    section, section_bytes = make(piece.path, 5, 7, tmp_path / "section.out.mp4")
    whole, whole_bytes = make(real_clips / name, 5, 7, tmp_path / "whole.out.mp4")
    assert section_bytes == whole_bytes
    assert np.array_equal(section.planes, whole.planes)


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 1.5), (2.0, 4.0), (12.5, 14.5)], ids=["first", "early", "over-the-end"]
)
def test_sections_at_the_ends_of_a_video_give_the_same_bytes_as_the_whole_file(start, end, tmp_path):
    source = timestamped.write(tmp_path / "video.mp4", timestamped.constant(30, SECONDS), audio_from=0.1)
    wanted = clip("video", start, end)
    with Site(tmp_path) as site:
        fetched = get(f"{site.url}/{{youtube_id}}.mp4", tmp_path, FetchOptions(), wanted)
    piece = fetched.pieces[wanted.key]
    assert isinstance(piece, Piece)
    assert fetched.fallbacks == ()
    section, section_bytes = make(piece.path, start, end, tmp_path / "section.out.mp4")
    whole, whole_bytes = make(source.path, start, end, tmp_path / "whole.out.mp4")
    assert section_bytes == whole_bytes
    assert section.frames == whole.frames
    assert section.note == whole.note
    assert piece.duration == pytest.approx(SECONDS, abs=0.1)
