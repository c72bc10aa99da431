"""Specifications of sources, videos in a folder, URL templates, and the addresses that may be spoken to."""

from __future__ import annotations

import errno
import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timestamped

from pipeline import sources
from pipeline.flow.recipe import FlowRecipe
from pipeline.job import media_stages, stages
from pipeline.job.settings import Job
from pipeline.job.stages import ClipResult, Task
from pipeline.lists.manifest import Clip
from pipeline.media.clip import ClipFrames, decode, encoder_version, ffmpeg_binary
from pipeline.media.clip import cut as cut_clip
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import CallError, Failed, FailureClass
from pipeline.recipe import Recipe
from pipeline.sources import FetchOptions, Piece, Video, registry, retrying
from pipeline.sources.directory import index, walk
from pipeline.sources.rate_limit import Lane, RateLimit
from pipeline.sources.recipe import FetchRecipe
from pipeline.sources.ytdlp.fetch import section
from pipeline.sources.ytdlp.network_guard import Guard, host_and_port, is_public
from pipeline.storage.work_store import WorkStore

ID = "-ab_c0123_4"


def clip(youtube_id: str = ID, start: float = 10, end: float = 20, label: str | None = "high jump") -> Clip:
    return Clip("list.csv", 2, youtube_id, float(start), float(end), label, "train")


def look(spec: str, *clips: Clip, folder: Path = Path()) -> dict:
    return retrying.fetch(
        Video(clips[0].youtube_id, clips), (sources.parse(spec),), folder, FetchOptions()
    ).pieces


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "no source"),
        ("vimeo", "no source"),
        ("ftp://host/{youtube_id}", "no source"),
        ("file:///{youtube_id}.mp4", "no source"),
        ("archive:x.tar", "matches no file"),
        ("dir:", "names no folder"),
        ("dir:/no/such/folder", "does not exist"),
        ("http://host/video.mp4", "one address for all"),
        ("http://host/{label}/{start}.mp4", "one address for all"),
        ("http://host/{name}/{key}.mp4", "not known"),
        ("http://host/{youtube_id.__class__}", "not known"),
        ("http://host/{youtube_id!r}", "not known"),
        ("http://host/{youtube_id:>99999999}", "not known"),
        ("http://host/{youtube_id", "no URL template"),
        ("http://{youtube_id}/x.mp4", "fixed host"),
        ("http://host:{youtube_id}/x.mp4", "fixed host"),
        ("http:///{youtube_id}.mp4", "fixed host"),
    ],
)
def test_a_wrong_source_is_refused_with_one_sentence(spec, says):
    with pytest.raises(CallError, match=says) as caught:
        sources.parse(spec)
    assert "\n" not in str(caught.value)


def test_a_new_source_is_one_file_and_one_line_of_the_registry(monkeypatch):
    class Shelf:
        @classmethod
        def of(cls, spec: str) -> Shelf:
            return cls()

    monkeypatch.setitem(sys.modules, "pipeline.sources.shelf", SimpleNamespace(Shelf=Shelf))
    line = ("shelf:", "shelf.Shelf", "shelf:NAME")
    monkeypatch.setattr(registry, "_SOURCES", (*registry._SOURCES, line))
    assert isinstance(sources.parse("shelf:top"), Shelf)
    with pytest.raises(CallError, match="shelf:NAME"):
        sources.parse("shelves")


def test_sources_and_options_travel_to_workers(tmp_path):
    for spec in ("youtube", "http://host/{youtube_id}.mp4", f"dir:{tmp_path}"):
        source = sources.parse(spec)
        assert pickle.loads(pickle.dumps(source)) == source
        assert source.network == (source.kind != "dir")
    assert pickle.loads(pickle.dumps(FetchOptions(ytdlp={"a": [1]}))) == FetchOptions(ytdlp={"a": [1]})


