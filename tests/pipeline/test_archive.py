"""Frozen copies in tar and tar.gz are an equal source; what is wrong with one is an outcome, never a path."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import resource
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pytest
from archives import member, noise, write

from pipeline import sources
from pipeline.lists.manifest import Clip
from pipeline.lists.plan import SCHEMA as PLAN_SCHEMA
from pipeline.outcome import CallError, Failed, FailureClass
from pipeline.sources import FetchOptions, Piece, Video, archive
from pipeline.sources.archive_index import read_index
from pipeline.storage.work_store import WorkStore

ID = "-ab_c0123_4"
OPENED: list[str] = []
sys.addaudithook(lambda event, what: OPENED.append(str(what[0])) if event == "open" else None)


@pytest.fixture(autouse=True)
def _fresh():
    archive.index.cache_clear()
    sources.parse.cache_clear()


def clip(youtube_id: str = ID, start: float = 10, end: float = 20) -> Clip:
    return Clip("list.csv", 2, youtube_id, float(start), float(end), "high jump", "train")


def fetch(spec: str, folder: Path, *clips: Clip, **options) -> dict[str, Piece | Failed]:
    folder.mkdir(exist_ok=True)
    video = Video(clips[0].youtube_id, clips)
    return sources.parse(spec).fetch(video, folder, FetchOptions(**options)).pieces


def plan(*clips: Clip) -> pa.Table:
    rows = [
        {**vars(c), "key": c.key, "decision": "process", "video": c.youtube_id, "shard": 0} for c in clips
    ]
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_clips_are_found_anywhere_inside_by_all_their_names_and_in_any_order(tmp_path, name, form):
    wanted = [clip(start=start, end=start + 10) for start in (0, 100, 200, 7.5)]
    names = [wanted[0].key, f"{ID}_100_110", f"{ID}_200.0_210.0", f"{ID}_7.5_17.5"]
    data = [noise(100_000 + 77 * i, i) for i in range(4)]
    long = "train/" + "very long folder name/" * 8
    inside = [
        member(f"{long}{n}{end}", d)
        for n, d, end in zip(names, data, (".mp4", ".MP4", ".mkv", ".mp4"), strict=True)
    ]
    write(tmp_path / name, member("train", type=tarfile.DIRTYPE), *inside, member("read.me", b"x"), form=form)
    for order in (range(4), (3, 0, 2, 1)):
        for number in order:
            (piece,) = fetch(f"archive:{tmp_path}/*", tmp_path / "out", wanted[number]).values()
            assert (piece.start, piece.end, piece.kind, piece.trimmed) == (0.0, 10.0, "archive", True)
            assert piece.path.parent == tmp_path / "out"
            assert piece.path.read_bytes() == data[number]


def test_a_whole_video_serves_all_its_clips_and_is_copied_once(tmp_path):
    write(tmp_path / "a.tar", member(f"x/{ID}.webm", b"the whole"))
    pieces = fetch(f"archive:{tmp_path}/a.tar", tmp_path / "out", clip(), clip(start=30, end=40))
    assert [(p.start, p.end, p.trimmed) for p in pieces.values()] == [
        (10.0, 20.0, False),
        (30.0, 40.0, False),
    ]
    assert [f.name for f in (tmp_path / "out").iterdir()] == [f"{ID}.webm"]


def test_a_clip_in_no_archive_is_missing(tmp_path):
    write(tmp_path / "a.tar", member(f"{ID}_000010_000021.mp4", b"x"), member(f"{ID}.txt", b"x"))
    (failed,) = fetch(f"archive:{tmp_path}/a.tar", tmp_path / "out", clip()).values()
    assert (failed.failure_class, failed.retry_after) == (FailureClass.MISSING, None)
    assert "\n" not in failed.reason


HOSTILE = {
    "link": (member(f"{ID}_10_20.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "unsafe", "is a link"),
    "hard link": (member(f"{ID}_10_20.mp4", type=tarfile.LNKTYPE, linkname="b"), "unsafe", "is a link"),
    "device": (member(f"{ID}_10_20.mp4", type=tarfile.CHRTYPE, devmajor=1), "unsafe", "is no plain file"),
    "pipe": (member(f"{ID}_10_20.mp4", type=tarfile.FIFOTYPE), "unsafe", "is no plain file"),
    "upwards": (member(f"a/../../{ID}_10_20.mp4", b"x"), "unsafe", "leads out of the archive"),
    "absolute": (member(f"/etc/{ID}_10_20.mp4", b"x"), "unsafe", "leads out of the archive"),
    "too large": (member(f"{ID}_10_20.mp4", b"x" * 2001), "too_large", "has 2001 bytes"),
}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("case", HOSTILE)
def test_unsafe_members_are_refused_with_a_reason(tmp_path, name, case):
    bad, failure, says = HOSTILE[case]
    good = clip("good_video_")
    write(tmp_path / name, bad, member(f"{good.key}.mp4", b"good"))
    (failed,) = fetch(f"archive:{tmp_path}/{name}", tmp_path / "out", clip(), max_bytes=2000).values()
    assert failed.failure_class == failure
    assert says in failed.reason
    (piece,) = fetch(f"archive:{tmp_path}/{name}", tmp_path / "out", good).values()
    assert piece.path.read_bytes() == b"good"
    assert [f.name for f in (tmp_path / "out").iterdir()] == [f"{good.key}.mp4"]


def test_a_name_in_two_archives_is_refused_until_one_archive_is_named_first(tmp_path):
    write(tmp_path / "1.tar", member(f"a/{ID}_10_20.mp4", b"old"), member("a/other______.mp4", b"x"))
    write(tmp_path / "2.tar", member(f"b/{ID}_10_20.mp4", b"new"))
    (failed,) = fetch(f"archive:{tmp_path}/*.tar", tmp_path / "out", clip()).values()
    assert failed.failure_class is FailureClass.MISSING
    assert "stands there twice" in failed.reason
    for path in ("1.tar", "2.tar"):
        assert str(tmp_path / path) in failed.reason
    (piece,) = fetch(f"archive:{tmp_path}/2.tar", tmp_path / "out", clip()).values()
    assert piece.path.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_an_archive_that_ends_early_gives_the_members_before_its_end(tmp_path, name):
    clips = [clip(start=i * 10, end=i * 10 + 10) for i in range(4)]
    path = write(tmp_path / name, *(member(f"{c.key}.mp4", noise(50_000, i)) for i, c in enumerate(clips)))
    path.write_bytes(path.read_bytes()[:120_000])
    pieces = fetch(f"archive:{path}", tmp_path / "out", *clips)
    assert [getattr(p, "failure_class", "read") for p in pieces.values()] == [
        "read",
        "read",
        "corrupt",
        "missing",
    ]
    assert read_index(str(path)).schema.metadata[b"problem"]


def test_a_damaged_gzip_gives_failures_and_no_crash(tmp_path):
    clips = [clip(start=i * 10, end=i * 10 + 10) for i in range(4)]
    whole = write(
        tmp_path / "a.tar.gz", *(member(f"{c.key}.mp4", noise(9000, i)) for i, c in enumerate(clips))
    )
    data, places = whole.read_bytes(), random.Random(1)
    for trial in range(60):
        bad = bytearray(data)
        bad[places.randrange(10, len(bad))] ^= 1 << places.randrange(8)
        path = tmp_path / f"bad-{trial}.tar.gz"
        path.write_bytes(bad)
        for piece in fetch(f"archive:{path}", tmp_path / "out", *clips).values():
            if isinstance(piece, Failed):
                assert piece.failure_class in (
                    FailureClass.CORRUPT,
                    FailureClass.MISSING,
                    FailureClass.UNSAFE,
                )


def test_a_header_that_claims_a_huge_size_costs_neither_memory_nor_time(tmp_path):
    block = tarfile.TarInfo(f"{ID}_10_20.mp4")
    block.size = 1 << 60
    (tmp_path / "large.tar").write_bytes(block.tobuf(tarfile.GNU_FORMAT))
    for kind in (b"L", b"x", b"K", b"g"):  # long name, pax record, long link, global record
        bomb = tarfile.TarInfo("x")
        bomb.type, bomb.size = kind, 8 << 30
        with gzip.open(tmp_path / f"bomb-{kind.decode()}.tar.gz", "wb", compresslevel=1) as file:
            file.write(bomb.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20))
    with gzip.open(tmp_path / "large.tar.gz", "wb") as file:
        file.write(block.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    backwards = bytearray(tarfile.TarInfo(f"{ID}_30_40.mp4").tobuf())
    backwards[124:136] = b"\xff" * 11 + b"\x00"  # a negative size
    backwards[148:156] = b"%06o\0 " % sum((*backwards[:148], *b" " * 8, *backwards[156:]))
    (tmp_path / "backwards.tar").write_bytes(bytes(backwards) * 3 + bytes(1024))
    program = textwrap.dedent("""
        import sys
        from pipeline.sources.archive_index import read_index
        for path in sys.argv[1:]:
            table = read_index(path)
            print(table.num_rows, table["refused"].to_pylist(), table.schema.metadata[b"problem"].decode())
    """)

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))

    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], preexec_fn=limit, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = dict(zip((Path(p).name for p in paths), done.stdout.splitlines(), strict=True))
    assert "claims 1152921504606846976 bytes" in lines["large.tar.gz"]
    assert "claims" in lines["large.tar"]
    for name, line in lines.items():
        assert not line.endswith("] ") or name.startswith("backwards"), (name, line)


def test_endless_headers_are_reported_and_the_members_before_them_stay(tmp_path):
    good, first = clip("good_video_"), io.BytesIO()
    with tarfile.open(fileobj=first, mode="w") as tar:
        tar.addfile(*((m := member(f"{good.key}.mp4", b"good"))[0], io.BytesIO(m[1])))
    begin = first.getvalue()[:1024]

    def header(name: str, size: int, kind: bytes) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    long_name = header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + b"a\0".ljust(512, b"\0")
    (tmp_path / "nested.tar").write_bytes(begin + long_name * 3000 + header("x.mp4", 0, b"0") + bytes(1024))
    words = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=x.mp4\n"
    sparse = header("pax", len(words), tarfile.XHDTYPE) + words.ljust(512, b"\0")
    with gzip.open(tmp_path / "holes.tar.gz", "wb", compresslevel=1) as file:
        file.write(begin + sparse + header("x.mp4", 32 << 20, b"0") + b"999999999999\n" + b"0\n" * (16 << 20))
    for name, says in (("nested.tar", "recursion"), ("holes.tar.gz", "headers of more than 1048576 bytes")):
        start = time.process_time()
        table = read_index(tmp_path / name)
        assert time.process_time() - start < 5
        assert table["refused"].to_pylist() == [None]
        assert says in table.schema.metadata[b"problem"].decode()
        (piece,) = fetch(f"archive:{tmp_path}/{name}", tmp_path / "out", good).values()
        assert piece.path.read_bytes() == b"good"


def test_global_headers_are_kept_for_all_members_only_as_long_as_they_are_short(tmp_path):
    def archive(count: int, length: int) -> bytes:
        parts = []
        for number in range(count):
            words = {f"comment{number:03d}": "a" * length}
            video = tarfile.TarInfo(f"video_{number:05d}.mp4").tobuf(tarfile.USTAR_FORMAT)
            parts += [tarfile.TarInfo.create_pax_global_header(words), video]
        return b"".join(parts) + bytes(1024)

    too_long = "global headers of more than 16384 characters"
    for count, length, rows, problem in ((300, 40, 300, ""), (150, 1000, 16, too_long)):
        path = tmp_path / f"{length}.tar"
        path.write_bytes(archive(count, length))
        table = read_index(path)
        assert table["refused"].to_pylist() == [None] * rows
        assert table.schema.metadata[b"problem"].decode() == problem


def test_a_file_that_is_no_archive_is_reported_and_a_wrong_call_refused(tmp_path):
    (tmp_path / "a.tar").write_text("<html>not found</html>" * 100)
    (failed,) = fetch(f"archive:{tmp_path}/a.tar", tmp_path / "out", clip()).values()
    assert failed.failure_class is FailureClass.MISSING
    assert read_index(str(tmp_path / "a.tar")).schema.metadata[b"problem"]
    for spec in ("archive:", f"archive:{tmp_path}/*.zip", f"archive:{tmp_path}"):
        with pytest.raises(CallError, match="matches no file") as caught:
            sources.parse(spec)
        assert "\n" not in str(caught.value)
    source = sources.parse(f"archive:{tmp_path}/a.tar")
    assert pickle.loads(pickle.dumps(source)) == source
    assert not source.network


def test_a_packed_archive_is_read_once_and_only_wanted_members_are_laid_out(tmp_path):
    clips = [clip(start=i * 10, end=i * 10 + 10) for i in range(20)]
    data = [noise(30_000 + i, i) for i in range(20)]
    path = write(
        tmp_path / "a.tar.gz", *(member(f"{c.key}.mp4", d) for c, d in zip(clips, data, strict=True))
    )
    spec, store = f"archive:{path}", WorkStore(tmp_path / "work")
    wanted = clips[3:17:4]
    archive.lay_out([spec], plan(*wanted), store, FetchOptions())
    (laid_out,) = (tmp_path / "work" / "archive").glob("*.videos")
    assert laid_out.stat().st_size == sum(len(data[i]) for i in range(3, 17, 4))
    OPENED.clear()
    for number in (15, 3, 11, 7):
        (piece,) = fetch(spec, tmp_path / "out", clips[number], work=str(tmp_path / "work")).values()
        assert piece.path.read_bytes() == data[number]
    archive.lay_out([spec], plan(*wanted), store, FetchOptions())  # a run that was killed and is repeated
    assert len([p for p in OPENED if p == str(path)]) <= 4  # its first two bytes, to see what it is
    (piece,) = fetch(spec, tmp_path / "out", clips[0], work=str(tmp_path / "work")).values()
    assert piece.path.read_bytes() == data[0]  # not wanted by the plan, and had all the same
    archive.clear([spec], store)
    assert not laid_out.exists()
    (piece,) = fetch(spec, tmp_path / "out", clips[7], work=str(tmp_path / "work")).values()
    assert piece.path.read_bytes() == data[7]
    archive.lay_out([spec], plan(clips[5]), store, FetchOptions())  # a later generation wants another
    assert laid_out.read_bytes() == data[5]


def test_a_worker_reads_a_plain_archive_no_more_than_the_clip_it_wants(tmp_path):
    clips = [clip(start=i * 10, end=i * 10 + 10) for i in range(4)]
    path = write(
        tmp_path / "a.tar", *(member(f"{c.key}.mp4", noise(1 << 20, i)) for i, c in enumerate(clips))
    )
    store = WorkStore(tmp_path / "work")
    archive.lay_out([f"archive:{path}"], plan(*clips), store, FetchOptions())
    assert not list((tmp_path / "work" / "archive").glob("*.videos"))
    before = int(Path("/proc/self/io").read_text().split()[1])
    fetch(f"archive:{path}", tmp_path / "out", clips[2], work=str(tmp_path / "work"))
    assert int(Path("/proc/self/io").read_text().split()[1]) - before < 1.3 * (1 << 20)
