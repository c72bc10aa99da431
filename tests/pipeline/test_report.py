"""The report: what it counts, that nothing from outside becomes markup, and that it works in a browser."""

from __future__ import annotations

import html.parser
import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import report
from pipeline.dataset import open as open_dataset
from pipeline.dataset import publish, schema, shards
from pipeline.flow import coding
from pipeline.flow.recipe import FlowRecipe
from pipeline.lists import manifest, plan
from pipeline.media import clip
from pipeline.media.recipe import EncodeRecipe
from pipeline.recipe import Recipe
from pipeline.report.colours import colour, wheel
from pipeline.report.counts import count
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage import open_storage
from pipeline.storage.work_store import WorkStore

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp; $style"
LABELS = ("arm wrestling", "zooming in", HOSTILE)
FLOWS = {"arm wrestling": (6.0, 0.0), "zooming in": (0.0, -4.0), HOSTILE: (-3.0, 3.0)}
WIDTH, HEIGHT, FRAMES = 160, 96, 30


def _members(work: WorkStore, key: str, label: str, folder: Path, flow: bool) -> dict:
    """A clip whose content moves as its flow says, put into the work store."""
    u, v = FLOWS[label]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    raw = folder / "raw.rgb"
    with raw.open("wb") as file:
        for i in range(FRAMES):
            wave = 128 + 100 * np.sin((x - u * i) / 9) * np.cos((y - v * i) / 11)
            wave[:8, : 4 * (i + 1)] = 255  # how far it has played, to be seen in the page
            file.write(np.repeat(wave.astype(np.uint8)[..., None], 3, axis=2).tobytes())
    video = folder / "clip.mp4"
    source = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r 25 -i {raw}"
    encode = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 16"
    command = f"{clip.ffmpeg_binary()} -v error -y {source} {encode} {video}"
    subprocess.run(command.split(), check=True, timeout=60)
    members = {"mp4": work.put_file("encode", "0", key, ".mp4", video)}
    if flow:
        field = np.empty((FRAMES, HEIGHT, WIDTH, 2), np.float32)
        field[:] = u, v
        out = folder / "clip.flow.mp4"
        coding.encode(iter(field), out, ffmpeg=clip.ffmpeg_binary(), timeout=60)
        members["flow.mp4"] = work.put_file("flow", "0", key, ".flow.mp4", out)
    return members


def _result(row: dict, outcome: str, failure: str | None = None, reason: str | None = None) -> dict:
    fields = {name: row.get(name) for name in schema.OUTCOME_SCHEMA.names}
    due = datetime(2026, 11, 22, 6, tzinfo=UTC) if failure == "network" else None
    return fields | {
        "outcome": outcome, "failure_class": failure, "reason": reason, "attempts": 1, "retry_after": due,
    }  # fmt: skip


def make_root(root: Path, scratch: Path, flow: bool = True) -> Path:
    """A published data set of six ready clips, with every kind of outcome beside them."""
    text = ["label,youtube_id,time_start,time_end,split"]
    quoted = [
        f'"{label}"' if label != HOSTILE else '"' + HOSTILE.replace('"', '""') + '"' for label in LABELS
    ]
    text += [f"{quoted[i % 3]},ready-{i},0,1.2,{'train' if i < 4 else 'val'}" for i in range(6)]
    text += [f"{quoted[0]},gone-{i},0,1.2,train" for i in range(7)]
    text += [f"{quoted[1]},network-0,0,1.2,train", f"{quoted[1]},ready-5,0,1.2,train", "x,y,z,soon,later"]
    (scratch / "list.csv").write_text("\n".join(text) + "\n")
    table = plan.make([manifest.read(scratch / "list.csv")], plan.PlanOptions())
    storage, work = open_storage(root), WorkStore(root / "work")
    outcomes, samples = [], {"train": [], "val": []}
    for row in table.filter(pa.compute.equal(table["decision"], "process")).to_pylist():
        if row["youtube_id"].startswith("gone"):
            number = int(row["youtube_id"][-1])
            outcomes.append(_result(row, "failed", "gone", f"404 {HOSTILE}" if number else "Private video"))
        elif row["youtube_id"].startswith("network"):
            outcomes.append(_result(row, "failed", "network", "timed out"))
        else:
            outcomes.append(_result(row, "ready"))
            meta = {
                "key": row["key"], "frames": FRAMES, "width": WIDTH, "height": HEIGHT, "note": None,
                "source": {"kind": "dir", "codec": HOSTILE, "width": 320, "height": 192, "rate": 29.97},
            }  # fmt: skip
            if flow:
                meta["flow"] = {"bound": 20.0, "saturation": 0.0, "tvl1": {}}
            members = _members(work, row["key"], row["label"], scratch, flow)
            names = ("key", "label", "class_index", "split", "youtube_id", "time_start", "time_end")
            sample = shards.PackedSample(*(row[name] for name in names), meta, members)
            samples[row["split"]].append(sample)
    packed = []
    for split, found in samples.items():
        path = schema.shard_path(split, "00000", 0)
        info, rows = shards.pack(found, work.storage, storage, path)
        packed.append((info, pa.Table.from_pylist(rows, schema=schema.INDEX_SCHEMA)))
    publish.publish(
        storage,
        plan=table,
        outcomes=[pa.Table.from_pylist(outcomes, schema=schema.OUTCOME_SCHEMA)],
        packed=packed,
        recipe=Recipe(FetchRecipe(), EncodeRecipe(), FlowRecipe() if flow else None).as_dict(),
        classes=plan.classes(table),
        generation="00000",
    )
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("scratch")
    return make_root(tmp_path_factory.mktemp("data") / "root", scratch)


