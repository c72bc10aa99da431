"""Pixels: the right frames, colours and vectors, whatever the window, resize, crop and mirroring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset
from av.video.reformatter import VideoReformatter

from trainer.data.augmentation import Colour, View
from trainer.data.decoding import Undecodable, decode_flow, decode_rgb, pictures, recolour, rgb_planes

W, H, T = 96, 64, 60


def numbered(frame: int) -> np.ndarray:
    """A picture that is its number: 6 bits as blocks of black and white along the top, grey below."""
    picture = np.full((H, W, 3), 90, np.uint8)
    for bit in range(6):
        picture[:32, 16 * bit : 16 * bit + 16] = 235 if frame >> bit & 1 else 20
    return picture


def number_of(picture: np.ndarray) -> int:
    """(3, H, W) -> the number that `numbered` wrote."""
    bits = picture[1, 4:28].reshape(24, 6, -1).mean((0, 2)) > 128
    return int(sum(1 << bit for bit, on in enumerate(bits) if on))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    tiny_dataset.encode([numbered(t) for t in range(T)], path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def flow_clip(tmp_path_factory) -> bytes:
    """u = 8 left and 0 right, v = -4 above and 12 below."""
    flow = np.zeros((H, W, 2), np.float32)
    flow[:, : W // 2, 0] = 8
    flow[: H // 2, :, 1], flow[H // 2 :, :, 1] = -4, 12
    path = tmp_path_factory.mktemp("flow") / "flow.mp4"
    tiny_dataset.encode_flow([flow] * 20, path)
    return path.read_bytes()


def whole(frames, **changes) -> View:
    """A cut with the full width is not square: these tests take the left H x H unless told otherwise."""
    return replace(View(tuple(frames), H, W, 0, 0, H), **changes)


def rgb(data: bytes, cut: View) -> np.ndarray:
    out = np.zeros((1, 3, len(cut.frames), cut.side, cut.side), np.uint8)
    decode_rgb(data, [cut], (W, H), 25, out)
    return out[0]


def flow(data: bytes, cut: View) -> np.ndarray:
    """Pixels, float (2, T, side, side), put together as `Batch.inputs` does."""
    out = np.zeros((1, 2, len(cut.frames), cut.side, cut.side), np.uint8)
    (scale,) = decode_flow(data, [cut], (W, H), 25, out)
    return (out[0].astype(np.float64) - 128) * 20 / 127 * np.array(scale)[:, None, None, None]


def both_halves(data: bytes, frames) -> list[int]:
    """The frames' numbers, read from two squares that cover the picture."""
    left, right = whole(frames), whole(frames, left=W - H)
    out = np.zeros((2, 3, len(left.frames), H, H), np.uint8)
    decode_rgb(data, [left, right], (W, H), 25, out)
    pictures = np.concatenate([out[0], out[1][..., 2 * H - W :]], axis=-1)
    return [number_of(pictures[:, t]) for t in range(len(left.frames))]


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 31, 40, 44])
def test_a_window_holds_exactly_its_frames(clip, start):
    frames = range(start, start + 16)
    assert both_halves(clip, frames) == list(frames)


def test_looped_strided_and_single_windows_hold_exactly_their_frames(clip):
    for frames in ([i % T for i in range(150)], range(3, 60, 7), [59], [0], [20, 5, 40]):
        assert both_halves(clip, frames) == list(frames)


def test_a_crop_is_that_square_of_the_whole_picture(clip):
    cut = whole([5, 9], top=10, left=33, side=40)
    full_right = rgb(clip, whole([5, 9], left=W - H))
    assert np.array_equal(rgb(clip, cut), full_right[:, :, 10:50, 1:41])


def test_mirroring_mirrors_every_frame(clip):
    plain, mirrored = rgb(clip, whole([5, 9])), rgb(clip, whole([5, 9], mirrored=True))
    assert np.array_equal(mirrored, plain[..., ::-1])


