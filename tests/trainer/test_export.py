"""Promises of export: one program of all models, equal to ours at any batch and length, with its classes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import small_network
import torch
from every_network import FRAMES

from trainer import checkpoint as checkpoints
from trainer import export, networks, stream_models
from trainer.__main__ import main


def pictures(clips: int, frames: int, channels: int) -> torch.Tensor:
    return (
        torch.rand(clips, channels, frames, 32, 32, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    )


def loaded(path: Path) -> tuple:
    """The program in a .pt2 and what stands beside it."""
    extra = {export.METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra[export.METADATA])


def test_both_models_are_one_program_for_any_batch_and_length(tmp_path, capsys):
    both = small_network.checkpoint(tmp_path / "both.pt", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    assert main(["export", str(both), "--output", str(tmp_path / "m.pt2"), "--json"]) == 0
    said = capsys.readouterr()
    assert "rgb (batch, 3, time, 32, 32), flow (batch, 2, time, 32, 32)" in said.err
    program, metadata = loaded(tmp_path / "m.pt2")
    assert metadata == json.loads(said.out)
    assert metadata["classes"] == list(small_network.CLASSES)
    assert metadata["networks"] == {"rgb": "small", "flow": "small"}
    built = stream_models.restore(checkpoints.load(both))
    for clips, frames in ((1, 9), (3, 4), (2, 31)):
        seen = pictures(clips, frames, 3), pictures(clips, frames, 2)
        with torch.no_grad():
            want = built["rgb"]((seen[0], None)) + built["flow"]((None, seen[1]))
            torch.testing.assert_close(program(*seen), want, rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.pt", "m.pt2"]


def test_one_stream_alone_where_it_is_asked_for(tmp_path):
    both = small_network.checkpoint(tmp_path / "both.pt")
    made = export.export(((str(both), "flow"),), tmp_path / "flow.pt2")
    assert [i["name"] for i in made.metadata["inputs"]] == ["flow"]
    assert "20 pixels" in made.metadata["inputs"][0]["values"]
    program, _ = loaded(made.path)
    seen = pictures(1, 12, 2)
    with torch.no_grad():
        want = stream_models.restore(checkpoints.load(both), "flow")["flow"]((None, seen))
        torch.testing.assert_close(program(seen), want, rtol=1e-4, atol=1e-5)


def test_what_comes_out_different_is_not_kept(tmp_path, monkeypatch, capsys):
    rgb = small_network.checkpoint(tmp_path / "rgb.pt", streams=("rgb",))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert main(["export", str(rgb), "--output", str(tmp_path / "m.pt2")]) == 1
    assert "of their scale off" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["rgb.pt"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{rgb}", "--output", "m.pth"], 2, "name it .pt2 or .onnx"),
        (["{rgb}", "--output", "m.pt2", "--stream", "flow"], 2, "trained on rgb, not on flow"),
        (["absent", "--output", "m.pt2"], 2, "absent is not there"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(tmp_path, monkeypatch, capsys, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    rgb = small_network.checkpoint(tmp_path / "rgb.pt", streams=("rgb",))
    assert main(["export", *(a.format(rgb=rgb) for a in arguments)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    rgb = small_network.checkpoint(tmp_path / "rgb.pt", streams=("rgb",))
    assert main(["export", str(rgb), "--output", str(tmp_path / "m.onnx")]) == 2
    assert "pip install '.[onnx]'" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_says_the_same_and_what_it_is(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    both = small_network.checkpoint(tmp_path / "both.pt")
    made = export.export(((str(both), None),), tmp_path / "m.onnx")
    session = runtime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape[0], i.shape[2]) for i in session.get_inputs()] == [
        ("rgb", "batch", "time"),
        ("flow", "batch", "time"),
    ]
    assert json.loads(session.get_modelmeta().custom_metadata_map[export.METADATA]) == made.metadata
    built = stream_models.restore(checkpoints.load(both))
    seen = pictures(3, 21, 3), pictures(3, 21, 2)
    (found,) = session.run(None, {"rgb": seen[0].numpy(), "flow": seen[1].numpy()})
    with torch.no_grad():
        want = built["rgb"]((seen[0], None)) + built["flow"]((None, seen[1]))
    torch.testing.assert_close(torch.from_numpy(found), want, rtol=1e-4, atol=1e-5)


FIXED = ("convnet-lstm",)
"""Networks whose number of frames torch.export fixes: an LSTM's steps are written out one by one."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i3d", "two-stream", "slowfast-4x16-r50", *FIXED])
def test_networks_are_exported_for_any_length_where_they_can_be(name, tmp_path):
    streams = ("both",) if networks.entry(name).streams == ("both",) else ("rgb",)
    small = {"frames": FRAMES.get(name, 8), "short_side": 48, "crop": 48}
    path = small_network.checkpoint(tmp_path / "c.pt", name, streams, **small)
    made = export.export(((str(path), None),), tmp_path / "m.pt2")
    assert (made.fixed is not None) == (name in FIXED)
    assert made.metadata["inputs"][0]["shape"][2] == (small["frames"] if name in FIXED else "time")
