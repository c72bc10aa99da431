"""Optical flow beside its peers, in one run: ``python benchmarks/flow.py [--clips FOLDER] [--pairs N]``.

Ours, OpenCV's DualTVL1 with the same parameters, DIS and Farneback, one thread each, interleaved pair by
pair on real footage at 340x256: milliseconds of processor time a pair, endpoint error to DualTVL1, and
endpoint error to the truth on synthetic sequences. ``--only coding`` measures flow as video, ``--only
clip`` the core seconds of whole 10 s clips, ``--only limits`` the kernel beside the machine's limits.
``NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma`` compiles ours for AVX2. Tables go to standard
output, a plot to ``benchmarks/results/flow.png``. Claims: at least 45 times faster with AVX-512 and 20
with AVX2; error at most 0.01 px in the mean and 0.06 px at the 99th percentile.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import whole_clip

from pipeline.flow import TVL1, coding, tvl1_pairs
from pipeline.flow.solver import Solver

WIDTH, HEIGHT = 340, 256
RESULTS = Path(__file__).parent / "results"
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def frames_of(path: Path, count: int, start: int) -> list[np.ndarray]:
    """`count` consecutive gray frames from frame `start` on, at 340x256."""
    import av

    with av.open(str(path)) as container:
        pictures = itertools.islice(container.decode(video=0), start, start + count)
        planes = [picture.reformat(WIDTH, HEIGHT, "gray").to_ndarray() for picture in pictures]
        return [np.ascontiguousarray(plane) for plane in planes]


def clips_in(folder: Path) -> list[Path]:
    """Real clips that decode; a damaged one is left out."""
    return [path for path in sorted(folder.iterdir()) if "corrupt" not in path.name]


def peers() -> dict[str, Method]:
    """OpenCV's methods, as they come."""
    dual = cv2.optflow.DualTVL1OpticalFlow_create()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return {
        "DualTVL1": lambda a, b: dual.calc(a, b, None),
        "DIS medium": lambda a, b: dis.calc(a, b, None),
        "Farneback": lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0),
    }


def timed(function: Callable, *arguments) -> tuple[float, np.ndarray]:
    """Processor milliseconds of this thread, and the result."""
    start = time.thread_time()
    result = function(*arguments)
    return 1e3 * (time.thread_time() - start), result


