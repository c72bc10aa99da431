"""Promises of features: the windows of the contract, the same from anywhere, in any batch, after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_network
import tiny_dataset
import torch
from every_network import FAMILIES, FRAMES
from small_runs import make_videos

from demo.site import Site
from pipeline.flow import FlowCoding, coding, tvl1_clip
from pipeline.media import clip
from pipeline.media.recipe import EncodeRecipe
from trainer import checkpoint as checkpoints
from trainer import ensemble, features, frame_stream, networks, stream_models
from trainer.__main__ import main
from trainer.data.batches import Input
from trainer.frame_stream import numbers, pieces, windows

RGB = {"rgb": Input(stream="rgb", frames=9, short_side=40, crop=32)}
BOTH = {**RGB, "flow": Input(stream="flow", frames=9, short_side=40, crop=32)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three of two seconds, 50 frames each at 25 a second, the third behind a link; and a hidden file."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), ["one", "two", "three"], seconds=2)
    (folder / "inner").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    (folder / "three.mp4").rename(folder / "inner" / "three.mp4")
    (folder / ".hidden.mp4").write_bytes((folder / "one.mp4").read_bytes())
    return folder


@pytest.fixture(scope="module")
def rgb_only(tmp_path_factory) -> Path:
    return small_network.checkpoint(tmp_path_factory.mktemp("c") / "rgb.pt", streams=("rgb",))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    return small_network.checkpoint(tmp_path_factory.mktemp("c") / "both.pt")


def counted(frames: int):
    """Frames that show their own number."""
    for number in range(frames):
        yield {"rgb": np.full((3, 2, 2), number, np.uint8)}


@pytest.mark.parametrize("frames", [1, 15, 16, 23, 24, 25, 100])
@pytest.mark.parametrize(("length", "every"), [(16, 8), (16, 4), (5, 9)])
def test_as_many_windows_as_fit_and_at_least_one(frames, length, every):
    found = [w["rgb"][0, :, 0, 0].tolist() for w in windows(counted(frames), length, every, RGB)]
    starts = [i * every for i in range(max(0, (frames - length) // every) + 1)]
    assert found == [[min(start + i, frames - 1) for i in range(length)] for start in starts]


def test_pieces_leave_no_rest_that_is_too_short():
    lengths = [[len(p) for p in pieces(counted(n), 10, 3)] for n in (1, 10, 12, 13, 20, 22, 23)]
    assert lengths == [[1], [10], [12], [10, 3], [10, 10], [10, 12], [10, 10, 3]]


def test_a_network_sees_what_evaluation_shows_it():
    assert numbers(Input(frames=4, stride=3, short_side=224), 10) == (0, 3, 6, 9)
    snippets = Input(frames=6, segments=3, test_segments=5, short_side=224)
    assert numbers(snippets, 50) == (4, 5, 14, 15, 24, 25, 34, 35, 44, 45)


def test_a_raw_video_is_the_prepared_clip_and_its_flow_but_for_the_coding(tmp_path, videos):
    source = videos / "one.mp4"
    info = clip.probe(source)
    cut = clip.cut(
        source, 0, info.end, EncodeRecipe(), tmp_path / "a.mp4", ffmpeg=clip.ffmpeg_binary(), timeout=60
    )
    flow = tvl1_clip(clip.gray(cut.planes))
    flow = np.concatenate([flow, flow[-1:]])[: cut.frames]
    coding.encode(flow, tmp_path / "f.mp4", FlowCoding(), ffmpeg=clip.ffmpeg_binary(), timeout=60)
    members = {"rgb": (tmp_path / "a.mp4").read_bytes(), "flow": (tmp_path / "f.mp4").read_bytes()}
    raw = frame_stream.of_file(source, BOTH)
    prepared = frame_stream.of_sample(members, range(cut.frames), (cut.width, cut.height), 25, BOTH)
    assert raw.scale == prepared.scale
    one, two = list(raw.frames), list(prepared.frames)
    assert len(one) == len(two) == 50
    assert all(np.array_equal(a["rgb"], b["rgb"]) for a, b in zip(one, two, strict=True))
    apart = np.stack([a["flow"].astype(float) - b["flow"] for a, b in zip(one, two, strict=True)]) * 20 / 127
    assert np.abs(apart).mean() < 0.1  # pixels


def extract(checkpoint: Path, output: Path, *inputs: object, **job) -> features.Outcome:
    named = ((str(checkpoint), None),)
    return features.extract(features.FeaturesOptions(named, tuple(map(str, inputs)), str(output), **job))


def test_rows_are_the_models_features_of_each_window_rgb_before_flow(videos, both, tmp_path):
    assert extract(both, tmp_path, videos / "one.mp4").written == 1
    found, times = np.load(tmp_path / "one.npy"), np.load(tmp_path / "one.times.npy")
    assert (found.shape, found.dtype) == ((5, 64), np.float32)
    assert (times.dtype, times.tolist()) == (np.float64, [0.32, 0.64, 0.96, 1.28, 1.6])
    built = stream_models.restore(checkpoints.load(both))
    frames = list(frame_stream.of_file(videos / "one.mp4", BOTH).frames)
    scale = frame_stream.of_file(videos / "one.mp4", BOTH).scale
    for row, start in zip(found, range(0, 40, 8), strict=True):
        rgb = np.stack([f["rgb"] for f in frames[start : start + 16]], axis=1) / 127.5 - 1
        flow = np.stack([f["flow"] for f in frames[start : start + 16]], axis=1) - 128.0
        flow = np.clip(flow * np.array(scale)[:, None, None, None] / 127, -1, 1)
        seen = tuple(torch.from_numpy(x[None].astype(np.float32)) for x in (rgb, flow))
        with torch.no_grad():
            want = torch.cat([model.features(seen) for model in built.values()], dim=1)[0].numpy()
        np.testing.assert_allclose(row, want, rtol=1e-4, atol=1e-5)


def test_a_video_shorter_than_a_window_has_one_row_of_its_last_frame_repeated(both, tmp_path):
    for name, seconds in (("frame", 0.04), ("short", 0.4)):
        make_videos(tmp_path / "in", [name], seconds)
    call = ["features", str(tmp_path / "in"), "--rgb", str(both), "--flow", str(both)]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    loaded = ensemble.load(((str(both), None),))
    for name, frames in (("frame", 1), ("short", 10)):
        shown = frame_stream.of_file(tmp_path / "in" / f"{name}.mp4", loaded.stream_inputs)
        kept = list(shown.frames)
        assert len(kept) == frames
        padded = frame_stream.assembled([*kept, *[kept[-1]] * (16 - frames)], loaded.stream_inputs)
        scale = np.full((1, 2), shown.scale, np.float32)
        rows = loaded.features([padded], scale, torch.device("cpu"), "fp32")
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{name}.npy"), rows, atol=1e-5)
        assert np.load(tmp_path / "out" / f"{name}.times.npy").tolist() == [0.32]


def test_a_file_does_not_depend_on_batch_workers_or_company(videos, rgb_only, tmp_path):
    extract(rgb_only, tmp_path / "alone", videos / "two.mp4", batch_size=1, workers=1)
    outcome = extract(rgb_only, tmp_path / "together", videos, batch_size=7, workers=3)
    assert (outcome.written, outcome.kept, outcome.failed) == (3, 0, {})
    alone, together = (np.load(tmp_path / name / "two.npy") for name in ("alone", "together"))
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert np.load(tmp_path / "together" / "inner" / "three.npy").shape == (5, 32)


def test_a_published_data_set_gives_its_clips_by_split(both, tmp_path):
    root = tiny_dataset.publish(tmp_path / "root", {"train": 3, "val": 2}, frames=(30, 12))
    assert extract(both, tmp_path / "out", root, window=9, stride=5).written == 5
    found = {
        str(p.relative_to(tmp_path / "out")): np.load(p) for p in (tmp_path / "out").rglob("*-*[0-9].npy")
    }
    assert {name: rows.shape for name, rows in found.items()} == {
        "train/train0-000.npy": (5, 64),
        "train/train0-001.npy": (1, 64),
        "train/train0-002.npy": (5, 64),
        "val/val0-000.npy": (5, 64),
        "val/val0-001.npy": (1, 64),
    }


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(videos, rgb_only, tmp_path, capsys):
    call = ["features", str(videos), "--rgb", str(rgb_only), "--output", str(tmp_path)]
    assert main(call) == 0
    first = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*.npy")}
    assert len(first) == 6
    (tmp_path / "two.npy").unlink()
    capsys.readouterr()
    assert main(call) == 0
    assert "1 written, 2 there before, 0 failed" in capsys.readouterr().err
    again = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*.npy")}
    assert again.keys() == first.keys()
    assert {p.name for p in first if first[p][0] != again[p][0]} == {"two.npy", "two.times.npy"}
    assert all(first[p][1] == again[p][1] for p in first)
    assert main([*call, "--stride", "4"]) == 2
    assert "features of another stride" in capsys.readouterr().err
    settings = json.loads((tmp_path / "features.json").read_text())
    assert (settings["window"], settings["stride"], settings["rate"]) == (16, 8, 25)
    settings["towers"][0]["input"] = {"frames": 16}  # as it once stood there
    (tmp_path / "features.json").write_text(json.dumps(settings))
    assert main(call) == 0
    assert settings["towers"][0]["stream"] == "rgb"


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_file_and_the_next_one_ends_it(videos, rgb_only, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(8):
        (many / f"{number}.mp4").symlink_to(videos / "one.mp4")
    launch = [sys.executable, small_network.__file__, "features", str(many), "--rgb", str(rgb_only)]
    output = tmp_path / "out"
    process = subprocess.Popen([*launch, "--output", str(output), "--workers", "1"], start_new_session=True)
    while not list(output.glob("*.npy")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = [p for p in output.glob("?.npy") if np.load(p).shape == (5, 32)]
    assert len(done) == len(list(output.glob("?.npy")))
    outcome = extract(rgb_only, output, many)
    assert outcome.kept == len(done)
    assert outcome.written + outcome.kept == 8
    assert len({p.read_bytes() for p in output.glob("?.npy")}) == 1


def test_inputs_that_fail_are_listed_with_their_reason_and_the_others_are_done(
    videos, rgb_only, tmp_path, capsys
):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "good.mp4").symlink_to(videos / "one.mp4")
    (mixed / "page.mp4").write_text("<html>")
    (mixed / "cut.mp4").write_bytes((videos / "two.mp4").read_bytes()[:20_000])
    (mixed / "notes.txt").write_text("no video")
    with Site(videos, {}) as site:
        call = ["features", str(mixed), f"{site.url}/two.mp4", f"{site.url}/gone.mp4", "--rgb", str(rgb_only)]
        assert main([*call, "--output", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().err
        assert main([*call, "--output", str(tmp_path / "out"), "--strict"]) == 1
    assert main(["features", str(mixed / "page.mp4"), *call[-2:], "--output", str(tmp_path / "none")]) == 1
    assert "2 written, 0 there before, 3 failed" in said
    lines = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    reasons = {Path(line["input"]).name: line["reason"] for line in lines}
    assert reasons.keys() == {"page.mp4", "cut.mp4", "gone.mp4"}
    assert "no video file" in reasons["page.mp4"]
    assert "404" in reasons["gone.mp4"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*[!s].npy")) == ["good.npy", "two.npy"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{videos}"], 2, "data/checkpoints"),
        (["{videos}", "--flow", "{rgb}"], 2, "trained on rgb, not on flow"),
        (["{videos}", "--rgb", "{rgb}", "--window", "0"], 2, "--window must be at least 1"),
        (["{videos}/one.mp4", "{videos}", "--rgb", "{rgb}"], 2, "would both be written to one.npy"),
        (["absent", "--rgb", "{rgb}"], 2, "absent is not there"),
        (["{empty}", "--rgb", "{rgb}"], 2, "holds no video"),
        (["{root}", "--checkpoint", "{bound}"], 2, "stores flow up to 20.0 pixels"),
        (["{videos}", "--rgb", "{rgb}", "--flow", "{slow}"], 2, "frames a second"),
        (["{videos}", "--rgb", "{tsn}", "--window", "4"], 2, "snippets of 5 frames, not 4): give --window"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(
    videos, rgb_only, tmp_path, capsys, arguments, code, said
):
    places = {"videos": videos, "rgb": rgb_only, "empty": tmp_path / "empty", "root": tmp_path / "root"}
    places["empty"].mkdir()
    text = " ".join(arguments)
    if "{root}" in text:
        tiny_dataset.publish(places["root"], {"train": 1}, frames=(12,))
    if "{bound}" in text:
        places["bound"] = small_network.checkpoint(tmp_path / "bound.pt", flow_bound=16.0)
    if "{slow}" in text:
        places["slow"] = small_network.checkpoint(tmp_path / "slow.pt", streams=("flow",), rate=12)
    if "{tsn}" in text:
        places["tsn"] = small_network.checkpoint(tmp_path / "tsn.pt", "tsn-bninception", ("rgb",), frames=15)
    call = [argument.format(**places) for argument in arguments]
    assert main(["features", *call, "--output", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


MEASURE = """
import resource, sys
import small_network
from trainer.__main__ import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_video(both, tmp_path):
    peaks = []
    for seconds in (4, 150):
        video = tmp_path / f"{seconds}.mp4"
        source = f"color=gray:size=320x256:rate=25:duration={seconds}"
        encode = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(video)]
        subprocess.run(
            [clip.ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", source, *encode], check=True
        )
        call = ["features", str(video), "--checkpoint", str(both), "--output", str(tmp_path / "out")]
        paths = [str(Path(small_network.__file__).parent), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *call],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=True,
        )
        code, peak = map(int, done.stdout.split())
        assert code == 0
        peaks.append(peak)
    assert np.load(tmp_path / "out" / "150.npy").shape == ((150 * 25 - 16) // 8 + 1, 64)
    assert peaks[1] - peaks[0] < 50  # MiB; the planes alone would take 290 more


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_features_of_a_window(name, tmp_path):
    entry = networks.entry(name)
    streams = ("both",) if entry.streams[0] == "both" and not entry.separate_streams else ("rgb",)
    small = {"frames": FRAMES.get(name, 8), "short_side": 48, "crop": 48}
    path = small_network.checkpoint(tmp_path / "c.pt", name, streams, **small)
    loaded = ensemble.load([(str(path), None)])
    assert loaded.refusal(loaded.span) is None
    random = np.random.default_rng(0)
    frames = [
        {"rgb": random.integers(0, 255, (3, 48, 48), np.uint8)}
        | {"flow": random.integers(100, 150, (2, 48, 48), np.uint8)}
        for _ in range(loaded.span + 1)
    ]
    clips = list(windows(iter(frames), loaded.span, 1, loaded.stream_inputs))
    scale = np.ones((2, 2), np.float32)
    found = loaded.features(clips, scale, torch.device("cpu"), "fp32")
    each = [loaded.features([c], scale[:1], torch.device("cpu"), "fp32")[0] for c in clips]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, each, rtol=1e-3, atol=1e-4 * np.abs(found).max())
