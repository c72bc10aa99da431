"""A data set that a stranger made reaches nothing outside its folder, and hangs no command."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from published import ROWS, key, prepare
from small_runs import make_list, pipeline, published_bytes

from pipeline import report
from pipeline.dataset import DatasetError
from pipeline.lists.manifest import ManifestError
from pipeline.maintenance import remove
from pipeline.maintenance.verify import verify
from pipeline.outcome import CallError, Failed
from pipeline.sources import class_folders
from pipeline.sources.rate_limit import Lane, RateLimit
from pipeline.storage import open_storage
from pipeline.storage.atomic import replacing

HOST = os.uname().nodename
WORKERS = ("--direct_num_workers", 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A published data set with its work store and a report."""
    root = tmp_path_factory.mktemp("published") / "root"
    prepare(root).publish()
    (root / "work" / "log").mkdir()
    report.write(root)
    return root


@pytest.fixture
def root(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "root")


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder: kind and mode, and the bytes of files."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


def linked(path: Path, outside: Path) -> Path:
    """Put a link at a path; what is there, or a file, goes to `outside`, where the link leads."""
    outside.mkdir()
    target = outside / path.name
    if path.exists():
        path.rename(target)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("a file of the user's")
    if target.is_dir():
        (target / "diary.txt").write_text("a file of the user's")
    path.symlink_to(target)
    return target


COMMANDS = {
    "report": report.write,
    "verify": verify,
    "remove": lambda root: remove.remove(root, [key(ROWS[1].name)], "asked"),
}


def refusal(command: str, root: Path) -> str:
    """The sentence with which a command refuses a data set; empty where it does not."""
    try:
        done = COMMANDS[command](root)
    except (CallError, Failed, DatasetError) as error:
        return str(error)
    return "\n".join(done.breaches) if command == "verify" else ""


@pytest.mark.parametrize(
    ("command", "places"),
    [
        ("report", ["dataset.json", "index", "shards", "report", "report/index.html", "report/media"]),
        ("verify", ["dataset.json", "index", "outcomes", "shards/train-00000-00000.tar"]),
        ("remove", ["dataset.json", "shards", "report/media", ".publish.lock", "work", "work/encode"]),
    ],
)
def test_no_command_follows_a_link_of_a_data_set(command, places, root, tmp_path, sound):
    for number, place in enumerate(places):
        outside = tmp_path / f"outside-{number}"
        linked(root / place, outside)
        before = state(outside)
        assert "a symbolic link" in refusal(command, root), place
        assert state(outside) == before, place
        shutil.rmtree(root)
        shutil.copytree(sound, root)


def test_prepare_follows_no_link_of_a_data_set(tmp_path):
    rows = make_list(tmp_path / "list.csv", [f"walk,aaaaaaaaaa{n},1,3,train,0" for n in range(3)])
    root = tmp_path / "root"
    call = ["prepare", "--manifest", rows, "--output", root, "--rehearse", *WORKERS]
    assert pipeline(*call).returncode == 0
    make_list(rows, [f"walk,aaaaaaaaaa{n},1,3,train,0" for n in range(6)])
    shutil.copytree(root, tmp_path / "sound")
    for number, place in enumerate(
        [
            "dataset.json",
            "outcomes",
            ".prepare.lock",
            "work",
            "work/log",
            "work/plan",
            "work/progress",
            "shards",
        ]
    ):
        outside = tmp_path / f"outside-{number}"
        linked(root / place, outside)
        before = state(outside)
        done = pipeline(*call)
        assert state(outside) == before, place
        assert done.returncode != 0, place
        assert "a symbolic link" in done.stderr.splitlines()[-1], (place, done.stderr)
        assert "Traceback" not in done.stderr
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "sound", root)
    assert pipeline(*call).returncode == 0


@pytest.mark.parametrize("name", [f".index.html.{HOST}.tmp", f".dataset.json.{HOST}.tmp"])
def test_a_temporary_name_that_a_stranger_guessed_is_not_written_through(name, root, tmp_path):
    folder = root / "report" if "index" in name else root
    target = linked(folder / name, tmp_path / "outside")
    report.write(root)
    storage = open_storage(root)
    storage.replace("dataset.json", storage.read_bytes("dataset.json"), storage.version("dataset.json"))
    storage.create("new.json", b"{}")
    assert target.read_text() == "a file of the user's"
    with replacing(folder / name[1:].removesuffix(f".{HOST}.tmp")) as temporary:
        assert temporary.name != name
        temporary.write_bytes(b"whole")
    assert target.read_text() == "a file of the user's"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("place", ["dataset.json", "shards/train-00000-00000.tar", "work/campaign.lock"])
def test_what_is_no_file_hangs_no_command(place, make, root):
    (root / place).unlink(missing_ok=True)
    make(root / place)
    for command in COMMANDS:
        assert refusal(command, root) or (place == "work/campaign.lock" and command != "remove"), command


def test_links_that_a_user_makes_on_purpose_work(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(root)
    work = tmp_path / "work"
    (root / "work").rename(tmp_path / "elsewhere" / "work")
    work.symlink_to(tmp_path / "elsewhere" / "work")
    assert not refusal("verify", tmp_path / "link")
    done = remove.remove(tmp_path / "link", [key(ROWS[1].name)], "asked", work=str(work))
    assert str(tmp_path / "work") in "\n".join(done.lines())
    assert not refusal("verify", root)


RECORDS = (
    {},
    [],
    {"outcome": "failed"},
    {"outcome": "ready", "files": {"mp4": {}}},
    {"files": 1, "pieces": {"k": 2}},
)


def test_records_without_their_fields_are_work_done_again(tmp_path):
    rows = make_list(tmp_path / "list.csv", [f"walk,aaaaaaaaaa{n},1,3,train,0" for n in range(5)])
    root = tmp_path / "root"
    call = ["prepare", "--manifest", rows, "--output", root, "--rehearse", *WORKERS]
    done = pipeline(*call)
    assert done.returncode == 0, done.stderr
    published = published_bytes(root)
    for number, path in enumerate(sorted((root / "work").rglob("*.record.json"))):
        path.write_text(json.dumps(RECORDS[number % len(RECORDS)]))
    shutil.rmtree(root / "shards")
    (root / "dataset.json").unlink()
    done = pipeline(*call)
    assert done.returncode == 0, done.stderr
    assert published_bytes(root) == published


@pytest.mark.parametrize("until", ["9999-12-31T00:00:00+00:00", "2026-12-01T00:00:00", "tomorrow", None])
def test_a_pause_that_no_worker_of_ours_noted_is_one_sentence(until, tmp_path):
    (tmp_path / "pause.json").write_text(json.dumps({"until": until, "reason": "blocked"}))
    with pytest.raises(Failed, match=r"pause\.json names no pause within the next 7 days: delete it"):
        Lane(RateLimit(), open_storage(tmp_path)).wait()


def test_a_class_folder_whose_name_is_no_utf8_is_one_sentence(tmp_path):
    folder = os.fsencode(tmp_path / "videos") + b"/caf\xe9"
    os.makedirs(folder)
    with open(folder + b"/a.mp4", "wb"):
        pass
    with pytest.raises(ManifestError, match=r"videos/caf\\udce9/a.mp4' is no UTF-8 text: rename it"):
        class_folders.write(tmp_path / "videos", tmp_path / "list.csv")
