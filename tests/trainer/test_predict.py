"""Promises of predict: what evaluation says of the same clip, as a person or a program reads it, or drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_network
import torch
from small_runs import make_videos

from demo.site import Site
from pipeline.media import clip
from pipeline.media.probe import probe
from trainer import annotation, predict, stream_models
from trainer import checkpoint as checkpoints
from trainer.__main__ import main
from trainer.data.augmentation import evaluation_views
from trainer.data.decoding import decode_rgb


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), ["one", "two"], seconds=4)


@pytest.fixture(scope="module")
def rgb(tmp_path_factory) -> Path:
    return small_network.checkpoint(tmp_path_factory.mktemp("c") / "rgb.pt", streams=("rgb",))


def lines_of(text: str) -> list[tuple[float, str]]:
    return [(float(p), name) for p, name in (line.split("\t") for line in text.splitlines() if "\t" in line)]


def test_it_is_what_evaluation_says_of_the_clip(videos, rgb, tmp_path, capsys):
    assert main(["predict", str(videos / "one.mp4"), "--rgb", str(rgb)]) == 0
    said = lines_of(capsys.readouterr().out)
    known = checkpoints.load(rgb)
    mp4 = tmp_path / "clip.mp4"
    info = probe(videos / "one.mp4")
    recipe = clip.EncodeRecipe()
    cut = clip.cut(videos / "one.mp4", 0, info.end, recipe, mp4, ffmpeg=clip.ffmpeg_binary(), timeout=60)
    size = (cut.width, cut.height)
    cuts = evaluation_views(known.input, cut.frames, *size, None, 1, 1)
    pixels = np.empty((1, 3, cut.frames, 32, 32), np.uint8)
    decode_rgb(mp4.read_bytes(), cuts, size, 25, pixels)
    with torch.no_grad():
        logits = stream_models.restore(known)["rgb"]((torch.from_numpy(pixels) / 127.5 - 1, None))[0]
    want = logits.softmax(0).sort(descending=True)
    assert [name for _, name in said] == [known.classes[i] for i in want.indices]
    np.testing.assert_allclose([p for p, _ in said], want.values, atol=6e-5)


def test_both_streams_are_added_and_json_is_for_programs(videos, tmp_path, capsys):
    both = small_network.checkpoint(tmp_path / "both.pt")
    short = make_videos(tmp_path / "short", ["a"], seconds=1) / "a.mp4"
    found = []
    for which in (["--checkpoint", both], ["--rgb", both, "--flow", both], ["--rgb", both], ["--flow", both]):
        words = ["predict", str(short), *map(str, which), "--json", "--top", "3", "--threads", "0"]
        assert main(words) == 0
        found += json.loads(capsys.readouterr().out)
    whole, named, *alone = found
    assert whole == named
    assert (whole["video"], whole["seconds"], whole["moments"]) == (str(short), 1.0, [])
    joint, rgb, flow = (
        {c["class"]: np.log(c["probability"]) for c in one["classes"]} for one in (whole, *alone)
    )
    apart = [joint[name] - rgb[name] - flow[name] for name in small_network.CLASSES]
    np.testing.assert_allclose(apart, apart[0], atol=1e-5)


@pytest.mark.parametrize("views", [(), (10, 3)])
def test_a_video_shorter_than_a_second_is_seen_with_its_last_frame_repeated(tmp_path, monkeypatch, views):
    seen = []

    def forward(network, x, plain=small_network.Small.forward):
        seen.append(x)
        return plain(network, x)

    known = small_network.checkpoint(tmp_path / "c.pt", streams=("rgb",), test_views=views)
    short = make_videos(tmp_path, ["short"], seconds=0.2) / "short.mp4"
    monkeypatch.setattr(small_network.Small, "forward", forward)
    out = tmp_path / "out.mp4"
    job = predict.PredictOptions(((str(known), None),), (str(short),), annotate=out)
    (answer,) = predict.predict(job)
    assert answer.frames == 5
    assert [span for span, _ in answer.moments] == [(0, 0.2)]
    assert seen[-1].shape[2] == (9 if views else 25 * predict.LEAST)
    assert (seen[-1][:, :, 5:] == seen[-1][:, :, 4:5]).all()
    assert len(clip.decode(out)) == 5


def test_several_videos_are_told_apart_and_one_that_fails_is_a_sentence(videos, rgb, tmp_path, capsys):
    (tmp_path / "page.mp4").write_text("<html>")
    with Site(videos, {}) as site:
        names = [str(videos / "one.mp4"), str(tmp_path / "page.mp4"), f"{site.url}/two.mp4"]
        call = ["predict", *names, "--rgb", str(rgb), "--top", "1"]
        assert main([*call, "--strict"]) == 1
        capsys.readouterr()
        assert main(call) == 0
    said = capsys.readouterr()
    heads = [line for line in said.out.splitlines() if line.startswith("==> ")]
    assert heads == [f"==> {names[0]}", f"==> {names[2]}"]
    assert len(lines_of(said.out)) == 2
    failure, count = said.err.splitlines()
    assert "page.mp4" in failure
    assert "no video file" in failure
    assert count == "1 of 3 videos failed"
    assert main(["predict", names[1], "--rgb", str(rgb)]) == 1


@pytest.mark.slow
def test_a_long_video_is_seen_in_pieces_and_its_logits_averaged(rgb, tmp_path, monkeypatch):
    video = make_videos(tmp_path, ["long"], seconds=5) / "long.mp4"

    def logits(piece: int) -> np.ndarray:
        monkeypatch.setattr(predict, "PIECE", piece)
        (answer,) = predict.predict(predict.PredictOptions(((str(rgb), None),), (str(video),)))
        assert answer.frames == 125
        values = dict(answer.classes)
        return np.log([values[name] for name in small_network.CLASSES])

    assert np.abs(logits(10) - logits(2)).max() < 0.5
    assert not np.array_equal(logits(10), logits(2))


def test_a_network_published_for_clips_of_its_length_sees_the_video_in_such_clips(
    videos, tmp_path, monkeypatch
):
    seen = []

    def forward(network, x, plain=small_network.Small.forward):
        seen.append(x.shape[2])
        return plain(network, x)

    monkeypatch.setattr(small_network.Small, "forward", forward)
    for views, lengths in (((), [100]), ((10, 3), [9] * 11)):
        known = small_network.checkpoint(tmp_path / "c.pt", streams=("rgb",), test_views=views)
        seen.clear()
        tuple(predict.predict(predict.PredictOptions(((str(known), None),), (str(videos / "one.mp4"),))))
        assert [n for n in seen if n in (9, 100)][-len(lengths) :] == lengths
        assert seen[-1] == lengths[-1]


def test_an_annotated_video_shows_the_classes_of_each_moment(videos, rgb, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    call = ["predict", str(videos / "two.mp4"), "--rgb", str(rgb), "--annotate", str(out), "--json"]
    assert main(call) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [(m["start"], m["end"]) for m in found["moments"]] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    info = probe(out)
    assert (info.width, info.height, info.duration) == (256, 340, 4.0)
    before, _ = clip.read(videos / "two.mp4")
    after = clip.decode(out)
    assert after.shape == before.shape
    changed = np.abs(after.astype(int) - before).max(axis=(0, 3)) > 60
    assert changed[-60:, :150].mean() > 0.5
    assert changed[:150].mean() < 0.01
    assert main([call[0], str(videos / "one.mp4"), *call[1:]]) == 2
    assert "one VIDEO" in capsys.readouterr().err


def test_a_label_has_room_for_any_name():
    classes = [("a name that is far longer than any picture of so few pixels is wide" * 3, 0.5), ("é ß", 1.0)]
    drawn = np.frombuffer(annotation.label((320, 240), (61.25, 3599.96), classes), np.uint8)
    drawn = drawn.reshape(240, 320, 4)
    assert not drawn[:150].any()
    assert drawn[239, 0, 3] > 100
    light = (drawn[..., :3] > 160).all(axis=2)
    assert light[-35:].any()
    assert not light[:, 235:].any()


def test_without_a_checkpoint_it_says_where_there_are_some(videos, capsys):
    assert main(["predict", str(videos / "one.mp4")]) == 2
    said = capsys.readouterr().err
    assert "github.com/google-deepmind/kinetics-i3d" in said
    assert "python -m trainer import" in said
    assert main(["predict", str(videos / "one.mp4"), "--rgb", "absent"]) == 2
    assert "absent is not there" in capsys.readouterr().err


def test_a_video_that_is_not_there_is_a_wrong_call_and_nothing_is_seen_before(videos, rgb, capsys):
    assert main(["predict", str(videos / "one.mp4"), "nope.mp4", "--rgb", str(rgb)]) == 2
    assert capsys.readouterr() == ("", "nope.mp4 is no file, address or YouTube id: name a video\n")


def test_real_footage_is_recognised_as_something(real_clips, rgb, capsys):
    assert main(["predict", str(real_clips / "ucf_320x240_mpeg4.avi"), "--rgb", str(rgb)]) == 0
    assert sum(p for p, _ in lines_of(capsys.readouterr().out)) == pytest.approx(1, abs=1e-3)
