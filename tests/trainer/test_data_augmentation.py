"""Cuts: which frames and which square a network sees."""

from __future__ import annotations

import pytest

from trainer.data.augmentation import evaluation_cuts, random_cut, resized
from trainer.data.batch import Input
from trainer.data.order import AUGMENTATION, Draws


def cuts_of(input: Input, frames: int, count: int = 400, size: tuple[int, int] = (340, 256)):
    return [random_cut(input, frames, *size, Draws(AUGMENTATION, 0, 0, row)) for row in range(count)]


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


def test_the_resize_keeps_the_aspect():
    assert resized(340, 256, 256) == (340, 256)
    assert resized(340, 256, 64) == (85, 64)
    assert resized(256, 454, 112) == (112, 199)


def test_evaluation_takes_the_whole_clip_and_its_centre():
    (cut,) = evaluation_cuts(Input(crop=224), 250, 340, 256, None, 1, 1)
    assert cut.frames == tuple(range(250))
    assert (cut.top, cut.left, cut.mirrored) == (16, 58, False)


def test_views_spread_evenly_over_the_clip_and_its_long_side():
    cuts = evaluation_cuts(Input(crop=256), 250, 340, 256, 64, 3, 3)
    assert [c.frames[0] for c in cuts] == [0, 0, 0, 93, 93, 93, 186, 186, 186]
    assert [(c.top, c.left) for c in cuts[:3]] == [(0, 0), (0, 42), (0, 84)]
    upright = evaluation_cuts(Input(crop=256), 250, 256, 340, 64, 1, 3)
    assert [(c.top, c.left) for c in upright] == [(0, 0), (42, 0), (84, 0)]
    assert upright[0].frames[0] == 93


def test_an_input_that_no_clip_satisfies_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="smaller --crop"):
        Input(short_side=112, crop=224)
    with pytest.raises(ValueError, match="choose rgb, flow or both"):
        Input(stream="depth")