def test_options_that_this_program_decides_are_refused(tmp_path):
    for name in ("outtmpl", "download_ranges", "external_downloader_args", "cookiefile", "retries"):
        with pytest.raises(CallError, match=name):
            FetchOptions(ytdlp={name: True})
    with pytest.raises(CallError, match="does not exist"):
        FetchOptions(cookies=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    "name", [f"{ID}_000010_000020", f"{ID}_10_20", f"{ID}_10.0_20.0"], ids=["key", "plain", "decimal"]
)
def test_a_trimmed_clip_is_found_by_its_names_before_the_whole_video(tmp_path, name):
    touch(tmp_path / f"{ID}.mp4")
    path = touch(tmp_path / "some class" / f"{name}.WebM")
    touch(tmp_path / f"{ID}_000010_000021.mp4")
    pieces = look(f"dir:{tmp_path}", clip(), clip(start=10, end=15))
    assert pieces[clip().key] == Piece(path, 0.0, 10.0, "dir", trimmed=True)
    assert pieces[clip(end=15).key] == Piece(tmp_path / f"{ID}.mp4", 10.0, 15.0, "dir", trimmed=False)


def test_videos_behind_links_to_folders_are_found_and_a_circle_of_links_ends(tmp_path):
    disk = touch(tmp_path / "disk" / "train" / "class" / f"{ID}.mp4").parents[1]
    (tmp_path / "data" / "val").mkdir(parents=True)
    (tmp_path / "data" / "train").symlink_to(disk)
    (disk / "back").symlink_to(tmp_path / "data")
    (disk / "self").symlink_to("self")
    (tmp_path / "data" / "z").symlink_to(disk / "class")
    files = list(walk(str(tmp_path / "data")))
    assert files == [f"{tmp_path}/data/train/self", f"{tmp_path}/data/train/class/{ID}.mp4"]
    pieces = look(f"dir:{tmp_path}/data", clip())
    assert pieces[clip().key].path == tmp_path / "data" / "train" / "class" / f"{ID}.mp4"


