"""The list made of class folders: each video once, by a plain name that its source finds again."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import small_runs

from pipeline.__main__ import main
from pipeline.keys import id_of
from pipeline.lists import manifest
from pipeline.lists.manifest import Clip, ManifestError
from pipeline.sources import FetchOptions, Video, class_folders, parse

ODD = "AdvancedBakingTips!(HD)&more_" + "x" * 60


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """As UCF-101 and HMDB-51 are: CLASS/VIDEO, some names no plain ones."""
    folder = tmp_path_factory.mktemp("folders") / "ucf"
    small_runs.make_videos(folder / "Archery", ["v_Archery_g01_c01", "v_Archery_g01_c02"], 1.2)
    small_runs.make_videos(folder / "brush_hair", [ODD], 1.6)
    (folder / "brush_hair" / "broken.avi").write_bytes(b"no video")
    (folder / "brush_hair" / "notes.txt").write_text("")
    (folder / "readme.txt").write_text("")
    return folder


def test_every_video_is_a_row_with_its_length_and_its_folder_as_label(published, tmp_path, capsys):
    assert main(["list", str(published), "--output", str(tmp_path / "list.csv")]) == 0
    assert "4 videos" in capsys.readouterr().out
    rows = manifest.read(tmp_path / "list.csv").to_pylist()
    assert [r["error"] for r in rows] == [None] * 4
    assert [(r["youtube_id"], r["label"]) for r in rows] == [
        ("v_Archery_g01_c01", "Archery"),
        ("v_Archery_g01_c02", "Archery"),
        (id_of(ODD), "brush_hair"),
        ("broken", "brush_hair"),
    ]
    assert rows[0]["time_end"] == pytest.approx(1.2, abs=0.05)
    assert {r["split"] for r in rows} == {"train"}


def test_videos_behind_links_are_listed_as_they_are_found(published, tmp_path):
    (tmp_path / "links" / "Archery").mkdir(parents=True)
    (tmp_path / "links" / "Archery" / "part").symlink_to(published / "Archery")
    (tmp_path / "links" / "brush_hair").symlink_to(published / "brush_hair")
    assert class_folders.write(tmp_path / "links", tmp_path / "list.csv") == 4


def test_unreadable_folders_are_skipped(published, tmp_path, monkeypatch):
    listed = os.scandir

    def scandir(path="."):
        if os.path.basename(path) in ("closed", "locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    for label in ("Archery", "brush_hair"):
        shutil.copytree(published / label, tmp_path / "videos" / label)
    (tmp_path / "videos" / "Archery" / "closed").mkdir()
    (tmp_path / "videos" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert class_folders.write(tmp_path / "videos", tmp_path / "list.csv") == 4


def test_the_source_finds_each_by_its_id(published, tmp_path):
    class_folders.write(published, tmp_path / "list.csv")
    source = parse(f"dir:{published}")
    for row in manifest.read(tmp_path / "list.csv").to_pylist():
        clip = Clip("list.csv", row["row"], row["youtube_id"], 0.0, row["time_end"], row["label"], "train")
        fetched = source.fetch(Video(clip.youtube_id, (clip,)), tmp_path, FetchOptions())
        path = fetched.pieces[clip.key].path
        assert id_of(path.stem) == row["youtube_id"]
        assert path.parent.name == row["label"]


def test_an_id_is_the_name_where_that_is_plain_and_else_tells_names_apart():
    assert id_of("v_Archery_g01_c01") == "v_Archery_g01_c01"
    odd = {id_of(name) for name in (ODD, ODD + "y", "a!b", "a#b", "a b", "ä", "", "x" * 65)}
    assert len(odd) == 8
    assert all(manifest._NAME.fullmatch(name) for name in odd)


def test_a_folder_without_class_folders_is_refused_in_a_sentence(published, tmp_path, capsys):
    for folder in (tmp_path / "none", published / "Archery"):
        assert main(["list", str(folder), "--output", str(tmp_path / "list.csv")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    twice = published.parent / "twice"
    for label in ("a", "b"):
        (twice / label).mkdir(parents=True)
        (twice / label / "same.avi").write_bytes(b"")
    with pytest.raises(ManifestError, match="have one name"):
        class_folders.write(twice, tmp_path / "list.csv")
