"""The published lists are read as they are; every bad row says what is wrong and where."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lists import manifest

HEADER = b"label,youtube_id,time_start,time_end,split,is_cc\n"
PUBLISHED = Path(__file__).parents[2] / "manifests"


def rows_of(folder: Path, content: bytes, name: str = "list.csv") -> list[dict]:
    path = folder / name
    path.write_bytes(content)
    return manifest.read(path).to_pylist()


def errors_of(folder: Path, *records: bytes) -> list[str | None]:
    rows = rows_of(folder, HEADER + b"\n".join(records) + b"\n")
    path = folder / "list.csv"
    for row in rows:
        if row["error"]:
            assert row["error"].startswith(f"{path}:{row['row']}: ")
            assert row["split"] == "unknown"
            assert row["youtube_id"] is row["time_start"] is row["time_end"] is row["label"] is None
    return [row["error"] and row["error"].split(": ", 1)[1] for row in rows]


def test_the_published_kinetics_400_validation_list_is_read_whole():
    table = manifest.read(PUBLISHED / "kinetics-400_val.csv")
    assert table.num_rows == table["error"].null_count == 19_906
    assert set(table["split"].to_pylist()) == {"val"}
    assert sorted(set(table["label"].to_pylist())) == list(
        manifest.read_classes(PUBLISHED / "kinetics-400_label_map.txt")
    )
    assert table.schema == manifest.SCHEMA


CLIP = "-3B32lodo2M,59,69"


@pytest.mark.parametrize(
    ("header", "record", "split"),
    [
        ("label,youtube_id,time_start,time_end,split,is_cc", f'"air drumming",{CLIP},train,0', "train"),
        ("label,youtube_id,time_start,time_end,split", f"air drumming,{CLIP},validate", "val"),
        ("youtube_id,time_start,time_end,split,label", f"{CLIP},validation,air drumming", "val"),
        ("youtube_id,time_start,time_end,split,label", "-3B32lodo2M,59.0,69.00,val,air drumming", "val"),
        ("\ufefflabel,youtube_id,time_start,time_end,split\r", f"air drumming,{CLIP},TEST\r", "test"),
        ("label,youtube_id,time_start,time_end,split", f'" air drumming ", {CLIP} , test ', "test"),
        ('"Label","YouTube_ID", time_start ,"time_end","split"', f'"air drumming",{CLIP},"val"', "val"),
        ("label-name,video-id,start-time,end-time,split", f"air drumming,{CLIP},val", "val"),
        (
            "YouTube Identifier,Start time,End time,Class label,subset",
            f"{CLIP},air drumming,training",
            "train",
        ),
    ],
)
def test_every_published_header_and_spelling_gives_the_same_clip(tmp_path, header, record, split):
    (row,) = rows_of(tmp_path, f"{header}\n{record}\n".encode())
    clip = {"youtube_id": "-3B32lodo2M", "time_start": 59.0, "time_end": 69.0, "label": "air drumming"}
    assert row == {"manifest": str(tmp_path / "list.csv"), "row": 2, **clip, "split": split, "error": None}


def test_a_list_without_labels_has_none(tmp_path):
    (row,) = rows_of(tmp_path, f"youtube_id,time_start,time_end,split\n{CLIP},test\n".encode())
    assert (row["label"], row["split"], row["error"]) == (None, "test", None)


def test_without_a_split_column_the_files_name_decides_and_nothing_else(tmp_path):
    content = b"label,youtube_id,time_start,time_end\nx,abc,0,10\n"
    assert rows_of(tmp_path, content, "kinetics-700_validate.csv")[0]["split"] == "val"
    assert rows_of(tmp_path, content, "Train.csv")[0]["split"] == "train"
    for name in ("clips.csv", "train_val.csv", "latest.csv"):
        with pytest.raises(manifest.ManifestError, match="split"):
            rows_of(tmp_path, content, name)
    mixed = b"youtube_id,time_start,time_end,split\na,0,10,\nb,0,10,test\n"
    assert [row["split"] for row in rows_of(tmp_path, mixed, "val.csv")] == ["val", "test"]
    assert [row["split"] for row in rows_of(tmp_path, mixed, "any.csv")] == ["unknown", "test"]


def test_row_numbers_are_physical_lines(tmp_path):
    content = (
        b"note,youtube_id,time_start,time_end,split\r\n"
        b'"two\r\nlines",a,0,10,val\r\n'
        b"\r\n"
        b"x,b,0,10,val\r\n"
        b'"three\n\nlines",,0,10,val\n'
        b"x,d,0,10,val"
    )
    assert [(r["row"], r["youtube_id"]) for r in rows_of(tmp_path, content)] == [
        (2, "a"), (5, "b"), (6, None), (9, "d"),
    ]  # fmt: skip


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path):
    found = errors_of(
        tmp_path,
        b'"abseiling,aaa,0,10,val,0',
        *[b'"air drumming",b%d,0,10,val,0' % i for i in range(40)],
        b'air "guitar",ccc,0,10,val,0',
        b'"x" y,ddd,0,10,val,0',
        b'"unclosed,eee,0,10,val,0',
        *[b"plain,f%d,0,10,val,0" % i for i in range(40)],
        b'"meets a partner,ggg,0,10,val,0',
        b'x,hhh",0,10,val,0',
        b"x,iii,0,10,val,0",
    )
    assert [i for i, error in enumerate(found) if error] == [0, 42, 43, 84, 85]
    assert "quote" in found[0]
    assert "quote" in found[43]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"x,abc,0,10,val", "5 fields"),
        (b"x,abc,0,10,val,0,1", "7 fields"),
        (b"x,abc,zero,10,val,0", "no number"),
        (b"x,abc,nan,10,val,0", "no number"),
        (b"x,abc,0,inf,val,0", "no number"),
        (b"x,abc,0,1e999,val,0", "beyond"),
        (b"x,abc,,10,val,0", "no number"),
        (b"x,abc,1_0,20,val,0", "no number"),
        (b"x,abc,0x10,20,val,0", "no number"),
        ("x,abc,٣,20,val,0".encode(), "no number"),
        (b"x,abc,-1,10,val,0", "negative"),
        (b"x,abc,10,10,val,0", "not after"),
        (b"x,abc,20,10,val,0", "not after"),
        (b"x,abc,0,86400,val,0", "long"),
        (b"x,abc,1000000,1000010,val,0", "beyond"),
        (b"x,,0,10,val,0", "plain name"),
        (b"x,../../etc/passwd,0,10,val,0", "plain name"),
        (b"x,a.b,0,10,val,0", "plain name"),
        (b"x,a/b,0,10,val,0", "plain name"),
        (b"x,a b,0,10,val,0", "plain name"),
        (b"x,a\0b,0,10,val,0", "plain name"),
        ("x,é,0,10,val,0".encode(), "plain name"),
        (b"x," + b"a" * 65 + b",0,10,val,0", "plain name"),
        (b"x," + b"a" * 1_000_000 + b",0,10,val,0", "characters"),
        (b'"' + b"a" * 1_000_000 + b'",abc,0,10,val,0', "characters"),
        (b"x" * 501 + b",abc,0,10,val,0", "501 characters"),
        (b'x,"a\nb",0,10,val,0', "plain name"),
        (b'"x\ny",abc,0,10,val,0', "line break"),
        (b"x\0y,abc,0,10,val,0", "control character"),
        (b"x\xffy,abc,0,10,val,0", "UTF-8"),
        (b"x,abc,0,10,dev,0", "train, val, test"),
        (b"x,abc,0,10,,0", "train, val, test"),
    ],
)
def test_a_malformed_row_says_where_and_what_and_its_neighbours_stay(tmp_path, record, words):
    before, error, after = errors_of(tmp_path, b"x,before,0,10,val,0", record, b"x,after,0,10,val,0")
    assert before is after is None
    assert words in error
    assert error.endswith(".")
    assert len(error) < 200


def test_labels_of_any_script_and_ids_that_begin_with_a_dash_are_taken_as_they_are(tmp_path):
    labels = ["跳舞", "رقص", "नृत्य‌", "passing American football (in game)", "rock, paper", 'the "x"', "🤸‍♀️"]
    quoted = ['"' + label.replace('"', '""') + '"' for label in labels]
    content = (
        HEADER + "".join(f"{label},-_{i},0.5,10.25,train,1\n" for i, label in enumerate(quoted)).encode()
    )
    rows = rows_of(tmp_path, content)
    assert [row["label"] for row in rows] == [label.strip() for label in labels]
    assert {row["error"] for row in rows} == {None}
    assert (rows[0]["youtube_id"], rows[0]["time_start"], rows[0]["time_end"]) == ("-_0", 0.5, 10.25)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\x89PNG\r\n\x1a\n\0\0",
        HEADER.decode().encode("utf-16"),
        b'{"a": 1}\n',
        b"a" * 200_000,
        b"label,time_start,time_end,split\n",
        b"youtube_id;time_start;time_end;split\n",
        b"youtube_id,youtube_id,time_start,time_end,split\n",
        b'"youtube_id" x,time_start,time_end,split\n',
        b"-3B32lodo2M,59,69,train\n",
    ],
)
def test_a_file_that_is_no_manifest_stops_with_one_sentence(tmp_path, content):
    with pytest.raises(manifest.ManifestError) as caught:
        rows_of(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "list.csv"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_an_unreadable_list_stops_with_one_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(manifest.ManifestError, match="cannot be read"):
            manifest.read(path)
    with pytest.raises(manifest.ManifestError, match="no such file"):
        manifest.expand([str(tmp_path / "*.csv")])


def test_a_list_of_no_rows_is_a_list(tmp_path):
    assert rows_of(tmp_path, HEADER) == []


def test_globs_are_sorted_and_a_file_comes_once(tmp_path):
    for name in ("b.csv", "a.csv", "[1].csv"):
        (tmp_path / name).touch()
    names = manifest.expand([str(tmp_path / "b.csv"), str(tmp_path / "*.csv"), str(tmp_path / "[1].csv")])
    assert [Path(name).name for name in names] == ["b.csv", "[1].csv", "a.csv"]


def test_a_key_rounds_half_to_even_and_has_six_digits():
    assert manifest.key_of("-a_b", 0.5, 10.5) == "-a_b_000000_000010"
    assert manifest.Clip("m", 2, "x", 1.5, 999_999.0, None, "val").key == "x_000002_999999"


def test_a_label_map_is_one_class_a_line_each_once(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffb\r\n a \r\n\r\n跳舞\r\n".encode())
    assert manifest.read_classes(path) == ("b", "a", "跳舞")
    for content in (b"a\nb\na\n", b"\n", b"\xff\n"):
        path.write_bytes(content)
        with pytest.raises(manifest.ManifestError):
            manifest.read_classes(path)


FRAGMENTS = st.sampled_from(
    [b",", b"\n", b"\r\n", b"\r", b'"', b'""', b"abc", b"0", b"10", b"val", b"train", b"\0", b"\xff", b"nan",
     b"-1", b"1e9", b"label", b" ", b"\xef\xbb\xbf", "跳".encode(), b"\xe2\x80\xa8", b"x,abc,0,10,val,0\n"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([HEADER, b"youtube_id,time_start,time_end,split\n", b""]),
    st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=60).map(b"".join)),
)
def test_any_bytes_give_rows_or_a_manifest_error(tmp_path_factory, header, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(header + content)
    if not header:
        with contextlib.suppress(manifest.ManifestError):
            manifest.read(path)
        return
    rows = manifest.read(path).to_pylist()
    numbers = [row["row"] for row in rows]
    assert numbers == sorted(set(numbers))
    for row in rows:
        if row["error"] is None:
            clip = manifest.Clip(**{name: value for name, value in row.items() if name != "error"})
            assert 0 <= clip.time_start < clip.time_end
            assert clip.split in manifest.PRECEDENCE
            assert len(clip.key) <= 78
        else:
            assert row["error"].startswith(f"{path}:{row['row']}: ")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FRAGMENTS, FRAGMENTS), max_size=12))
def test_rows_after_any_rubbish_are_still_read(tmp_path_factory, rubbish):
    """Twenty plain lines follow: none is swallowed, but for one that a quote before it may claim."""
    path = tmp_path_factory.getbasetemp() / "tail.csv"
    tail = b"".join(b"x,tail%d,0,10,val,0\n" % i for i in range(20))
    path.write_bytes(HEADER + b"".join(a + b for a, b in rubbish).replace(b'"', b"'") + b"\n" + tail)
    ids = [row["youtube_id"] for row in manifest.read(path).to_pylist()]
    assert ids[-20:] == [f"tail{i}" for i in range(20)]