@pytest.fixture
def closed(tmp_path, monkeypatch) -> Path:
    """A folder that nobody may read, in tmp_path/disk beside one that all may."""
    folder, listed = tmp_path / "disk" / "closed", os.scandir
    folder.mkdir(parents=True)
    touch(tmp_path / "disk" / "open" / f"{ID}.mp4")

    def scandir(path):
        if os.path.realpath(path) == str(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return folder


def test_an_unreadable_folder_behind_a_link_is_skipped(tmp_path, closed):
    data = touch(tmp_path / "data" / f"{ID}.mp4").parent
    (data / "a").symlink_to(closed)
    (data / "b").symlink_to(closed.parent)
    assert [*walk(str(data), strict=True)] == [f"{data}/{ID}.mp4", f"{data}/b/open/{ID}.mp4"]
    assert look(f"dir:{data}", clip())[clip().key].path == data / f"{ID}.mp4"


def test_an_unreadable_folder_is_named_with_the_remedy_even_after_a_link_to_it(tmp_path, closed):
    (tmp_path / "disk" / "a").symlink_to(closed)
    for place in (tmp_path / "disk", closed):
        failure = look(f"dir:{place}", clip())[clip().key]
        assert failure.failure_class is FailureClass.STORAGE
        remedy = "see that every worker can read it, and repeat the command"
        assert failure.reason == f"{closed} cannot be listed: permission denied; {remedy}"
    assert [*walk(str(tmp_path / "disk"))] == [f"{tmp_path}/disk/open/{ID}.mp4"]


def make(work: Path, videos: Path, wanted: Clip, flow: bool = False) -> tuple[ClipResult, WorkStore]:
    """Bring a clip to its outcome in a run over a folder of videos."""
    encoder, limit, store = encoder_version(ffmpeg_binary()), RateLimit(), WorkStore(work)
    made = FlowRecipe(encoder=encoder) if flow else None
    recipe, chosen = Recipe(FetchRecipe(), EncodeRecipe(encoder=encoder), made), (f"dir:{videos}",)
    job = Job(str(work), str(work), chosen, recipe, FetchOptions(), None, "00000", False, limit)
    task = Task(Video(wanted.youtube_id, (wanted,)), (0,), (None,))
    (result,) = stages.process(task, job, store, Lane(limit, store.storage))
    return result, store


def test_a_trimmed_clip_that_kept_its_clock_is_its_own_pictures(tmp_path):
    wanted = clip(start=5, end=8)
    path = touch(tmp_path / "videos" / f"{wanted.key}.mkv")
    source = timestamped.write(path, timestamped.constant(25, 3, start=5))
    result, store = make(tmp_path / "work", path.parent, wanted)
    assert (result.outcome, result.meta["frames"], result.meta["note"]) == ("ready", 75, None)
    assert result.meta["source"]["duration"] == 3
    mp4 = store.storage.read_bytes(result.files["mp4"]["path"])
    assert source.worst_error(decode(mp4), 5) == 0


@pytest.mark.parametrize(
    ("name", "again"),
    [("{key}.mkv", True), ("{key}.ts", False), ("{id}.mkv", False)],
    ids=["trimmed", "trimmed-broadcast", "whole"],
)
def test_a_clip_stored_with_another_time_origin_is_encoded_again(tmp_path, monkeypatch, name, again):
    wanted = clip(start=0, end=2)
    path = touch(tmp_path / "videos" / name.format(key=wanted.key, id=wanted.youtube_id))
    timestamped.write(path, timestamped.constant(25, 1.52, start=0.48))
    cuts, flows = [], []

    def cut(*given, **how) -> ClipFrames:
        cuts.append(given[4])
        return cut_clip(*given, **how | ({"trimmed": False} if len(cuts) == 1 else {}))

    def write_flow(self, cut, recipe, out, ffmpeg) -> float:
        flows.append(cut.frames)
        out.write_bytes(b"flow")
        return 0.0

    monkeypatch.setattr(media_stages.clip, "cut", cut)
    monkeypatch.setattr(media_stages.MediaStages, "write_flow", write_flow)
    _, store = make(tmp_path / "work", path.parent, wanted)
    (record,) = (tmp_path / "work" / "encode").rglob("*.json")
    old = json.loads(record.read_text())
    old.pop("moved", None)  # as versions left it that knew no other clock for trimmed files
    record.write_text(json.dumps(old))
    result, _ = make(tmp_path / "work", path.parent, wanted, flow=True)
    mp4 = store.storage.read_bytes(result.files["mp4"]["path"])
    assert [len(decode(mp4))] == flows == [result.meta["frames"]]
    assert len(cuts) == 2 + again
    later, _ = make(tmp_path / "work", path.parent, wanted)
    assert len(cuts) == 2 + again
    assert later.files["mp4"] == result.files["mp4"]


def test_times_with_fractions_are_found_as_they_are_written(tmp_path):
    path = touch(tmp_path / f"{ID}_1.5_11.25.mp4")
    wanted = clip(start=1.5, end=11.25)
    assert look(f"dir:{tmp_path}", wanted)[wanted.key] == Piece(path, 0.0, 9.75, "dir", trimmed=True)


def test_an_absent_clip_is_missing_and_other_files_are_ignored(tmp_path):
    for name in (f"{ID}.json", f"{ID}.jpg", f"{ID}", f".{ID}.mp4", f"{ID}.mp4.part", f"x{ID}.mp4"):
        touch(tmp_path / name)
    (tmp_path / f"{ID}.mkv").mkdir()
    failure = look(f"dir:{tmp_path}", clip())[clip().key]
    assert isinstance(failure, Failed)
    assert failure.failure_class is FailureClass.MISSING
    assert failure.retry_after is None


def test_the_text_of_a_manifest_never_becomes_a_path(tmp_path):
    outside = touch(tmp_path / "secret.mp4")
    touch(tmp_path / "videos" / "a.mp4")
    for name in ("../secret", str(outside.with_suffix("")), "a\0", "*", "", ".", "a/../../secret", "[as]*"):
        hostile = Clip("list.csv", 2, name, 0.0, 10.0, None, "train")
        found = sources.parse(f"dir:{tmp_path}/videos").fetch(
            Video(name, (hostile,)), tmp_path, FetchOptions()
        )
        assert isinstance(found.pieces[hostile.key], Failed), name


def test_a_glob_names_files_or_folders_and_the_same_name_is_taken_in_one_order(tmp_path):
    for part in ("b", "a"):
        for suffix in (".webm", ".mp4"):
            touch(tmp_path / part / "class" / f"{ID}{suffix}")
    assert look(f"dir:{tmp_path}", clip())[clip().key].path == tmp_path / "a/class" / f"{ID}.mp4"
    assert look(f"dir:{tmp_path}/b*", clip())[clip().key].path == tmp_path / "b/class" / f"{ID}.mp4"
    assert look(f"dir:{tmp_path}/**/*.webm", clip())[clip().key].path == tmp_path / "a/class" / f"{ID}.webm"


def test_a_folder_is_listed_once_whatever_the_number_of_clips(tmp_path, monkeypatch):
    for i in range(50):
        touch(tmp_path / f"{i % 5}" / f"video{i:06d}.mp4")
    asked = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scandir(path))
    for i in range(50):
        wanted = clip(f"video{i:06d}")
        assert isinstance(look(f"dir:{tmp_path}", wanted)[wanted.key], Piece)
    assert len(asked) == 6
    index.cache_clear()


