"""A data set prepared from frozen copies: tar and tar.gz give the same bytes; what is taken out stays out."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from archives import member, noise, write
from small_runs import make_list, make_videos, pipeline, published_bytes

from pipeline import dataset


def make_archives(folder: Path, videos: Path, packed: bool) -> Path:
    folder.mkdir()
    end = "tar.gz" if packed else "tar"
    files = {name: (videos / f"{name}.mp4").read_bytes() for name in ("one", "two", "three")}
    write(
        folder / f"part_0.{end}",
        member("k400/train/aaaaaaaaaa1_0_2.mp4", files["one"]),
        member("k400/train/bbbbbbbbbb2_000000_000002.mp4", files["two"]),
        member("k400/train/extra______.mp4", b"nobody asked"),
        member("k400/train/lengthylen8_0_2.mp4", files["three"]),
    )
    write(
        folder / f"part_1.{end}",
        member("corrupted00_0_10.mp4", b"\0\0\0\x18ftypmp42" + noise(5000)),
        member("linklinkli0_0_10.mp4", type=tarfile.SYMTYPE, linkname="<b>"),
    )
    return folder


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """The same clips published from plain and from packed archives."""
    folder = tmp_path_factory.mktemp("archives")
    videos = make_videos(folder / "videos", ["one", "two"], seconds=2)
    make_videos(videos, ["three"], seconds=4)
    rows = ["aaaaaaaaaa1,0,2", "bbbbbbbbbb2,0,2", "missingmis3,0,10", "corrupted00,0,10", "linklinkli0,0,10"]
    rows = [f"walk,{row},train,0" for row in (*rows, "lengthylen8,0,2")]
    listed, found = make_list(folder / "list.csv", rows), {}
    for kind in ("plain", "packed"):
        archives = make_archives(folder / kind, videos, kind == "packed")
        found[kind] = root = folder / f"root-{kind}"
        source = f"archive:{archives}/*.tar{'.gz' if kind == 'packed' else ''}"
        done = pipeline(
            "prepare", "--manifest", listed, "--output", root, "--source", source, "--flow", "none"
        )
        assert done.returncode == 0, done.stderr
    return found


def test_plain_and_packed_archives_give_the_same_bytes(roots):
    assert published_bytes(roots["plain"]) == published_bytes(roots["packed"])
    outcomes = dataset.open(roots["packed"]).outcomes().to_pylist()
    assert [(o["youtube_id"], o["failure_class"] or o["outcome"]) for o in outcomes] == [
        ("aaaaaaaaaa1", "ready"),
        ("bbbbbbbbbb2", "ready"),
        ("missingmis3", "missing"),
        ("corrupted00", "corrupt"),
        ("linklinkli0", "unsafe"),
        ("lengthylen8", "ready"),
    ]
    assert pipeline("verify", roots["packed"]).returncode == 0
    assert not list(roots["packed"].glob("work/archive/*.videos"))


def test_the_report_holds_the_lists_against_the_archives(roots):
    for root in roots.values():
        found = json.loads((root / "report" / "archives.json").read_text())
        assert (found["clips"], found["found"]) == (6, 5)
        assert found["missing"] == {"count": 1, "examples": ["missingmis3_000000_000010"]}
        assert found["extra"] == {"count": 1, "examples": ["extra______"]}
        assert found["corrupt"] == {"count": 1, "examples": ["corrupted00_000000_000010"]}
        (refused,) = found["refused"]["examples"]
        assert (refused["name"], refused["reason"]) == ("linklinkli0_0_10.mp4", "is a link")
        (other,) = found["wrong_length"]["examples"]
        assert other == {"key": "lengthylen8_000000_000002", "seconds": 4.0, "wanted": 2.0}
    done = pipeline("report", roots["packed"])
    assert done.returncode == 0, done.stderr
    page = (roots["packed"] / "report" / "index.html").read_text()
    for text in ("wrong length", "extra______", "is a link", "4 s instead of 2 s"):
        assert text in page


def test_a_removed_clip_does_not_come_back_by_a_later_prepare(roots, tmp_path):
    from pipeline.maintenance import remove

    folder = roots["plain"].parent
    root = shutil.copytree(roots["plain"], tmp_path / "root")
    remove.remove(root, ["aaaaaaaaaa1", "missingmis3"], "reason")
    late = make_videos(tmp_path / "late", ["missingmis3", "corrupted00", "aaaaaaaaaa1"], seconds=11)
    again = ("--manifest", folder / "list.csv", "--output", root, "--flow", "none", "--retry", "all")
    done = pipeline("prepare", *again, "--source", f"dir:{late}")
    assert done.returncode == 0, done.stderr
    opened = dataset.open(root)
    assert opened.generations == ["00000", "00001"]
    rows = opened.index("train").to_pylist()
    present = [row["youtube_id"] for row in rows if not row["removed"]]
    assert sorted(present) == ["bbbbbbbbbb2", "corrupted00", "lengthylen8"]
    gone = [o["youtube_id"] for o in opened.outcomes().to_pylist() if o["excluded_for"] == "removed"]
    assert gone == ["aaaaaaaaaa1", "missingmis3"]
    assert pipeline("verify", root).returncode == 0
    copy = tmp_path / "compact"
    done = pipeline("prepare", *again, "--source", f"dir:{late}", "--compact", copy)
    assert done.returncode == 0, done.stderr
    assert sorted(dataset.open(copy).index("train")["youtube_id"].to_pylist()) == [
        "bbbbbbbbbb2",
        "corrupted00",
        "lengthylen8",
    ]
    assert (copy / "removed.jsonl").read_bytes() == (root / "removed.jsonl").read_bytes()
    assert pipeline("verify", copy).returncode == 0


def test_a_takedown_deletes_the_data_read_from_archives(roots, tmp_path):
    from pipeline.maintenance import remove

    root = shutil.copytree(roots["packed"], tmp_path / "root")
    (root / "work" / "archive" / "0123.videos").write_bytes(b"laid out by a run that was killed")
    remove.remove(root, ["aaaaaaaaaa1"], "reason")
    assert list(root.glob("work/archive/*")) == []
