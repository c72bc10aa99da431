"""Promises of the reader of TensorFlow's checkpoints: what was written, or one sentence."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tensorflow_bundle
import torch

from trainer.weights import WeightsError, bundle

RNG = np.random.default_rng(0)
VARIABLES = {
    "RGB/net/conv_3d/w": RNG.standard_normal((2, 3, 3, 2, 5)).astype("float32"),
    "RGB/net/conv_3d/b": np.arange(7, dtype="float32"),
    "RGB/net/batch_norm/moving_mean": RNG.standard_normal((1, 1, 1, 1, 4)).astype("float32"),
    "RGB/net/batch_norm/beta": np.float32([0.5, -1.5]),
    "global_step": np.int64(115_000),
    "nothing": np.zeros((0, 3), "float32"),
    "wide": RNG.standard_normal((300, 129)),
}


def same(found, variables) -> bool:
    return found.keys() == variables.keys() and all(
        np.array_equal(found[name].numpy(), value) and found[name].numpy().dtype == value.dtype
        for name, value in variables.items()
    )


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize(("block_size", "restarts"), [(262_144, 16), (80, 2), (1, 1)])
def test_what_was_written_is_read(tmp_path, shards, block_size, restarts):
    tensorflow_bundle.write(tmp_path / "model.ckpt", VARIABLES, shards, block_size, restarts)
    found = bundle.read(tmp_path / "model.ckpt")
    assert same(found, VARIABLES)
    assert list(found) == sorted(VARIABLES)
    assert found["RGB/net/conv_3d/b"][3] == 3
    assert found["global_step"] == 115_000


def test_a_checkpoint_is_found_by_any_of_its_names(tmp_path):
    tensorflow_bundle.write(tmp_path / "model.ckpt", VARIABLES, 2)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt"\n')
    (tmp_path / "model.ckpt.meta").write_bytes(b"\n\x05graph")
    ends = ("", ".index", ".meta", ".data-00001-of-00002")
    for name in ("", "checkpoint", *(f"model.ckpt{end}" for end in ends)):
        assert same(bundle.read(tmp_path / name), VARIABLES)
    tensorflow_bundle.write(tmp_path / "other", VARIABLES)
    with pytest.raises(WeightsError, match="holds 2 checkpoints: name one"):
        bundle.read(tmp_path)
    with pytest.raises(WeightsError, match="holds 2 checkpoints: name one"):
        bundle.read(tmp_path / "checkpoint")
    with pytest.raises(WeightsError, match="no TensorFlow checkpoint"):
        bundle.read(tmp_path / "none")
    assert bundle.prefix(tmp_path / "none") is None


def test_the_checksum_is_castagnolis():
    for text, known in ((b"", 0), (b"a", 0xC1D04330), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)):
        # RFC 3720, section B.4, and LevelDB's crc32c_test.cc
        assert bundle.masked_crc(text) == ((known >> 15 | known << 17) + 0xA282EAD8) & 0xFFFFFFFF
    for size in (0, 3, 4, 5, 16_383, 16_384, 16_385, 50_001, 131_072):
        data = RNG.bytes(size)
        assert bundle.masked_crc(data) == tensorflow_bundle.checksum(data)


def refused(path) -> str:
    with pytest.raises(WeightsError) as caught:
        bundle.read(path)
    said = str(caught.value)
    assert "\n" not in said
    assert path.name in said
    return said


@pytest.mark.parametrize("file", ["index", "data-00000-of-00002", "data-00001-of-00002"])
def test_a_flipped_bit_anywhere_is_one_sentence(tmp_path, file):
    variables = {name: value.ravel()[:30] for name, value in VARIABLES.items()}
    tensorflow_bundle.write(tmp_path / "model.ckpt", variables, 2, 200)
    path = tmp_path / f"model.ckpt.{file}"
    data = path.read_bytes()
    for place in sorted({*range(0, len(data), 3), *range(max(0, len(data) - 80), len(data))}):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        refused(tmp_path / "model.ckpt")


@pytest.mark.parametrize("file", ["index", "data-00000-of-00002", "data-00001-of-00002"])
def test_a_file_that_is_cut_longer_or_absent_is_one_sentence(tmp_path, file):
    tensorflow_bundle.write(tmp_path / "model.ckpt", VARIABLES, 2, 200)
    path = tmp_path / f"model.ckpt.{file}"
    data = path.read_bytes()
    for size in {0, 1, 47, 48, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:size])
        refused(tmp_path / "model.ckpt")
    path.write_bytes(data + b"\0")
    refused(tmp_path / "model.ckpt")
    if file != "index":
        path.unlink()
        assert "cannot be read (No such file" in refused(tmp_path / "model.ckpt")


def entry(dimensions: tuple[int, ...] = (0,), **changed: int) -> bytes:
    """A BundleEntryProto of no element, with other values."""
    values = {"type": 1, "shard": 0, "offset": 0, "size": 0, **changed}
    names = {"type": 1, "shard": 3, "offset": 4, "size": 5, "slices": 7}
    out = b"".join(tensorflow_bundle.number(names[k], v) for k, v in values.items() if k in names)
    shape = b"".join(tensorflow_bundle.message(2, tensorflow_bundle.number(1, size)) for size in dimensions)
    empty = struct.pack("<I", tensorflow_bundle.checksum(b""))
    return out + tensorflow_bundle.message(2, shape) + tensorflow_bundle.varint(6 << 3 | 5) + empty


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (entry(size=1 << 60, dimensions=(1 << 58,)), "does not hold z where it should"),
        (entry(offset=1 << 62), "does not hold z where it should"),
        (entry(dimensions=(1 << 63,)), "is no torch.float32"),
        (entry(dimensions=((1 << 64) - 1,)), "is no torch.float32"),
        (entry(dimensions=(0, 1 << 65)), "is no torch.float32"),
        (entry(dimensions=(0, *[1 << 31] * 3)), "is no torch.float32"),
        (entry(type=7), "no number"),
        (entry(type=99), "no number"),
        (entry(shard=1), "in shard 1 of 1"),
        (entry(shard=1 << 63), "in shard"),
        (entry(slices=1), "partitioned"),
        (b"\xff" * 12, "no end"),
        (b"\x12\x7f", "cut short"),
        (b"\x0b", "not understood"),
    ],
)
def test_an_entry_that_promises_what_is_not_there_is_one_sentence(tmp_path, row, said):
    """With checksums that are right, as who means harm would write them."""
    tensorflow_bundle.write(tmp_path / "model.ckpt", {"a": np.float32([1, 2])}, extra=[(b"z", row)])
    assert said in refused(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no header"),
        ([(b"a", entry())], "no header"),
        ([(b"", tensorflow_bundle.number(1, 1 << 40))], "names 1099511627776 shards"),
        ([(b"", b"")], "names 0 shards"),
        ([(b"", tensorflow_bundle.number(1, 1) + tensorflow_bundle.number(2, 1))], "big-endian"),
        ([(b"", tensorflow_bundle.number(1, 1)), (b"b", entry()), (b"a", entry())], "not in order"),
        ([(b"", tensorflow_bundle.number(1, 1)), (b"\xff\xfe", entry())], "damaged or no index"),
        ([(b"", tensorflow_bundle.number(1, 1)), (b"a" * 2000, entry())], "longer than a variable's"),
        ([(b"", b"\x08\x01"), *((b"%06d" % i, b"") for i in range(100_000))], "more variables"),
        ([(b"", b"\x08\x01"), (b"a", tensorflow_bundle.message(2, b"\x12\x00" * 20))], "20 dimensions"),
    ],
)
def test_an_index_that_is_none_is_one_sentence(tmp_path, rows, said):
    (tmp_path / "model.ckpt.index").write_bytes(tensorflow_bundle.table(rows))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"")
    assert said in refused(tmp_path / "model.ckpt")


def test_a_block_that_lies_about_its_rows_is_one_sentence(tmp_path):
    def of(contents: bytes) -> bytes:
        out = bytearray()
        first = tensorflow_bundle._append(out, contents)
        meta = tensorflow_bundle._append(out, tensorflow_bundle.block([], 1))
        footer = meta + tensorflow_bundle._append(out, tensorflow_bundle.block([(b"z", first)], 1))
        return bytes(out + footer + bytes(40 - len(footer)) + struct.pack("<Q", 0xDB4775248B80FB57))

    restarts = struct.pack("<II", 0, 1)
    for contents in (
        struct.pack("<I", 0xFFFFFFFF),
        b"\x05\x01\x01ab" + restarts,  # shares five bytes with no key
        b"\x00\x01\xff\xff\xff\xff\x0fab" + restarts,
        b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + restarts,
        b"\x00\x01" + restarts,
    ):
        (tmp_path / "model.ckpt.index").write_bytes(of(contents))
        assert "damaged or no index" in refused(tmp_path / "model.ckpt")


def test_reading_keeps_type_and_owns_its_memory(tmp_path):
    tensorflow_bundle.write(tmp_path / "model.ckpt", {"a": np.float16([1, 2])})
    found = bundle.read(tmp_path / "model.ckpt")["a"]
    assert found.dtype == torch.float16
    found += 1
    assert bundle.read(tmp_path / "model.ckpt")["a"].tolist() == [1, 2]