@pytest.fixture(scope="module")
def page(root: Path) -> Path:
    return Path(report.write(root))


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


def run_in(chromium: str, page: Path, script: str, profile: Path) -> dict:
    """Open `page` as a file with `script` at its end; what the script gives to ``answer``."""
    answers: queue.Queue[bytes] = queue.Queue()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            answers.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        send = (
            f"const answer = (value) => fetch('{url}', "
            "{method: 'POST', mode: 'no-cors', body: JSON.stringify(value)});"
        )
        text = re.sub(
            r"script-src '[^']*'", f"connect-src {url}; script-src 'unsafe-inline'", page.read_text()
        )
        copy = page.with_name("tested.html")
        copy.write_text(text.replace("</body>", f"<script>{send}{script}</script></body>"))
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-port=0 --mute-audio"
        command = [chromium, *flags.split(), f"--user-data-dir={profile}", copy.as_uri()]
        browser = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            return json.loads(answers.get(timeout=90))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            copy.unlink()
            server.shutdown()


class _Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes, and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_counts_say_what_became_of_every_row(root: Path):
    counts = count(open_dataset(root))
    assert counts.outcomes == {"ready": 6, "excluded": 1, "failed": 9}
    assert counts.rows == 16
    assert counts.splits["train"] == {"ready": 4, "excluded": 1, "failed": 8}
    assert counts.splits["unknown"] == {"ready": 0, "excluded": 0, "failed": 1}
    assert counts.labels["arm wrestling"] == {"ready": 2, "excluded": 0, "failed": 7}
    assert [(c.name, c.count) for c in counts.causes] == [
        ("gone", 7),
        ("leak", 1),
        ("manifest", 1),
        ("network", 1),
    ]
    gone = counts.causes[0]
    assert [(r.count, r.example) for r in gone.reasons] == [
        (6, "gone-1_000000_000001"),
        (1, "gone-0_000000_000001"),
    ]
    assert counts.due == "2026-11-22 06:00 UTC"


def test_text_from_outside_never_becomes_markup(page: Path):
    elements = _Elements(page.read_text())
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    assert len(scripts) == 1
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert elements.text.count(HOSTILE) >= 4  # label, reason, codec: shown as they are


def test_the_page_needs_nothing_but_its_folder(page: Path):
    elements = _Elements(page.read_text())
    named = {a[name] for _, a in elements.found for name in ("src", "href", "poster") if name in a}
    files = {name for name in named if not name.startswith("#")}
    assert files == {f"media/{file.name}" for file in (page.parent / "media").iterdir()}
    assert "://" not in page.read_text().replace("http-equiv", "")


def test_the_lists_are_compared_with_the_archives(root: Path, page: Path):
    none = {name: {"count": 0, "examples": []} for name in ("extra", "refused", "corrupt")}
    lengths = [{"key": "a", "seconds": None, "wanted": 10.0}, {"key": "b", "seconds": 9.25, "wanted": 10.0}]
    found = none | {
        "clips": 10, "found": 7, "archives": [{"path": HOSTILE, "videos": 9, "problem": "cut short"}],
        "missing": {"count": 3, "examples": [HOSTILE]}, "wrong_length": {"count": 2, "examples": lengths},
    }  # fmt: skip
    kept, file = page.read_text(), page.with_name("archives.json")
    for content, shown in ((json.dumps(found), True), (json.dumps({"clips": 10}), False), ("{", False)):
        file.write_text(content)
        report.write(root)
        assert ("1 archives with 9 videos; 7 of the 10 clips" in page.read_text()) == shown
        assert (f"{HOSTILE}: cut short" in _Elements(page.read_text()).text) == shown
        assert ("b: 9.25 s instead of 10 s" in page.read_text()) == shown
    file.unlink()
    report.write(root)
    assert page.read_text() == kept


