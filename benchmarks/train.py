"""Clips a second of training, setting by setting, beside a plain fp32 contiguous I3D of ours.

    python benchmarks/train.py [--network i3d] [--frames 16 --crop 64 --batch 8] [--data ROOT --workers N]

Every setting trains a network of its own on one batch that stays on the device: forward, backward and a step
of SGD, by turns, so that all see the same machine. Prints the median step, its ratio to the plain one, and
the share of peak: three times the forward's multiply-adds over what one large matrix product of the same
type reaches here. With --data it also says how many clips a second the loader brings, and so which of the
two waits. A GPU is taken where there is one, with 64 frames of 224x224 unless told otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trainer import networks
from trainer.data.batches import Input
from trainer.data.loader import TrainBatches
from trainer.data.rows import open_rows
from trainer.stream_models import autocast

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """How a network is trained."""

    precision: str = "fp32"
    channels_last: bool = False
    fused: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        layout = "channels_last_3d" if self.channels_last else "contiguous"
        more = [name for name in ("fused", "compiled") if getattr(self, name)]
        return " ".join([self.precision, layout, *more])


PLAIN = Setting()
SETTINGS = (
    PLAIN,
    Setting(fused=True),
    Setting(channels_last=True),
    Setting("bf16"),
    Setting("bf16", channels_last=True),
    Setting("bf16", channels_last=True, fused=True),
    Setting("fp16", channels_last=True, fused=True),
    Setting("bf16", channels_last=True, fused=True, compiled=True),
)


class TrainedNetwork:
    """A network in one setting, and its next step."""

    def __init__(
        self, setting: Setting, name: str, size: tuple[int, int, int], batch: int, device: torch.device
    ):
        self.setting, self.device = setting, device
        memory = torch.channels_last_3d if setting.channels_last else torch.contiguous_format
        torch.manual_seed(0)
        network = networks.build(name, 400).to(device, memory_format=memory)
        self.network = torch.compile(network) if setting.compiled else network
        self.clips = torch.randn(batch, 3, *size).to(device, memory_format=memory)
        self.target = torch.randint(400, (batch,), device=device)
        parameters = list(network.parameters())
        self.optimiser = torch.optim.SGD(parameters, 1e-3, 0.9, weight_decay=1e-7, fused=setting.fused)
        self.scaler = torch.amp.GradScaler(device.type, enabled=setting.precision == "fp16")

    def step(self) -> float:
        """Seconds of one step."""
        begin = _now(self.device)
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device, self.setting.precision):
            loss = F.cross_entropy(self.network(self.clips).float(), self.target)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return _now(self.device) - begin


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    large = device.type == "cuda"
    frames, crop = options.frames or (64 if large else 16), options.crop or (224 if large else 64)
    batch = options.batch or (16 if large else 8)
    size = (frames, crop, crop)
    gmacs = networks.multiply_adds(networks.build(options.network, 400), (3, *size)) / 1e9
    print(f"{options.network}, {batch} clips of {frames}x{crop}x{crop}, {gmacs:.2f} GMACs, {_named(device)}")
    running: list[TrainedNetwork] = []
    for setting in SETTINGS:
        if (setting.compiled and not options.compile) or (setting.precision == "fp16" and not large):
            continue  # processors have no fp16 of their own
        try:
            training = TrainedNetwork(setting, options.network, size, batch, device)
            for _ in range(2):
                training.step()
            running.append(training)
        except RuntimeError as error:  # a type or compiler that this machine has not
            print(f"{setting!s:<40} not here: {str(error).splitlines()[0][:80]}")
    seconds: dict[Setting, list[float]] = {training.setting: [] for training in running}
    for _ in range(options.steps):
        for training in running:
            seconds[training.setting].append(training.step())
    peaks = {name: _peak(kind, device) for name, kind in TYPES.items()}
    print(f"{'':<40} {'clips/s':>8} {'times plain':>11} {'of peak':>8}")
    plain, best = statistics.median(seconds[PLAIN]), 0.0
    for setting, taken in seconds.items():
        median = statistics.median(taken)
        share = 6e9 * gmacs * batch / median / peaks[setting.precision]
        best = max(best, batch / median)
        print(f"{setting!s:<40} {batch / median:8.2f} {plain / median:11.2f} {share:8.1%}")
    if options.data:
        brought = _loader(options.data, frames, crop, options.workers, batch)
        waits = "training waits" if brought < best else "the loader waits"
        print(f"loader, {options.workers} workers: {brought:.1f} RGB clips a second: {waits}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="i3d", help="default i3d")
    parser.add_argument("--frames", type=int, help="of a clip (default 16, 64 on a GPU)")
    parser.add_argument("--crop", type=int, help="pixels (default 64, 224 on a GPU)")
    parser.add_argument("--batch", type=int, help="clips")
    parser.add_argument("--steps", type=int, default=7, help="of each setting (default 7)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="measure torch.compile too (default on a GPU: for a processor it takes minutes to begin)",
    )
    parser.add_argument("--data", help="a published data set, to measure the loader")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default 2)")
    return parser.parse_args()


def _peak(kind: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of the largest matrix product tried."""
    side = 8192 if device.type == "cuda" else 1024
    one, two = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        begin = _now(device)
        one @ two
        best = min(best, _now(device) - begin)
    return 2 * side**3 / best


def _loader(root: str, frames: int, crop: int, workers: int, batch: int) -> float:
    """Clips a second that loader processes bring, once they are running."""
    input = Input(frames=frames, crop=crop, short_side=max(crop, 256 * crop // 224))
    rows = open_rows([root], "train", input.streams)
    size = min(batch, len(rows))
    batches = iter(TrainBatches(rows, input, batch_size=size, workers=workers))
    for _ in range(2 * workers):
        next(batches)
    begin, count = time.perf_counter(), 10
    for _ in range(count):
        next(batches)
    return count * size / (time.perf_counter() - begin)


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
