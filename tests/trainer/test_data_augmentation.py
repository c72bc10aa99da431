"""Views: which frames and which square a network sees."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from trainer.data.augmentation import evaluation_views, random_view, resized
from trainer.data.batches import Input
from trainer.data.sampler import AUGMENTATION, KeyedRandom


def cuts_of(input: Input, frames: int, count: int = 400, size: tuple[int, int] = (340, 256)):
    return [random_view(input, frames, *size, KeyedRandom(AUGMENTATION, 0, 0, row)) for row in range(count)]


def test_windows_start_at_every_frame_that_leaves_room_and_nowhere_else():
    cuts = cuts_of(Input(frames=64), 74)
    assert {c.frames[0] for c in cuts} == set(range(11))
    assert all(c.frames == tuple(range(c.frames[0], c.frames[0] + 64)) for c in cuts)


def test_a_clip_shorter_than_the_window_is_looped():
    (cut,) = cuts_of(Input(frames=64), 25, 1)
    assert cut.frames == tuple(i % 25 for i in range(64))
    (cut,) = cuts_of(Input(frames=4, stride=10), 25, 1)
    assert cut.frames == (0, 10, 20, 5)


def test_a_stride_widens_the_window():
    cuts = cuts_of(Input(frames=4, stride=3), 12)
    assert {c.frames for c in cuts} == {(s, s + 3, s + 6, s + 9) for s in range(3)}


def test_crops_reach_every_corner_and_stay_inside():
    cuts = cuts_of(Input(short_side=256, crop=250), 64, 3000)
    assert {c.top for c in cuts} == set(range(7))
    assert {c.left for c in cuts} == set(range(340 - 250 + 1))


def test_half_of_the_clips_are_mirrored_and_none_where_flip_is_off():
    mirrored = [c.mirrored for c in cuts_of(Input(flip=True), 64, 1000)]
    assert 420 < sum(mirrored) < 580
    still = cuts_of(Input(flip=False), 64, 1000)
    assert not any(c.mirrored for c in still)
    assert [c.left for c in still] == [c.left for c in cuts_of(Input(flip=True), 64, 1000)]


def test_colours_are_drawn_after_all_else_once_a_clip_and_only_where_they_are_set():
    plain = Input(frames=4, scales=(1.0, 0.8))
    coloured = replace(plain, colour_jitter=(0.2, 0.1, 0.3, 0.05))
    cuts = cuts_of(coloured, 30)
    assert [replace(cut, colour=None) for cut in cuts] == cuts_of(plain, 30)
    drawn = np.array([astuple(cut.colour) for cut in cuts])
    low, high = np.array([0.8, 0.9, 0.7, -0.05]), np.array([1.2, 1.1, 1.3, 0.05])
    assert ((low <= drawn) & (drawn <= high)).all()
    spread = (high - low) / 20
    assert (drawn.min(0) < low + spread).all()
    assert (drawn.max(0) > high - spread).all()


@pytest.mark.parametrize("jitter", [(0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.6), (-0.1, 0, 0, 0)])
def test_colours_that_cannot_be_drawn_are_refused(jitter):
    with pytest.raises(ValueError, match="colour_jitter is four numbers"):
        Input(colour_jitter=jitter)


def test_the_resize_keeps_the_aspect():
    assert resized(340, 256, 256) == (340, 256)
    assert resized(340, 256, 64) == (85, 64)
    assert resized(256, 454, 112) == (112, 199)


def test_evaluation_takes_the_whole_clip_and_its_centre():
    (cut,) = evaluation_views(Input(crop=224), 250, 340, 256, None, 1, 1)
    assert cut.frames == tuple(range(250))
    assert (cut.top, cut.left, cut.mirrored) == (16, 58, False)


def test_views_spread_evenly_over_the_clip_and_its_long_side():
    cuts = evaluation_views(Input(crop=256), 250, 340, 256, 64, 3, 3)
    assert [c.frames[0] for c in cuts] == [0, 0, 0, 93, 93, 93, 186, 186, 186]
    assert [(c.top, c.left) for c in cuts[:3]] == [(0, 0), (0, 42), (0, 84)]
    upright = evaluation_views(Input(crop=256), 250, 256, 340, 64, 1, 3)
    assert [(c.top, c.left) for c in upright] == [(0, 0), (42, 0), (84, 0)]
    assert upright[0].frames[0] == 93


def test_an_input_that_no_clip_satisfies_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="smaller --crop"):
        Input(short_side=112, crop=224)
    with pytest.raises(ValueError, match="choose rgb, flow or both"):
        Input(stream="depth")


# Segments, corners, scales


def test_snippets_start_anywhere_in_their_part_of_the_clip():
    cuts = cuts_of(Input(frames=8, segments=8), 250, 2000)
    for part in range(8):
        seen = {c.frames[part] for c in cuts}
        assert seen == set(range(int(part * 31.25), int((part + 1) * 31.25 - 1e-9) + 1))
    starts = {c.frames[0] for c in cuts}
    assert len({c.frames for c in cuts}) == 2000
    assert len(starts) > 25
    (cut,) = cuts_of(Input(frames=15, segments=3), 64, 1)
    assert all(
        b - a == 1 for i, (a, b) in enumerate(zip(cut.frames, cut.frames[1:], strict=False)) if i % 5 < 4
    )


def test_snippets_of_a_test_are_those_of_the_published_code():
    """offsets = int(tick / 2 + tick * x) with tick = (frames - length + 1) / segments."""
    for frames, segments, length in ((250, 8, 1), (250, 25, 5), (79, 3, 5), (30, 25, 5)):
        input = Input(frames=segments * length, segments=segments)
        (cut,) = evaluation_views(input, frames, 340, 256, None, 1, 1)
        tick = (frames - length + 1) / segments
        assert list(cut.frames[::length]) == [int(tick / 2 + tick * x) for x in range(segments)]
    (cut,) = evaluation_views(Input(frames=15, segments=3, test_segments=25), 250, 340, 256, None, 1, 1)
    assert len(cut.frames) == 125
    two = evaluation_views(Input(frames=8, segments=8), 80, 340, 256, 8, 2, 1)
    assert [c.frames[:2] for c in two] == [(2, 12), (7, 17)]
    (short,) = evaluation_views(Input(frames=15, segments=3), 3, 340, 256, None, 1, 1)
    assert short.frames == (0, 1, 2, 0, 1) * 3


def test_scaled_crops_are_the_shares_of_the_short_side_at_corners_and_centre():
    input = Input(frames=1, short_side=112, crop=112, scales=(1.0, 0.5), corners=True)
    cuts = cuts_of(input, 10)
    assert {(c.width, c.height) for c in cuts} == {(149, 112), (298, 224)}
    places = {(c.top, c.left) for c in cuts if c.height == 224}
    assert places == {(0, 0), (0, 186), (112, 0), (112, 186), (56, 93)}
    assert all(0 <= c.top <= c.height - 112 and 0 <= c.left <= c.width - 112 for c in cuts)


def test_distorted_crops_differ_by_at_most_one_scale():
    scales = (1.0, 0.875, 0.75, 0.66)
    cuts = cuts_of(Input(frames=1, short_side=256, crop=224, scales=scales, distortion=1), 10)
    found = {(round(340 * 224 / c.width), round(256 * 224 / c.height)) for c in cuts}
    sides = [round(256 * s) for s in scales]
    wanted = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    near = {(min(sides, key=lambda s: abs(s - a)), min(sides, key=lambda s: abs(s - b))) for a, b in found}
    assert near == wanted


def test_inputs_of_segments_or_scales_that_cannot_be_are_refused():
    for wrong, said in (
        ({"frames": 16, "segments": 3}, "snippets of equal length"),
        ({"test_segments": 3}, "goes with segments"),
        ({"scales": [1.5]}, "at most 1"),
    ):
        with pytest.raises(ValueError, match=said):
            Input(**wrong)