def test_a_second_report_replaces_the_first(root: Path, page: Path):
    before = {f.name: f.read_bytes() for f in (page.parent / "media").iterdir()}
    (page.parent / "media" / "left-over.mp4").write_bytes(b"of an earlier report")
    report.write(root)
    assert {f.name: f.read_bytes() for f in (page.parent / "media").iterdir()} == before


def test_coloured_flow_is_as_long_as_its_clip_and_of_one_hue(page: Path, root: Path):
    key = "ready-0_000000_000001"
    coloured = clip.decode((page.parent / "media" / f"{key}.colours.mp4").read_bytes())
    assert coloured.shape == (FRAMES, HEIGHT, WIDTH, 3)
    expected = colour(np.float32([6.0, 0.0]), 6.0)  # to the right: red
    assert expected[0] == 255
    assert max(expected[1:]) < 30
    assert np.abs(coloured.astype(int) - expected).max() < 12


def test_the_wheel_is_middlebury_s():
    assert wheel().shape == (55, 3)
    still, right, down, left, up = colour(np.float32([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]]), 1.0)
    assert still.tolist() == [255, 255, 255]
    assert right.argmax() == 0
    assert right.min() == 0
    assert down[0] > 200  # yellow
    assert down[1] > 200
    assert left[2] > 200  # cyan to blue
    assert left[0] == 0
    assert up[2] > up[1]  # violet


def test_a_data_set_without_flow_has_a_report(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    root = make_root(tmp_path / "root", tmp_path / "scratch", flow=False)
    page = Path(report.write(root, report.Limits(frames_a_class=2, clips_a_class=1, clips=2)))
    names = {file.name for file in (page.parent / "media").iterdir()}
    assert not any("flow" in name or "colours" in name for name in names)
    assert sum(name.endswith(".mp4") for name in names) == 2


def test_in_chromium_both_videos_play_in_step(page: Path, chromium: str, tmp_path: Path):
    script = """
      addEventListener("load", async () => {
        const clip = document.querySelector(".clip"), [a, b] = clip.querySelectorAll("video");
        const wait = (ms) => new Promise((done) => setTimeout(done, ms));
        const apart = [];
        const [play, back, forward] = clip.querySelectorAll("button");
        play.click();
        const until = async (met) => { for (let i = 0; i < 500 && !met(); i++) await wait(20); };
        await until(() => b.currentTime > 0.2);
        for (let i = 0; i < 40; i++) { await wait(50); apart.push(Math.abs(a.currentTime - b.currentTime)); }
        const played = a.currentTime;
        play.click();
        await wait(300);
        forward.click(); forward.click(); back.click();
        await wait(50);
        await until(() => !a.seeking && !b.seeking);
        answer({
          state: [a.readyState, b.readyState, a.error, b.error], played,
          apart: apart.sort((x, y) => x - y)[36],
          ended: [a.currentTime, b.currentTime], shown: clip.querySelector("output").textContent,
          width: document.documentElement.scrollWidth - innerWidth,
        });
      });
    """
    seen = run_in(chromium, page, script, tmp_path)
    assert seen["state"][2:] == [None, None]
    assert min(seen["state"][:2]) >= 2
    assert seen["played"] > 0
    assert seen["apart"] <= 0.08  # two frames, nine times out of ten, on a busy machine too
    assert seen["ended"][0] == seen["ended"][1]
    assert re.fullmatch(r"\d+ / 30", seen["shown"])
    assert seen["width"] <= 0


def test_in_chromium_hostile_text_does_nothing(page: Path, chromium: str, tmp_path: Path):
    script = """
      addEventListener("load", () => setTimeout(() => {
        const hostile = document.title === "owned";
        answer({ hostile, foreign: document.querySelectorAll("[onerror]").length });
      }, 500));
    """
    assert run_in(chromium, page, script, tmp_path) == {"hostile": False, "foreign": 0}


if __name__ == "__main__":  # a page to look at: python tests/pipeline/test_report.py FOLDER
    import sys

    target = Path(sys.argv[1])
    os.makedirs(target / "scratch", exist_ok=True)
    print(report.write(make_root(target / "root", target / "scratch")))
