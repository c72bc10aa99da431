"""Clips a second a core of the loader, beside a bare PyAV decode of the same frames from their keyframe, and
beside plain webdataset.

    python benchmarks/loader.py --data ROOT [--split train] [--clips 40] [--stream both]

All decode 64 RGB and 64 flow frames a clip, by turns, in one process and one thread. The loader also reads
them from their shard, brings them to RGB, crops, mirrors and puts them into a batch; the bare decode gets the
members' bytes and leaves the frames as they come. Plain webdataset reads the shards through and has what its
user would write (`plain`): the same number of frames from a random place, brought to RGB, cropped, as a
tensor. Prints medians of CPU time.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import av
import numpy as np
import torch
import webdataset

from pipeline import dataset
from trainer.data.augmentation import random_view
from trainer.data.batches import Input
from trainer.data.loader import TrainBatches
from trainer.data.reading import Reader
from trainer.data.rows import open_rows
from trainer.data.sampler import AUGMENTATION, KeyedRandom, epoch_order

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a published data set with flow")
    parser.add_argument("--split", default="train", help="default train")
    parser.add_argument("--clips", type=int, default=40, help="clips to measure")
    parser.add_argument("--stream", default="both", help="rgb, flow or both (default both)")
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default 256)")
    parser.add_argument("--crop", type=int, default=224, help="pixels (default 224)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    input = Input(stream=options.stream, short_side=options.short_side, crop=options.crop)
    rows = open_rows([options.data], options.split, input.streams)
    reader = Reader(rows, input.streams)
    batches = iter(TrainBatches(rows, input, batch_size=1))
    published = dataset.open(options.data).shards.values()
    shards = [f"{options.data}/{shard.path}" for shard in published if shard.split == options.split]
    peer = plain(shards, input)
    names = ("loader", "bare decode", "plain webdataset", "to floats on the CPU")
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-2, options.clips):  # two to warm up
        epoch, step = divmod(number + 2, len(rows))
        row = int(epoch_order(0, epoch, len(rows))[step])
        members = reader.read(row)
        size = int(rows.frames[row]), int(rows.width[row]), int(rows.height[row])
        frames = random_view(input, *size, KeyedRandom(AUGMENTATION, 0, epoch, row)).frames

        def bare(members: dict[str, bytes] = members, frames: tuple[int, ...] = frames) -> int:
            return sum(bare_decode(data, min(frames), max(frames)) for data in members.values())

        turns = [
            ("bare decode", bare),
            ("loader", lambda: next(batches)),
            ("plain webdataset", lambda: next(peer)),
        ]
        taken = {name: cpu_time(work) for name, work in (turns if number % 2 else turns[::-1])}
        taken["bare decode"], count = taken["bare decode"]
        taken["loader"], batch = taken["loader"]
        taken["plain webdataset"] = taken["plain webdataset"][0]
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
    for name in ("bare decode", "plain webdataset"):
        ratios = [a / b for a, b in zip(times["loader"], times[name], strict=True)]
        print(f"loader / {name}: {statistics.median(ratios):.2f} (median of the pairs)")


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


def plain(shards: list[str], input: Input) -> Iterator[list[torch.Tensor]]:
    """Samples of plain webdataset over and over: uint8 (3, T, crop, crop), and flow's (2, T, crop, crop).

    Of the clip's whole height and of a square in its middle; where clips are published larger than
    `input.short_side` nothing is resized, which the loader would do.
    """
    suffixes = ["mp4", "flow.mp4"] if "flow" in input.streams else ["mp4"]
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).to_tuple(*suffixes)
    for members in samples.repeat():
        start, tensors = -1, []
        for data in members:
            with av.open(io.BytesIO(data)) as container:
                stream = container.streams.video[0]
                stream.thread_count, stream.thread_type = 1, "NONE"
                start = random.randint(0, max(0, stream.frames - input.frames)) if start < 0 else start
                container.seek(round(start / 25 / stream.time_base), stream=stream)
                pictures: list[np.ndarray] = []
                for frame in container.decode(stream):
                    if round(frame.pts * stream.time_base * 25) >= start:
                        flow = data is not members[0]
                        pictures.append(frame.to_ndarray(format="gray" if flow else "rgb24"))
                    if len(pictures) == input.frames:
                        break
            tensors.append(_middle(torch.from_numpy(np.stack(pictures)), input.crop))
        yield tensors


def _middle(frames: torch.Tensor, crop: int) -> torch.Tensor:
    """(T, H, W, 3) of RGB or (T, 2 H, W) of flow, u above v -> (channels, T, crop, crop)."""
    if frames.ndim == 3:
        frames = frames.unflatten(1, (2, -1)).permute(0, 2, 3, 1)
    top, left = (frames.shape[1] - crop) // 2, (frames.shape[2] - crop) // 2
    return frames[:, top : top + crop, left : left + crop].permute(3, 0, 1, 2).contiguous()


def cpu_time(work: Callable[[], T]) -> tuple[float, T]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


if __name__ == "__main__":
    main()
