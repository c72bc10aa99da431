"""Output frame i is what the source shows at start + i / 25 s, within one source frame."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import timestamped

from pipeline.media import whole_video
from pipeline.media.clip import cut, decode, ffmpeg_binary, gray
from pipeline.media.probe import probe
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass

FFMPEG = ffmpeg_binary()
RECIPE = EncodeRecipe()
PLAIN = timestamped.plain_cases()


def make(path, start, end, out=None):
    return cut(path, start, end, RECIPE, out, ffmpeg=FFMPEG, timeout=60)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Writes a named source once."""
    folder, written = tmp_path_factory.mktemp("timestamped"), {}

    def get(name: str) -> timestamped.Source:
        if name not in written:
            suffix, times, audio_from = PLAIN[name]
            written[name] = timestamped.write(folder / f"{name}.{suffix}", times, audio_from=audio_from)
        return written[name]

    return get


@pytest.mark.parametrize("start", [0.0, 2.34567])
@pytest.mark.parametrize("name", list(PLAIN))
def test_every_plane_shows_its_time(sources, name, start):
    source = sources(name)
    piece = make(source.path, start, start + 3.2)
    assert piece.frames == 80
    assert len(piece.planes) == 81
    assert source.worst_error(piece.planes, start) <= 1


@pytest.mark.parametrize("container", timestamped.CONTAINERS)
def test_the_mp4_has_the_same_frames_as_the_planes(sources, tmp_path, container):
    source = sources(f"{container}-variable")
    piece = make(source.path, 1.1, 5.1, tmp_path / "clip.mp4")
    rgb = decode(tmp_path / "clip.mp4")
    assert rgb.shape == (100, piece.height, piece.width, 3)
    assert source.worst_error(rgb, 1.1) <= 1
    np.testing.assert_array_equal(timestamped.read_times(rgb), timestamped.read_times(piece.planes[:100]))
    assert gray(piece.planes).shape == (101, 256, 342)


OLD = {
    "avi": ["-c:v", "mpeg4", "-bf", "2", "-g", "300"],
    "flv": ["-c:v", "libx264", "-bf", "2", "-g", "300"],
    "mpg": ["-c:v", "mpeg2video", "-bf", "2", "-g", "300"],
    "asf": ["-c:v", "msmpeg4", "-g", "300"],
    "ogv": ["-c:v", "libtheora", "-g", "256"],
}


@pytest.mark.parametrize("start", [0.0, 1.0, 2.6])
@pytest.mark.parametrize("suffix", list(OLD))
def test_an_old_container_shows_its_pictures_wherever_a_clip_starts(sources, tmp_path, suffix, start):
    source = sources("mkv-29.97")
    old = tmp_path / f"old.{suffix}"
    command = [FFMPEG, "-v", "error", "-i", source.path, "-an", "-q:v", "2", "-r", "25", *OLD[suffix], old]
    subprocess.run(command, check=True, timeout=60)
    times = timestamped.read_times(make(old, start, start + 2).planes)
    expected = start + np.arange(len(times)) / 25
    assert not np.isnan(times).any(), "torn or grey pictures"
    assert np.abs(times - expected).max() < 0.2  # a muxer may move all by its B-frames


@pytest.mark.parametrize(("suffix", "offset"), [("mpg", 0), ("vob", 100)])
def test_a_program_streams_clock_begins_with_its_pictures(tmp_path, suffix, offset):
    source = timestamped.write(tmp_path / "source.mkv", timestamped.constant(25, 6))
    old = tmp_path / f"old.{suffix}"
    command = [FFMPEG, "-v", "error", "-i", source.path, "-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"]
    subprocess.run([*command, "-output_ts_offset", str(offset), old], check=True, timeout=60)
    info = probe(old)
    assert (info.start >= max(offset, 0.1), info.first) == (True, 0)
    piece = make(old, 1, 9)
    assert (piece.frames, piece.note) == (125, "the source ends at 6 s: 125 of 200 frames")
    assert np.abs(timestamped.read_times(piece.planes) - 1 - np.arange(125) / 25).max() < 0.05
    assert sum(1 for _ in whole_video.frames(old)) == 150


def test_sixty_frames_a_second_are_met_within_half_a_frame_of_ours(tmp_path):
    source = timestamped.write(tmp_path / "60.mp4", timestamped.constant(60, 4))
    piece = make(source.path, 1.234, 3.234)
    times = 1.234 + np.arange(51) / 25
    assert np.abs(timestamped.read_times(piece.planes) - times).max() <= 0.0205


@pytest.mark.parametrize("start", [2.0, 4.0, 4.8])
@pytest.mark.parametrize("container", timestamped.CONTAINERS)
def test_a_start_inside_a_hole_shows_the_picture_before_it(sources, container, start):
    source = sources(f"{container}-hole")  # nothing between 1.7 and 4.9 s
    piece = make(source.path, start, start + 2)
    assert len(piece.planes) == 51
    assert source.worst_error(piece.planes, start) <= 1