@pytest.mark.parametrize(("matrix", "tag"), [("bt601", None), ("bt601", "smpte170m"), ("bt709", "bt709")])
def test_colours_come_back_as_they_were_filmed(tmp_path, matrix, tag):
    colours = np.array([[200, 30, 30], [30, 180, 40], [40, 50, 210], [220, 210, 40]], np.uint8)
    picture = colours.repeat(24, 0)[None].repeat(H, 0)
    tiny_dataset.encode([picture] * 3, tmp_path / "c.mp4", matrix, tag)
    data = (tmp_path / "c.mp4").read_bytes()
    for patch, left in enumerate((0, 16)):
        found = rgb(data, whole([1], left=left))[:, 0, 20, 8 - left + 24 * patch]
        assert np.abs(found.astype(int) - colours[patch]).max() <= 3, (found, colours[patch])


def test_flow_comes_back_in_pixels_and_zero_is_exact(flow_clip):
    found = flow(flow_clip, whole(range(20)))
    assert np.abs(found[0, :, :, :40] - 8).max() < 0.4
    assert np.abs(found[1, :, :28] + 4).max() < 0.4
    assert np.abs(found[1, :, 36:] - 12).max() < 0.4
    right = flow(flow_clip, whole(range(20), left=W - H))
    assert (right[0, :, :, 40:] == 0).all()