def test_a_circle_of_links_ends(tmp_path):
    touch(tmp_path / "videos" / f"{ID}.mp4")
    (tmp_path / "videos" / "again").symlink_to(tmp_path / "videos")
    assert len(index(str(tmp_path / "videos"))) == 1


def test_a_template_is_filled_with_quoted_values():
    source = sources.parse("https://host/v/{label}/{youtube_id}_{start}_{end}.mp4?k={key}")
    odd = clip(start=1.5, end=20, label="a/b ü&?#%")
    assert source.url(odd) == f"https://host/v/a%2Fb%20%C3%BC%26%3F%23%25/{ID}_1.5_20.mp4?k={odd.key}"
    assert source.trimmed
    assert not sources.parse("https://host/{label}/{youtube_id}.mp4").trimmed
    assert sources.parse("https://host/{key}.mp4").trimmed


def test_a_section_has_room_for_the_preroll_and_one_more_frame():
    assert section(clip(start=10, end=20), FetchOptions()) == (7.0, 21.0)
    assert section(clip(start=1.2345678, end=5), FetchOptions()) == (0.0, 6.0)
    low, high = section(clip(start=10.12345, end=20.98765), FetchOptions())
    assert low <= 7.12345
    assert high >= 21.98765


def test_the_site_is_only_asked_for_what_can_be_an_id(tmp_path):
    for name in ("short", "twelve_chars", "../../etc/p", "a b c d e f", "", "https://x/y", f"{ID}&x=1"):
        wanted = Clip("list.csv", 2, name, 0.0, 10.0, None, "train")
        fetched = sources.parse("youtube").fetch(Video(name, (wanted,)), tmp_path, FetchOptions())
        assert fetched.requests == 0
        failure = fetched.pieces[wanted.key]
        assert isinstance(failure, Failed)
        assert failure.failure_class is FailureClass.MANIFEST


def test_the_next_source_is_tried_and_the_most_telling_failure_is_kept(tmp_path):
    touch(tmp_path / "one" / f"{ID}_10_20.mp4")
    touch(tmp_path / "two" / f"{ID}.mp4")
    chain = tuple(sources.parse(f"dir:{tmp_path}/{name}") for name in ("one", "two"))
    fetched = retrying.fetch(Video(ID, (clip(), clip(end=30))), chain, tmp_path, FetchOptions())
    assert [p.trimmed for p in fetched.pieces.values()] == [True, False]
    assert not fetched.whole
    chain = (sources.parse(f"dir:{tmp_path}/one"), sources.parse("youtube"))
    odd = clip("no id")
    failure = retrying.fetch(Video("no id", (odd,)), chain, tmp_path, FetchOptions()).pieces[odd.key]
    assert failure.failure_class is FailureClass.MANIFEST


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b:1::7f00:1", False),
        ("::ffff:0:127.0.0.1", False),
        ("::10.0.0.1", False),
        ("fec0::1", False),
    ],
)
def test_private_addresses_are_recognised_in_every_notation(address, public):
    assert is_public(address) is public


def test_only_the_named_host_and_port_may_be_private(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    guard = Guard()
    guard.begin(["http://127.0.0.1:8123/{youtube_id}.mp4"], None)
    guard.check_url("http://127.0.0.1:8123/other.mp4", None)
    for url in (
        "http://127.0.0.1:8124/x",
        "http://127.0.0.2:8123/x",
        "http://[::1]:8123/x",
        "http://0x7f.1/x",
    ):
        with pytest.raises(Failed) as caught:
            guard.check_url(url, None)
        assert caught.value.failure_class in (FailureClass.UNSAFE, FailureClass.NETWORK)
    for url in ("file:///etc/passwd", "ftp://8.8.8.8/x", "concat:a|b", "http://", "/etc/passwd", "data:,x"):
        with pytest.raises(Failed) as caught:
            guard.check_url(url, None)
        assert caught.value.failure_class is FailureClass.UNSAFE
    assert host_and_port("https://user:pw@host/x") == ("host", 443)
    assert host_and_port("proxy:3128") == ("proxy", 3128)
    assert host_and_port("http://host:99999999/") is None