@pytest.mark.parametrize("container", timestamped.CONTAINERS)
def test_a_hole_across_the_end_is_filled(sources, container):
    piece = make(sources(f"{container}-hole").path, 0.5, 2.5)
    assert len(piece.planes) == 51
    assert piece.note is None


@pytest.mark.parametrize("container", timestamped.CONTAINERS)
def test_a_source_that_ends_inside_gives_the_frames_there_and_says_so(sources, container):
    source = sources(f"{container}-29.97")  # 6 s
    piece = make(source.path, 3.0, 13.0)
    assert abs(piece.frames - 75) <= 1
    assert len(piece.planes) == piece.frames
    assert piece.wanted == 250
    assert "the source ends at" in piece.note
    assert source.worst_error(piece.planes, 3.0) <= 1


@pytest.mark.parametrize("container", timestamped.CONTAINERS)
@pytest.mark.parametrize("start", [5.4, 5.98, 6.5, 60.0])
def test_less_than_a_second_or_a_start_beyond_the_end_is_short(sources, container, start):
    with pytest.raises(Failed) as failed:
        make(sources(f"{container}-29.97").path, start, start + 10)
    assert failed.value.failure_class == FailureClass.SHORT


def test_a_source_that_ends_exactly_at_the_end_gives_no_extra_plane(sources):
    piece = make(sources("ts-50").path, 1.0, 6.0)
    assert (piece.frames, len(piece.planes), piece.note) == (125, 125, None)


@pytest.mark.parametrize("name", ["mp4-late-start", "mkv-audio-first"])
def test_pictures_that_start_late_are_said_to(sources, name):
    source = sources(name)
    piece = make(source.path, 0.0, 3.0)
    assert len(piece.planes) == 76
    assert "its first picture stands in" in piece.note
    assert source.worst_error(piece.planes, 0.0) <= 1


@pytest.mark.parametrize("container", ["mp4", "ts"])
def test_less_than_a_second_behind_the_first_picture_is_short(tmp_path, container):
    source = timestamped.write(tmp_path / f"late.{container}", timestamped.constant(25, 4, 5), audio_from=0.1)
    first = source.times[0]
    for start, end in ((0, 2), (first - 1, first + 0.9)):
        with pytest.raises(Failed, match="shows nothing before") as failed:
            make(source.path, start, end)
        assert failed.value.failure_class == FailureClass.SHORT
    for start, end in ((first - 2, first + 1.02), (first, first + 1), (first - 0.03, first + 1)):
        piece = make(source.path, start, end)
        assert piece.frames == piece.wanted
        assert source.worst_error(piece.planes, start) <= 1
        assert bool(piece.note) == (first - start > 0.05)


TRIMMED = {  # first picture, sound from, the clip's zero: seconds by the file's clock
    "clock-kept": (5.0, None, 5.0),
    "clock-kept-with-sound": (5.01, 5.0, 5.0),
    "sound-first": (0.24, 0.1, 0.1),
    "late-pictures": (1.6, 0.1, 0.1),
    "ordinary": (0.0, 0.1, 0.0),
}


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("case", list(TRIMMED))
def test_a_trimmed_file_starts_at_its_first_time_stamp(tmp_path, case, container):
    first, sound, zero = TRIMMED[case]
    times = timestamped.constant(30, 4, first)
    source = timestamped.write(tmp_path / f"trimmed.{container}", times, audio_from=sound)
    piece = cut(source.path, 0, 3.3, RECIPE, None, ffmpeg=FFMPEG, timeout=60, trimmed=True)
    assert piece.frames == 82
    shown = timestamped.read_times(piece.planes)
    assert np.abs(shown - np.maximum(zero + np.arange(len(shown)) / 25, first)).max() < 1 / 30 + 0.002
    assert bool(piece.note) == (first - zero > 0.05)


@pytest.mark.parametrize("container", ["mp4", "webm", "mkv"])
@pytest.mark.parametrize("kind", ["constant", "hole"])
def test_a_section_that_kept_its_clock_gives_the_same_bytes_as_the_whole_file(tmp_path, container, kind):
    times = {"constant": timestamped.constant(30, 30), "hole": timestamped.variable(30, hole=(11.0, 14.5))}[
        kind
    ]
    source = timestamped.write(tmp_path / f"whole.{container}", times, audio_from=0.1)
    section = tmp_path / f"section.{container}"
    command = [FFMPEG, "-v", "error", "-nostdin", "-copyts", "-ss", "10.2", "-t", "9"]
    subprocess.run([*command, "-i", str(source.path), "-c", "copy", str(section)], check=True)
    whole = make(source.path, 13.2, 18.2, tmp_path / "whole-clip.mp4")
    part = make(section, 13.2, 18.2, tmp_path / "part-clip.mp4")
    assert source.worst_error(part.planes, 13.2) <= 1
    np.testing.assert_array_equal(whole.planes, part.planes)
    assert (tmp_path / "whole-clip.mp4").read_bytes() == (tmp_path / "part-clip.mp4").read_bytes()
