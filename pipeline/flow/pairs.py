"""TV-L1 optical flow of frames: checks what it is given, and walks pairs, clips and threads.

The solver is Zach, Pock and Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", DAGM
2007, as written up by Sanchez, Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow Estimation", IPOL
2013, with the parameters and stopping rule of OpenCV's DualTVL1. Results are the same bytes on any
x86-64-v3 machine, whatever the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.flow.recipe import TVL1

DEFAULTS = TVL1()

_RGB_SHIFT = 15
_RGB_WEIGHTS = (9798, 19235, 3735)  # OpenCV's COLOR_RGB2GRAY: .299, .587, .114 in 15 bits


def tvl1(prev: np.ndarray, next: np.ndarray, params: TVL1 = DEFAULTS) -> np.ndarray:
    """Flow between two frames of one size, uint8 (H, W) or (H, W, 3 RGB).

    Returns:
        float32 (H, W, 2): how far each pixel of `prev` moves to the right and down, pixels.

    Raises:
        TypeError: a frame is no uint8 array. ValueError: a frame's shape is wrong, or the two differ.
    """
    (flow,) = tvl1_pairs((prev, next), params)
    return flow


def tvl1_pairs(frames: Iterable[np.ndarray], params: TVL1 = DEFAULTS) -> Iterator[np.ndarray]:
    """Flow of each frame to the one after it, in memory that does not grow with their number.

    Takes frames and raises as `tvl1`.

    Yields:
        float32 (H, W, 2), pixels, a new array each: one fewer than there are frames.
    """
    from pipeline.flow.solver import Solver

    grays = map(_gray, _checked(frames))
    first = next(grays, None)
    if first is None:
        return
    height, width = first.shape
    solver = Solver(width, height, params)
    earlier, later = solver.empty_pyramid(), solver.empty_pyramid()
    solver.fill(first, later)
    for gray in grays:
        earlier, later = later, earlier
        solver.fill(gray, later)
        yield solver.solve(earlier, later)


def tvl1_clip(
    frames: Iterable[np.ndarray], params: TVL1 = DEFAULTS, threads: int = 1, device: str = "cpu"
) -> np.ndarray:
    """Flow of every pair of a clip.

    Args:
        frames: T frames, uint8 (H, W) or (H, W, 3 RGB), T at least 1; an array (T, H, W) or (T, H, W, 3) will
            do, and so will what yields them.
        threads: threads that share the pairs; the bytes do not depend on it.
        device: "cpu", or a torch device such as "cuda" for the batched backend, whose bytes differ.

    Returns:
        float32 (T - 1, H, W, 2), pixels.

    Raises:
        TypeError: as for `tvl1`. ValueError: too, and for no frame or no thread.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    checked = list(_checked(frames))
    if not checked:
        raise ValueError("a clip needs at least one frame")
    pairs = len(checked) - 1
    if device != "cpu" and pairs:
        from pipeline.flow.batched import solve_pairs

        return solve_pairs(np.stack([_gray(frame) for frame in checked]), params, device)
    height, width = checked[0].shape[:2]
    flow = np.empty((pairs, height, width, 2), np.float32)

    def run(start: int, stop: int) -> None:
        for index, one in enumerate(tvl1_pairs(checked[start : stop + 1], params), start):
            flow[index] = one

    bounds = [pairs * k // threads for k in range(threads + 1)]
    shares = [(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    if len(shares) < 2:
        for share in shares:
            run(*share)
        return flow
    with ThreadPoolExecutor(len(shares)) as pool:
        for done in [pool.submit(run, *share) for share in shares]:
            done.result()
    return flow


def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames as they are, each looked at before it is used."""
    shape = None
    for index, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            kind = getattr(frame, "dtype", type(frame).__name__)
            raise TypeError(f"frame {index} must be a uint8 array, not {kind}")
        if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3) or 0 in frame.shape:
            raise ValueError(f"frame {index} must have shape (H, W) or (H, W, 3), not {frame.shape}")
        if shape is not None and frame.shape[:2] != shape:
            raise ValueError(f"frame {index} is {_size(frame.shape)}, the one before it {_size(shape)}")
        shape = frame.shape[:2]
        yield frame


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1::-1]))


def _gray(frame: np.ndarray) -> np.ndarray:
    """Contiguous luma: a gray frame itself, that of RGB equal to cv2.COLOR_RGB2GRAY."""
    if frame.ndim == 2:
        return np.ascontiguousarray(frame)
    weighted = np.full(frame.shape[:2], 1 << (_RGB_SHIFT - 1), np.int32)
    for channel, weight in enumerate(_RGB_WEIGHTS):
        weighted += weight * frame[..., channel].astype(np.int32)
    return (weighted >> _RGB_SHIFT).astype(np.uint8)


def device_class(device: str) -> str:
    """Which machines give the same flow bytes as this one: "x86-64-v3", "cuda" or "other"."""
    if device != "cpu":
        return "cuda" if device.startswith("cuda") else "other"
    import platform

    from llvmlite import binding

    if platform.machine() not in ("x86_64", "AMD64"):
        return "other"
    features = binding.get_host_cpu_features()
    wanted = ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
    return "x86-64-v3" if all(features.get(name) for name in wanted) else "other"