def test_flow_shrinks_with_the_picture(flow_clip):
    found = flow(flow_clip, whole(range(3), height=H // 2, width=W // 2, side=H // 2))
    assert np.abs(found[0, :, :, :16] - 4).max() < 0.4
    assert np.abs(found[1, :, :12] + 2).max() < 0.4  # no row of u in it
    assert np.abs(found[0, :, -1, :16] - 4).max() < 0.4  # no row of v in it


def test_a_mirrored_flow_points_the_other_way(flow_clip):
    plain, mirrored = flow(flow_clip, whole([4])), flow(flow_clip, whole([4], mirrored=True))
    assert np.array_equal(mirrored[0], -plain[0, ..., ::-1])
    assert np.array_equal(mirrored[1], plain[1, ..., ::-1])


def test_resizing_agrees_with_an_antialiased_bilinear_resize(clip):
    import torch

    full = np.concatenate([rgb(clip, whole([7])), rgb(clip, whole([7], left=W - H))[..., 2 * H - W :]], -1)
    ours = rgb(clip, whole([7], height=32, width=48, side=32)).astype(float)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(full[:, 0]).float()[None], size=(32, 48), mode="bilinear", antialias=True
    )[0, :, :, :32].numpy()
    assert np.abs(ours[:, 0] - theirs).mean() < 1.0


def test_damage_is_noticed_and_not_trained_on(clip):
    """One flipped bit anywhere in the pictures: refused, or without any effect on a pixel."""
    rng = np.random.default_rng(0)
    whole_clip = whole(range(T))
    good = rgb(clip, whole_clip)
    begin, end = clip.index(b"mdat") + 4, len(clip)
    refused = 0
    for _ in range(25):
        damaged = bytearray(clip)
        damaged[rng.integers(begin, end)] ^= 1 << rng.integers(8)
        try:
            assert np.array_equal(rgb(bytes(damaged), whole_clip), good)
        except Undecodable:
            refused += 1
    assert refused >= 10


@pytest.mark.parametrize(
    "spoil", [lambda d: b"", lambda d: d[:300], lambda d: d[: len(d) * 2 // 3], lambda d: bytes(len(d))]
)
def test_a_file_cut_short_or_emptied_is_undecodable(clip, spoil):
    with pytest.raises(Undecodable):
        rgb(spoil(clip), whole(range(T)))


def test_a_clip_of_another_size_or_length_than_the_index_says_is_undecodable(clip):
    out = np.zeros((1, 3, 1, 32, 32), np.uint8)
    with pytest.raises(Undecodable, match="96x64, not 48x64"):
        decode_rgb(clip, [View((0,), 64, 48, 0, 0, 32)], (48, 64), 25, out)
    with pytest.raises(Undecodable, match="frame 60 is not in it"):
        rgb(clip, whole([59, 60]))


def test_real_footage_decodes_to_what_a_plain_decode_gives(real_clips: Path):
    import av

    data = (real_clips / "test_340x256_30fps.mp4").read_bytes()
    with av.open(str(real_clips / "test_340x256_30fps.mp4")) as container:
        plain = [
            f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(40), strict=False)
        ]
    out = np.zeros((1, 3, 10, 256, 256), np.uint8)
    decode_rgb(data, [View(tuple(range(30, 40)), 256, 340, 0, 42, 256)], (340, 256), 30, out)
    expected = np.stack(plain[30:])[:, :, 42:298].transpose(3, 0, 1, 2).astype(int)
    assert np.abs(out[0] - expected).mean() < 2.5  # swscale's quick path truncates: one level darker


def test_a_square_has_the_bytes_that_it_has_in_the_whole_picture(tmp_path):
    """Only the part round it is brought to RGB; fine colour, even and odd places, edges."""
    pictures_of = [np.random.default_rng(t).integers(0, 255, (H, W, 3), np.uint8) for t in range(3)]
    tiny_dataset.encode(pictures_of, tmp_path / "clip.mp4")
    data = (tmp_path / "clip.mp4").read_bytes()
    reformatter = VideoReformatter()
    full = {
        n: rgb_planes(f, View((0,), H, W, 0, 0, H), reformatter)
        for n, f in pictures(data, {0, 1, 2}, (W, H), 25)
    }
    for side in (9, 24, 31, 64):
        for top, left in ((0, 0), (1, 1), (13, 18), (H - side, W - side)):
            if top + side <= H and left + side <= W:
                found = rgb(data, whole([2, 0], width=W, top=top, left=left, side=side))
                for place, number in enumerate((2, 0)):
                    wanted = [p[top : top + side, left : left + side] for p in full[number]]
                    assert np.array_equal(found[:, place], np.stack(wanted))


# Colours


def coloured(**changes: float) -> Colour:
    return replace(Colour(1.0, 1.0, 1.0, 0.0), **changes)


def textured(low: int = 60, high: int = 180) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (3, 5, 24, 32), np.uint8)


def test_brightness_multiplies_and_contrast_spreads_about_the_mean_grey():
    before = textured()
    after = before.copy()
    recolour(after, coloured(brightness=1.2))
    np.testing.assert_allclose(after, 1.2 * before.astype(float), atol=0.501)
    grey = np.array([0.299, 0.587, 0.114]) @ before.reshape(3, -1).mean(1)
    after = before.copy()
    recolour(after, coloured(contrast=0.7))
    np.testing.assert_allclose(after, 0.7 * before + 0.3 * grey, atol=0.501)
    bright = textured(200, 255)
    recolour(bright, coloured(brightness=1.5))
    assert bright.min() == bright.max() == 255


def test_saturation_and_hue_leave_grey_as_it_is_and_turn_colours_round_it():
    greys = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 1, 256)).copy()
    recolour(greys, coloured(saturation=1.4, hue=0.3))
    assert (greys == np.arange(256)).all()
    before = textured()
    after = before.copy()
    recolour(after, coloured(saturation=0.0))
    assert (after[0] == after[1]).all()
    assert (after[0] == after[2]).all()
    red = np.array([150, 100, 100], np.uint8).reshape(3, 1, 1, 1)
    turned = red.copy()
    recolour(turned, coloured(hue=1 / 3))
    assert turned.argmax() != red.argmax()
    back = turned.copy()
    recolour(back, coloured(hue=-1 / 3))
    np.testing.assert_allclose(back, red.astype(float), atol=2)
    unchanged = before.copy()
    recolour(unchanged, coloured())
    assert (unchanged == before).all()


def test_a_clips_frames_all_change_alike_and_a_cut_without_colours_is_as_it_was(clip):
    frames = [3, 4, 4, 59]
    plain, colour = rgb(clip, whole(frames)), coloured(brightness=0.8, contrast=1.2, saturation=1.3, hue=0.04)
    changed = rgb(clip, whole(frames, colour=colour))
    assert (changed[:, 1] == changed[:, 2]).all()
    wanted = plain.copy()
    recolour(wanted, colour)
    assert (changed == wanted).all()
    seen: dict[tuple, tuple] = {}  # a colour becomes the same colour in every frame
    for before, after in zip(plain.reshape(3, -1).T.tolist(), changed.reshape(3, -1).T.tolist(), strict=True):
        assert seen.setdefault(tuple(before), tuple(after)) == tuple(after)