def pairs_of(clips: list[Path], pairs: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Runs of three frames, spread over each clip: the flow of the last two is what is timed."""
    for path in clips:
        for start in np.linspace(5, 145, pairs).astype(int):
            frames = frames_of(path, 3, start)
            if len(frames) == 3:
                yield path.stem, frames


def measure_real(clips: list[Path], pairs: int) -> dict[str, dict[str, np.ndarray]]:
    """Processor time and error of every method on every pair, interleaved.

    Ours is timed as it runs in a clip, where the earlier frame's pyramid is there already.
    """
    solver = Solver(WIDTH, HEIGHT, TVL1())
    earlier, later = solver.empty_pyramid(), solver.empty_pyramid()
    times: dict[str, list[float]] = {"ours": []} | {name: [] for name in peers()}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in times}
    names: list[str] = []
    methods = peers()
    solver.fill(np.zeros((HEIGHT, WIDTH), np.uint8), earlier)
    solver.relax(earlier, earlier)

    def ours(frame: np.ndarray) -> np.ndarray:
        solver.fill(frame, later)
        return solver.solve(earlier, later)

    for name, (_, a, b) in pairs_of(clips, pairs):
        solver.fill(a, earlier)
        flows = {}
        spent, flows["ours"] = timed(ours, b)
        times["ours"].append(spent)
        for method, function in methods.items():
            spent, flows[method] = timed(function, a, b)
            times[method].append(spent)
        for method, flow in flows.items():
            errors[method].append(np.linalg.norm(flow - flows["DualTVL1"], axis=-1).ravel())
        names.append(name)
    return {
        method: {"ms": np.array(times[method]), "error": np.stack(errors[method]), "clip": np.array(names)}
        for method in times
    }


def print_real(measured: dict[str, dict[str, np.ndarray]]) -> None:
    dual = measured["DualTVL1"]["ms"]
    print(f"\n{len(dual)} real pairs at {WIDTH}x{HEIGHT}, one thread, processor time")
    print(f"{'method':<12}{'ms median':>10}{'ratio median':>14}{'EPE mean':>10}{'EPE p99':>10}")
    for method, values in measured.items():
        ratio, error = np.median(dual / values["ms"]), values["error"]
        print(
            f"{method:<12}{np.median(values['ms']):>10.1f}{ratio:>14.1f}"
            f"{error.mean():>10.4f}{np.percentile(error, 99):>10.4f}"
        )
    for clip in np.unique(measured["ours"]["clip"]):
        mine = measured["ours"]["clip"] == clip
        ratios = dual[mine] / measured["ours"]["ms"][mine]
        print(
            f"  {clip}: ours {np.median(measured['ours']['ms'][mine]):.1f} ms, ratio {np.median(ratios):.1f}"
        )


def synthetic() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, prev, next, true flow) of known motions of a texture of many scales."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(HEIGHT + 80, WIDTH + 80)))
    fy, fx = np.fft.fftfreq(HEIGHT + 80)[:, None], np.fft.rfftfreq(WIDTH + 80)[None]
    texture = np.fft.irfft2(spectrum / (0.01 + np.hypot(fx, fy)) ** 1.3, (HEIGHT + 80, WIDTH + 80))
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    cx, cy = x - WIDTH / 2, y - HEIGHT / 2

    def render(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        return cv2.remap(texture, column + 40, row + 40, cv2.INTER_CUBIC)

    angle, zoom = np.float32(np.deg2rad(2)), np.float32(1.03)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = (cos * cx - sin * cy + WIDTH / 2, sin * cx + cos * cy + HEIGHT / 2)
    back = (cos * cx + sin * cy + WIDTH / 2, -sin * cx + cos * cy + HEIGHT / 2)
    motions = {
        "translation": ((x + 3.3, y - 1.6), (x - 3.3, y + 1.6)),
        "rotation": (turned, back),
        "zoom": tuple((cx * by + WIDTH / 2, cy * by + HEIGHT / 2) for by in (zoom, 1 / zoom)),
    }
    prev = render(x, y)
    for name, (forward, source) in motions.items():
        truth = np.stack([forward[0] - x, forward[1] - y], -1)
        yield name, prev.clip(0, 255).astype(np.uint8), render(*source).clip(0, 255).astype(np.uint8), truth
    inside = (np.abs(cx) < 60) & (np.abs(cy) < 50)
    moved = (np.abs(cx - 5) < 60) & (np.abs(cy) < 50)
    front = 255 - texture[::-1]
    patch = cv2.remap(front, x + 40, y + 40, cv2.INTER_CUBIC)
    patch_moved = cv2.remap(front, x + 35, y + 40, cv2.INTER_CUBIC)
    truth = np.where(inside[..., None], [5.0, 0.0], [0.0, 0.0])
    a, b = np.where(inside, patch, prev), np.where(moved, patch_moved, prev)
    yield "occluder", a.clip(0, 255).astype(np.uint8), b.clip(0, 255).astype(np.uint8), truth


def print_synthetic() -> None:
    methods = {"ours": lambda a, b: next(iter(tvl1_pairs((a, b))))} | peers()
    print("\nmean endpoint error to the truth, pixels")
    print(f"{'sequence':<14}" + "".join(f"{name:>12}" for name in methods))
    for name, a, b, truth in synthetic():
        errors = [np.linalg.norm(function(a, b) - truth, axis=-1).mean() for function in methods.values()]
        print(f"{name:<14}" + "".join(f"{error:>12.3f}" for error in errors))


def print_coding(clips: list[Path], count: int) -> None:
    """Flow as H.264, as pairs of JPEG (quality 95) and as PNG: size, error added, time."""
    from pipeline.media.clip import ffmpeg_binary

    print(f"\nflow stored, {count} frames a clip scaled to 250: MB, endpoint error added (px), ms a frame")
    print(f"{'clip':<24}{'H.264':>22}{'JPEG pairs':>22}{'PNG pairs':>22}")
    for path in clips:
        flow = np.stack(list(tvl1_pairs(frames_of(path, count + 1, 30))))
        bounded = flow.clip(-20, 20)
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "flow.mp4"
            before = whole_clip.children_seconds()
            spent, _ = timed(lambda f, o: coding.encode(f, o, ffmpeg=ffmpeg_binary(), timeout=600), flow, out)
            spent += 1e3 * (whole_clip.children_seconds() - before)
            cells.append((out.stat().st_size, coding.decode(out), spent))
        for extension, quality in ((".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]), (".png", [])):
            spent, files = timed(_pictures, flow, extension, quality)
            back = np.stack([cv2.imdecode(file, cv2.IMREAD_GRAYSCALE) for file in files])
            back = coding.dequantise(np.moveaxis(back.reshape(-1, 2, HEIGHT, WIDTH), 1, -1))
            cells.append((sum(map(len, files)), back, spent))
        texts = [
            f"{size * 250 / len(flow) / 1e6:.2f} / "
            f"{np.linalg.norm(back - bounded, axis=-1).mean():.3f} / {spent / len(flow):.1f}"
            for size, back, spent in cells
        ]
        print(f"{path.stem:<24}" + "".join(f"{text:>22}" for text in texts))


def _pictures(flow: np.ndarray, extension: str, options: list[int]) -> list[np.ndarray]:
    planes = np.moveaxis(coding.quantise(flow), -1, 1).reshape(-1, HEIGHT, WIDTH)
    return [cv2.imencode(extension, plane, options)[1] for plane in planes]


def print_whole_clips(clips: list[Path]) -> None:
    """Core seconds from a source to both videos, scaled to a clip of 250 frames and 340x256."""
    print("\nwhole clip, source to both videos: core seconds, as they are and for 250 frames of 340x256")
    for path in clips:
        spent = whole_clip.measure(path)
        share = spent.planes * spent.width * spent.height / (251 * WIDTH * HEIGHT)
        shape = f"{spent.frames} frames of {spent.width}x{spent.height}"
        scaled = spent.core_seconds / share
        print(f"{path.stem:<24}{shape:<26}{spent.core_seconds:>6.1f} s{scaled:>8.1f} s")


def print_limits(clips: list[Path]) -> None:
    """Nanoseconds a pixel and iteration, beside what the roots and divisions alone would take."""
    from flow_limits import measure

    for name, value in measure(frames_of(clips[0], 2, 40)).items():
        print(f"{name:<64}{value:>8.3f}")


def plot(measured: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Milliseconds a pair against error to DualTVL1, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for method, values in measured.items():
        if method == "DualTVL1":
            axes.axvline(np.median(values["ms"]), color="gray", linestyle="--", label="DualTVL1")
            continue
        axes.scatter(np.median(values["ms"]), values["error"].mean(), s=60, label=method)
    axes.set(xscale="log", yscale="log", xlabel="processor time a pair, ms (340x256, one thread)")
    axes.set_ylabel("mean distance to DualTVL1, px")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips",
        type=Path,
        default=os.environ.get("QUOVADIS_TEST_CLIPS"),
        help="folder of real videos (default: QUOVADIS_TEST_CLIPS)",
    )
    parser.add_argument("--pairs", type=int, default=20, help="pairs of each clip")
    parser.add_argument(
        "--only", choices=["real", "synthetic", "coding", "clip", "limits"], help="this part alone"
    )
    options = parser.parse_args()
    if options.clips is None:
        parser.error("name a folder of real footage with --clips")
    cv2.setNumThreads(1)
    clips = clips_in(options.clips)
    if options.only in (None, "real"):
        measured = measure_real(clips, options.pairs)
        print_real(measured)
        plot(measured, RESULTS / "flow.png")
    if options.only in (None, "synthetic"):
        print_synthetic()
    if options.only in (None, "coding"):
        print_coding(clips, 64)
    if options.only in (None, "clip"):
        print_whole_clips(clips)
    if options.only in (None, "limits"):
        print_limits(clips)


if __name__ == "__main__":
    main()
