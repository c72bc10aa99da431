"""Clips a second a core of the loader, beside a bare PyAV decode of the same frames from their keyframe.

    python benchmarks/loader.py --data ROOT [--split train] [--clips 40] [--stream both]

Both decode 64 RGB and 64 flow frames of the same clips, by turns, in one process and one thread. The
loader also reads them from their shard, brings them to RGB, crops, mirrors and puts them into a batch; the
bare decode gets the members' bytes and leaves the frames as they come. Prints medians of CPU time.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import av
import torch

from trainer.data.augmentation import random_cut
from trainer.data.loader import Input, TrainBatches
from trainer.data.order import AUGMENTATION, Draws, epoch_order
from trainer.data.reading import Reader
from trainer.data.rows import open_rows

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a published data set with flow")
    parser.add_argument("--split", default="train")
    parser.add_argument("--clips", type=int, default=40, help="clips to measure")
    parser.add_argument("--stream", default="both")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    input = Input(stream=options.stream, short_side=options.short_side, crop=options.crop)
    rows = open_rows([options.data], options.split, input.streams)
    reader = Reader(rows, input.streams)
    batches = iter(TrainBatches(rows, input, batch_size=1))
    times: dict[str, list[float]] = {"loader": [], "bare decode": [], "to floats on the CPU": []}
    for number in range(-2, options.clips):  # two to warm up
        epoch, step = divmod(number + 2, len(rows))
        row = int(epoch_order(0, epoch, len(rows))[step])
        members = reader.read(row)
        size = int(rows.frames[row]), int(rows.width[row]), int(rows.height[row])
        frames = random_cut(input, *size, Draws(AUGMENTATION, 0, epoch, row)).frames

        def bare(members: dict[str, bytes] = members, frames: tuple[int, ...] = frames) -> int:
            return sum(bare_decode(data, min(frames), max(frames)) for data in members.values())

        turns = [("bare decode", bare), ("loader", lambda: next(batches))]
        taken = {name: cpu_time(work) for name, work in (turns if number % 2 else turns[::-1])}
        taken["bare decode"], count = taken["bare decode"]
        taken["loader"], batch = taken["loader"]
        assert batch.keys[0] == rows.keys[row].as_py()
        assert count == len(members) * len(set(frames))
        taken["to floats on the CPU"] = cpu_time(batch.inputs)[0]
        if number >= 0:
            for name, seconds in taken.items():
                times[name].append(seconds)
    print(f"{options.clips} turns over {len(rows)} clips, {input.frames} frames, stream {input.stream}")
    for name, taken_ in times.items():
        median = statistics.median(taken_)
        print(f"{name:>22}: {median * 1e3:7.1f} ms a clip, {1 / median:6.1f} clips a second a core")
    ratios = [a / b for a, b in zip(times["loader"], times["bare decode"], strict=True)]
    print(f"loader / bare decode: {statistics.median(ratios):.2f} (median of the pairs)")


def bare_decode(data: bytes, first: int, last: int) -> int:
    """Decode frames `first` to `last` from the keyframe before them; returns how many there were."""
    found = 0
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        container.seek(round(first / 25 / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts * stream.time_base * 25)
            found += number >= first
            if number >= last:
                break
    return found


def cpu_time(work: Callable[[], T]) -> tuple[float, T]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


if __name__ == "__main__":
    main()
