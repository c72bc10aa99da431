"""One pass gives the clip of the contract, upright and square, with the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace

import av
import numpy as np
import pytest
import timestamped

from pipeline.media.clip import ClipFrames, cut, decode, ffmpeg_binary, gray, probe, read
from pipeline.media.corruption import Damage, judge
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass

FFMPEG = ffmpeg_binary()
RECIPE = EncodeRecipe()


def make(path, start, end, out=None, recipe=RECIPE) -> ClipFrames:
    return cut(path, start, end, recipe, out, ffmpeg=FFMPEG, timeout=60)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory) -> timestamped.Source:
    folder = tmp_path_factory.mktemp("ordinary")
    return timestamped.write(folder / "ordinary.mp4", timestamped.constant(30, 6), audio_from=0.1)


SIZES = {
    "rotated": (256, 342),
    "upside-down": (342, 256),
    "wide-pixels": (342, 256),
    "tall-pixels": (304, 256),
    "portrait": (256, 454),
    "odd-444": (340, 256),
    "hdr": (342, 256),
    "interlaced": (342, 256),
    "full-range": (342, 256),
}


@pytest.mark.parametrize("look", list(timestamped.LOOKS))
def test_every_look_becomes_upright_square_and_legible(tmp_path, look):
    source = timestamped.write(tmp_path / "a.mp4", timestamped.constant(25, 3), timestamped.LOOKS[look])
    out = tmp_path / "clip.mp4"
    piece = make(source.path, 1.0, 3.0, out)
    assert (piece.width, piece.height) == SIZES[look]
    assert piece.planes.shape == (50, piece.height, piece.width)
    assert source.worst_error(piece.planes, 1.0) == 0
    assert source.worst_error(decode(out), 1.0) == 0
    if look != "hdr":  # the blocks are luma 50 and 200, so neither range nor rotation may change them
        expected = 16 + np.array([50, 200]) * 219 / 255 if look == "full-range" else np.array([50, 200])
        low, high = np.percentile(piece.planes, [10, 90])
        np.testing.assert_allclose([low, high], expected, atol=2)


def test_hdr_is_brought_to_bt709(tmp_path):
    source = timestamped.write(tmp_path / "hdr.mp4", timestamped.constant(25, 2), timestamped.LOOKS["hdr"])
    assert probe(source.path).transfer == "smpte2084"
    make(source.path, 0.0, 2.0, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_trc, context.colorspace, context.color_range) == (1, 1, 1)
        assert context.pix_fmt == "yuv420p"


def test_the_clip_is_what_the_contract_says(ordinary, tmp_path):
    out = tmp_path / "clip.mp4"
    piece = make(ordinary.path, 0.5, 5.5, out)
    assert (piece.frames, piece.wanted, piece.note) == (125, 125, None)
    with av.open(str(out)) as container:
        assert [s.type for s in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.color_range in (0, 1)  # limited, said or by default
        assert stream.sample_aspect_ratio in (None, 1)
        assert (stream.average_rate, stream.frames) == (25, 125)
        frames = list(container.decode(stream))
    assert [round(f.time * 25) for f in frames] == list(range(125))
    keys = [i for i, f in enumerate(frames) if f.key_frame]
    assert keys[0] == 0
    assert max(np.diff([*keys, 125])) <= 16
    data = out.read_bytes()
    assert b"x264 - core" not in data  # nor which build wrote it
    assert b"Lavf" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_planes_are_those_of_the_clip_before_encoding(ordinary, tmp_path):
    out = tmp_path / "clip.mp4"
    piece = make(ordinary.path, 0.5, 3.5, out)
    assert len(piece.planes) == piece.frames + 1
    with av.open(str(out)) as container:
        luma = np.stack([f.to_ndarray()[: piece.height, : piece.width] for f in container.decode(video=0)])
    assert np.abs(luma.astype(int) - piece.planes[:-1]).mean() < 2
    np.testing.assert_array_equal(make(ordinary.path, 0.5, 3.5).planes, piece.planes)


def test_gray_is_the_contracts_table():
    luma = np.arange(256, dtype=np.uint8)
    expected = np.clip(np.rint((luma.astype(float) - 16) * 255 / 219), 0, 255)
    np.testing.assert_array_equal(gray(luma), expected)
    assert gray(luma[None, None]).dtype == np.uint8


def digest(piece: ClipFrames, out) -> str:
    return hashlib.sha256(out.read_bytes() + piece.planes.tobytes()).hexdigest()


@pytest.mark.parametrize("look", ["hdr", "odd-444", None])
def test_bytes_do_not_depend_on_the_run_or_the_cores(tmp_path, ordinary, look):
    source = ordinary
    if look:
        source = timestamped.write(tmp_path / "a.mp4", timestamped.constant(25, 4), timestamped.LOOKS[look])
    cores, digests = os.sched_getaffinity(0), []
    try:
        for use in (cores, cores, {min(cores)}):
            os.sched_setaffinity(0, use)
            out = tmp_path / f"clip-{len(digests)}.mp4"
            digests.append(digest(make(source.path, 0.5, 3.0, out), out))
    finally:
        os.sched_setaffinity(0, cores)
    assert len(set(digests)) == 1


def test_real_footage_has_the_same_bytes_on_any_cores(tmp_path, real_clips):
    cores = os.sched_getaffinity(0)
    for name in ("arm_wrestling.mp4", "flipping_pancake.mkv", "ucf_320x240_mpeg4.avi"):
        digests = set()
        try:
            for use in (cores, {max(cores)}):
                os.sched_setaffinity(0, use)
                out = tmp_path / "clip.mp4"
                digests.add(digest(make(real_clips / name, 1.0, 4.0, out), out))
        finally:
            os.sched_setaffinity(0, cores)
        assert len(digests) == 1, name


def test_real_footage_has_its_250_frames(real_clips, tmp_path):
    found = {}
    for path in sorted(real_clips.iterdir()):
        if "corrupted" not in path.name:
            piece = make(path, 0.0, 10.0)
            found[path.name] = (piece.frames, len(piece.planes), piece.width, piece.height)
    assert found["arm_wrestling.mp4"] == (250, 250, 426, 256)
    assert found["flipping_pancake.mkv"] == (250, 251, 454, 256)
    assert found["test_340x256_30fps.mp4"] == (250, 250, 456, 256)
    assert found["ucf_320x240_mpeg4.avi"] == (165, 165, 342, 256)


def test_read_is_the_very_same_way(ordinary, tmp_path):
    out = tmp_path / "clip.mp4"
    piece = make(ordinary.path, 1.0, 4.0, out)
    rgb, planes = read(ordinary.path, 1.0, 4.0)
    np.testing.assert_array_equal(rgb, decode(out))
    np.testing.assert_array_equal(planes, gray(piece.planes))
    rgb, planes = read(ordinary.path)
    assert abs(len(rgb) - 150) <= 1
    assert planes.shape[1:] == rgb.shape[1:3]


def test_another_recipe_is_another_clip(ordinary, tmp_path):
    recipe = replace(RECIPE, short_side=112, rate=10, keyframe_interval=5)
    piece = make(ordinary.path, 1.0, 4.0, tmp_path / "clip.mp4", recipe)
    assert piece.planes.shape == (31, 112, 150)
    assert ordinary.worst_error(piece.planes, 1.0, rate=10) <= 2  # 50 ms are 1.5 frames of the source
    assert len(decode(tmp_path / "clip.mp4")) == 30


def test_a_range_of_frames_is_that_part_of_all(ordinary, tmp_path):
    out = tmp_path / "clip.mp4"
    make(ordinary.path, 0.0, 5.0, out)
    data, whole = out.read_bytes(), decode(out)
    for frames in (range(1), range(15, 17), range(16, 32), range(61, 125), range(124, 125)):
        np.testing.assert_array_equal(decode(data, frames), whole[frames.start : frames.stop])
    np.testing.assert_array_equal(decode(data, threads=2), whole)


KEPT_IN = {  # codec -> container, what the encoder is told
    "huffyuv": ("avi", ["-pix_fmt", "yuv422p"]),
    "ffvhuff": ("mkv", []),
    "utvideo": ("avi", []),
    "png": ("mov", []),
    "qtrle": ("mov", []),
    "msvideo1": ("avi", []),
    "svq1": ("mov", []),
    "jpeg2000": ("mov", ["-s", "64x48"]),
    "cfhd": ("mov", []),
}


@pytest.mark.parametrize("codec", list(KEPT_IN))
def test_what_data_sets_are_kept_in_is_read(tmp_path, codec):
    container, told = KEPT_IN[codec]
    path = tmp_path / f"kept.{container}"
    source = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=1"]
    subprocess.run([FFMPEG, "-v", "error", *source, "-c:v", codec, *told, str(path)], check=True, timeout=60)
    assert probe(path).codec == codec
    piece = make(path, 0.0, 1.0)
    assert (piece.frames, piece.note) == (25, None)
    assert piece.planes.std() > 20


def test_a_codec_that_is_not_read_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "drawn.mkv"
    source = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=1"]
    subprocess.run([FFMPEG, "-v", "error", *source, "-c:v", "gif", str(path)], check=True, timeout=60)
    with pytest.raises(Failed, match="gif, which is not read here: encode it again") as failed:
        probe(path)
    assert failed.value.failure_class == FailureClass.FORMAT


COLOURS = {  # colour matrix written, whether the file says so, size, as H.273 numbers
    "tagged-709": (1, True, (320, 240)),
    "tagged-601": (6, True, (320, 240)),
    "untagged-small": (6, False, (320, 240)),
    "untagged-hd": (1, False, (1280, 720)),
}


@pytest.mark.parametrize("case", list(COLOURS))
def test_colours_come_back(tmp_path, case):
    matrix, tagged, (width, height) = COLOURS[case]
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}[matrix]
    rgb = np.array([200.0, 60.0, 40.0])
    luma = rgb @ [red, 1 - red - blue, blue]
    chroma = [(rgb[2] - luma) / (2 - 2 * blue), (rgb[0] - luma) / (2 - 2 * red)]
    values = [16 + luma * 219 / 255, *(128 + c * 224 / 255 for c in chroma)]
    path, out = tmp_path / "colour.mp4", tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if tagged:
            stream.codec_context.colorspace = matrix
        for _ in range(30):
            shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
            flat = [np.full(h * w, round(v), np.uint8) for v, (h, w) in zip(values, shapes, strict=True)]
            frame = av.VideoFrame.from_ndarray(np.concatenate(flat).reshape(-1, width), format="yuv420p")
            if tagged:
                frame.colorspace = matrix
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    make(path, 0.0, 1.0, out)
    np.testing.assert_allclose(decode(out).mean(axis=(0, 1, 2)), rgb, atol=3)


def test_the_judgement_of_what_came():
    info = probe_of(end=10.0)
    whole = {"info": info, "start": 0.0, "wanted": 250, "rate": 25}
    assert judge(got=251, **whole) is None
    assert judge(got=235, **whole) == "the source ends at 9.4 s: 235 of 250 frames"
    for got, complaint, damage in (
        (200, None, Damage(0)),  # two seconds less than promised
        (235, "File ended prematurely", Damage(290)),  # less, and a reason to think that it was more
        (250, "corrupt decoded frame", Damage(300, concealed=7)),
        (250, "Error submitting packet to decoder", Damage(290, lost=10)),
        (250, "0x00 at pos 7 (0x7) invalid as first byte of an EBML number", Damage(200)),
        (0, None, Damage(0)),
    ):
        with pytest.raises(Failed) as failed:
            judge(got=got, complaint=complaint, damage=damage, **whole)
        assert failed.value.failure_class == FailureClass.CORRUPT
    note = judge(got=250, complaint="corrupt decoded frame", damage=Damage(300, concealed=2), **whole)
    assert note == "2 of the section's 300 pictures are damaged"
    longer_sound = whole | {"info": replace(info, end_is_video=False)}
    assert judge(got=200, **longer_sound) == "the source ends at 8 s: 200 of 250 frames"


def probe_of(end: float):
    from pipeline.media.probe import SourceInfo

    return SourceInfo("mov", "h264", 340, 256, "1:1", 0, 30.0, 30.0, end, 0.0, 0.0, end, True, None, None)
