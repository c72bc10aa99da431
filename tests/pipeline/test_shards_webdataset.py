"""Outsiders read the shards with plain webdataset: this reader imports nothing of ours."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap

from published import CLASSES, ROWS, key, prepare, video

READER = textwrap.dedent("""
    import glob, hashlib, json, sys
    import webdataset

    shards = sorted(glob.glob(sys.argv[1] + "/shards/*.tar"))
    samples = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        samples.append({
            "key": sample["__key__"],
            "members": sorted(name for name in sample if not name.startswith("__")),
            "class": int(sample["cls"]) if "cls" in sample else None,
            "frames": json.loads(sample["json"])["frames"],
            "mp4": hashlib.sha256(sample["mp4"]).hexdigest(),
        })
    assert not [name for name in sys.modules if name.split(".")[0] in ("pipeline", "trainer")]
    print(json.dumps(samples))
""")


def test_plain_webdataset_reads_every_sample(tmp_path):
    prepare(tmp_path).publish()
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    samples = {s["key"]: s for s in json.loads(done.stdout)}
    ready = [row for row in ROWS if row.outcome == "ready"]
    assert sorted(samples) == sorted(key(row.name) for row in ready)
    for number, row in enumerate(ready):
        sample = samples[key(row.name)]
        assert sample["class"] == (CLASSES.index(row.label) if row.label else None)
        assert sample["members"] == [*(["cls"] if row.label else []), "flow.mp4", "json", "mp4"]
        assert sample["frames"] == 50
        assert sample["mp4"] == hashlib.sha256(video(number).read_bytes()).hexdigest()
