"""TSM online, frame by frame over a real clip: ``python benchmarks/tsm_online.py [--clip FILE]``.

An answer at each frame, by one thread, from raw video as the trainer reads it: of the one-way network,
which keeps an eighth of the channels before each block from one frame to the next, and beside it of the
offline network, which must see the last 8 frames again (J. Lin, C. Gan, S. Han, "TSM", ICCV 2019, section 4).
Each runs in a process of its own, whose memory is what it grew by after the network was built. Times are of
the processor; weights are random, which changes neither time nor memory. The results lie in
``benchmarks/results/tsm_online.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import configuration, frame_stream, networks, run_log

RESULTS = Path(__file__).parent / "results" / "tsm_online.json"
WINDOW = 8
"""Frames that the offline network sees at once."""

COMPARED = 16
"""Frames over which both ways of the online network are compared."""


def measure(mode: str, path: Path, frames: int) -> dict[str, Any]:
    """Time that one mode ("online" or "offline") takes for each frame of the clip at `path`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seen = configuration.resolve(None, {"network": {"name": "tsm-r50"}}).input
    network = networks.build("tsm-r50", online=mode == "online").eval()
    pictures = frame_stream.of_file(path, {"rgb": seen}).frames
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reading, answering, state, given, logits = [], [], None, [], []
    with torch.inference_mode():
        for _ in range(frames):
            begin = time.process_time()
            picture = next(pictures, None)
            if picture is None:
                break
            frame = torch.from_numpy(picture["rgb"])[None].float() / 127.5 - 1
            read = time.process_time()
            if mode == "online":
                answer, state = network.step(frame, state)
            else:
                given = [*given, frame][-WINDOW:]
                answer = network(torch.stack(given, dim=2))
            reading.append(read - begin)
            answering.append(time.process_time() - read)
            if len(logits) < COMPARED:
                logits.append(answer)
    row = {
        "frames": len(answering),
        "ms a frame, reading": 1e3 * statistics.median(reading),
        "ms a frame, network": 1e3 * statistics.median(answering),
        "ms a frame, network, 95th percentile": 1e3 * statistics.quantiles(answering, n=20)[-1],
        "MiB grown by": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }
    if state is not None:
        row["MiB kept between frames"] = sum(s.numel() * s.element_size() for s in state) / 2**20
        row["largest difference to the whole clip"] = difference(network, path, torch.cat(logits))
        row["largest logit"] = torch.cat(logits).abs().max().item()
    return row


def difference(network: torch.nn.Module, path: Path, logits: Tensor) -> float:
    """How far `logits` (S, num_classes), frame by frame, are from the clip's of S frames at once."""
    seen = configuration.resolve(None, {"network": {"name": "tsm-r50"}}).input
    frames = [frame["rgb"] for frame in islice(frame_stream.of_file(path, {"rgb": seen}).frames, len(logits))]
    clip = torch.stack([torch.from_numpy(frame) for frame in frames], dim=1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        return (network.logits_over_time(clip)[0] - logits).abs().max().item()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, help="default: arm_wrestling.mp4 in QUOVADIS_TEST_CLIPS")
    parser.add_argument("--frames", type=int, default=50, help="of the clip (default 50)")
    parser.add_argument("--mode", choices=("online", "offline"), help="this one alone, as JSON")
    options = parser.parse_args()
    path = options.clip or Path(os.environ.get("QUOVADIS_TEST_CLIPS", ".")) / "arm_wrestling.mp4"
    if not path.is_file():
        parser.error(f"{path} is not there: name a video with --clip")
    if options.mode:
        print(json.dumps(measure(options.mode, path, options.frames)))
        return 0
    rows = {}
    for mode in ("online", "offline"):
        words = ["--clip", str(path), "--frames", str(options.frames), "--mode", mode]
        child = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True)
        rows[mode] = json.loads(child.stdout)
    for name in rows["online"]:
        print(f"{name:>38}", *(f"{rows[mode].get(name, float('nan')):12.4g}" for mode in rows))
    run_log.write_json(RESULTS, {"clip": path.name, **rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
