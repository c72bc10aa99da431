"""Flow as video: zero is exact, errors are small, bytes are the same, hostile files get a sentence."""

from __future__ import annotations

import itertools

import av
import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.flow import FlowCoding, coding, tvl1_clip
from pipeline.outcome import Failed, FailureClass

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def _waves(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth flow of up to 12 pixels that changes with time, float32 (count, H, W, 2)."""
    t, y, x = np.mgrid[:count, :height, :width].astype(float)
    return np.stack([12 * np.sin((x + 2 * t) / 20), 8 * np.cos((y - t) / 15)], -1).astype(np.float32)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    out = tmp_path_factory.mktemp("flow") / "a.flow.mp4"
    coding.encode(_waves(40), out, ffmpeg=FFMPEG, timeout=60)
    return out


def test_the_law_is_that_of_the_contract():
    values = np.array([0, -0.07, 0.08, 20, -20, 31, -99, 1e30, 10], np.float32)
    assert coding.quantise(values).tolist() == [128, 128, 129, 255, 1, 255, 1, 255, 192]
    every = np.arange(1, 256, dtype=np.uint8)
    assert np.array_equal(coding.quantise(coding.dequantise(every)), every)
    assert coding.dequantise(np.uint8([128, 255, 1])).tolist() == [0, 20, -20]
    assert coding.quantise(np.float32([5]), FlowCoding(bound=10.0))[0] == 192


def test_saturation_is_the_share_beyond_the_bound():
    assert coding.saturation(np.float32([[0, 20.5], [-21, 19]])) == 0.5


def test_zero_is_exactly_zero_after_decoding(tmp_path):
    out = tmp_path / "zero.flow.mp4"
    coding.encode(itertools.repeat(np.zeros((36, 50, 2), np.float32), 20), out, ffmpeg=FFMPEG, timeout=60)
    flow = coding.decode(out)
    assert flow.shape == (20, 36, 50, 2)
    assert flow.dtype == np.float32
    assert not flow.any()


def test_what_was_encoded_is_decoded(video):
    flow = coding.decode(video)
    assert np.linalg.norm(flow - _waves(40), axis=-1).mean() <= 0.10
    assert np.array_equal(coding.decode(video.read_bytes(), threads=2), flow)


@pytest.mark.parametrize("frames", [range(1), range(15, 17), range(16, 40), range(39, 40), range(5, 5)])
def test_a_range_of_frames_is_the_same_as_the_whole(video, frames):
    if not len(frames):
        with pytest.raises((Failed, IndexError)):
            coding.decode(video, frames)
        return
    assert np.array_equal(coding.decode(video, frames), coding.decode(video)[frames.start : frames.stop])


def test_a_range_beyond_the_end_is_an_index_error(video):
    with pytest.raises(IndexError, match="frames 30 to 41 are not all in the flow"):
        coding.decode(video, range(30, 41))


def test_the_file_is_as_the_contract_says(video):
    with av.open(str(video)) as container:
        (stream,) = container.streams
        assert (stream.codec.name, stream.width, stream.height) == ("h264", 64, 96)
        assert stream.average_rate == 25
        assert stream.codec_context.color_range == 2  # full
        pictures = list(container.decode(stream))
        assert [round(picture.pts * 25 * stream.time_base) for picture in pictures] == list(range(40))
    keys = [index for index, picture in enumerate(pictures) if picture.key_frame]
    assert np.diff([*keys, 40]).max() <= 16
    for picture in pictures:
        assert picture.format.name in ("yuv420p", "yuvj420p")
        for plane in picture.planes[1:]:
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            assert (rows[:, : plane.width] == 128).all()
    assert b"x264 - core" not in video.read_bytes()
    assert b"Lavf" not in video.read_bytes()


def test_encoding_twice_gives_the_same_bytes(video, tmp_path):
    coding.encode(iter(_waves(40)), tmp_path / "b.mp4", ffmpeg=FFMPEG, timeout=60)
    assert (tmp_path / "b.mp4").read_bytes() == video.read_bytes()


def test_real_flow_loses_at_most_a_tenth_of_a_pixel(real_clips, tmp_path):
    frames = []
    with av.open(str(real_clips / "test_340x256_30fps.mp4")) as container:
        for picture in itertools.islice(container.decode(video=0), 60, 69):
            frames.append(picture.reformat(340, 256, "gray").to_ndarray())
    flow = tvl1_clip(frames)
    coding.encode(flow, tmp_path / "real.mp4", ffmpeg=FFMPEG, timeout=60)
    error = np.linalg.norm(coding.decode(tmp_path / "real.mp4") - flow.clip(-20, 20), axis=-1)
    assert error.mean() <= 0.10


def test_wrong_flows_get_one_sentence_and_leave_nothing_behind(tmp_path):
    good = np.zeros((20, 30, 2), np.float32)
    cases = [
        ([], "there is no flow to encode"),
        ([good[:, :29]], "H.264 needs an even width, not 29"),
        ([good, good[:18]], r"flow of shape \(18, 30, 2\) follows flow of shape \(20, 30, 2\)"),
    ]
    for flows, says in cases:
        with pytest.raises(ValueError, match=says):
            coding.encode(flows, tmp_path / "out.mp4", ffmpeg=FFMPEG, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_outside_has_its_class(tmp_path):
    flows = [np.zeros((20, 30, 2), np.float32)]
    cases = [
        ({"ffmpeg": "/no/such/ffmpeg"}, tmp_path / "a.mp4", FailureClass.ENVIRONMENT),
        ({"ffmpeg": "/bin/false"}, tmp_path / "a.mp4", FailureClass.ENVIRONMENT),
        ({"ffmpeg": FFMPEG}, tmp_path / "no" / "a.mp4", FailureClass.STORAGE),
    ]
    for options, out, failure_class in cases:
        with pytest.raises(Failed) as caught:
            coding.encode(flows, out, timeout=60, **options)
        assert caught.value.failure_class is failure_class
    with pytest.raises(Failed, match=r"not solved and encoded within 0\.2 s") as caught:
        coding.encode(itertools.repeat(flows[0]), tmp_path / "a.mp4", ffmpeg=FFMPEG, timeout=0.2)
    assert caught.value.failure_class is FailureClass.TOO_LARGE  # it is the clip's, and stops no job
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"<html>no</html>", b"\0" * 5000])
def test_what_is_no_flow_is_corrupt(data):
    with pytest.raises(Failed) as caught:
        coding.decode(data)
    assert caught.value.failure_class is FailureClass.CORRUPT


def test_a_cut_off_file_is_corrupt_or_short(video):
    data = video.read_bytes()
    with pytest.raises((Failed, IndexError)):
        coding.decode(data[: len(data) // 2], range(40))
