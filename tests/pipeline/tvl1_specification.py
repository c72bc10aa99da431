"""TV-L1 written for reading: plain NumPy in float64, one function a step, nothing fast.

The kernels of `pipeline.flow` are held against this, step by step. Equations are those of Sanchez,
Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow Estimation", IPOL 2013; order of steps, borders and
stopping rule those of OpenCV's DualTVL1. Arrays are (H, W); x is the column.
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.recipe import TVL1


def resize(image: np.ndarray, width: int, height: int, ratio: tuple[float, float]) -> np.ndarray:
    """Bilinear, half-pixel centres, the coordinate clamped; `ratio` is old over new size, x then y."""

    def sample(lines: np.ndarray, count: int, scale: float) -> np.ndarray:
        position = np.clip((np.arange(count) + 0.5) * scale - 0.5, 0, len(lines) - 1)
        low = np.minimum(np.floor(position).astype(int), max(len(lines) - 2, 0))
        high = np.minimum(low + 1, len(lines) - 1)
        weight = (position - low)[:, None]
        return (1 - weight) * lines[low] + weight * lines[high]

    return sample(sample(image, height, ratio[1]).T, width, ratio[0]).T


def gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences; at an edge the pixel itself stands in for the missing neighbour."""
    wide, tall = np.pad(image, ((0, 0), (1, 1)), "edge"), np.pad(image, ((1, 1), (0, 0)), "edge")
    return (wide[:, 2:] - wide[:, :-2]) / 2, (tall[2:] - tall[:-2]) / 2


def sample_bicubic(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Keys' kernel with A = -0.75, zero outside the picture."""

    def weight(t: np.ndarray) -> np.ndarray:
        a, t = -0.75, np.abs(t)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    height, width = image.shape
    value = np.zeros(x.shape)
    for j in range(-1, 3):
        for i in range(-1, 3):
            column, row = np.floor(x).astype(int) + i, np.floor(y).astype(int) + j
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = np.where(inside, image[row.clip(0, height - 1), column.clip(0, width - 1)], 0)
            value += weight(x - column) * weight(y - row) * pixel
    return value


def linearise(first: np.ndarray, second: np.ndarray, u: np.ndarray):
    """Gradient of the warped second frame and the constant part of the residual; u is (2, H, W)."""
    rows, columns = np.mgrid[: first.shape[0], : first.shape[1]]
    x, y = columns + u[0], rows + u[1]
    g = np.stack([sample_bicubic(plane, x, y) for plane in gradient(second)])
    return g, sample_bicubic(second, x, y) - (g * u).sum(0) - first


def divergence(p: np.ndarray) -> np.ndarray:
    """Backward differences of one component's dual variable p (2, H, W), zero across the border."""
    return np.diff(p[0], axis=1, prepend=0) + np.diff(p[1], axis=0, prepend=0)


def forward_gradient(u: np.ndarray) -> np.ndarray:
    """Forward differences (2, H, W) of one component, zero at the last column and row."""
    return np.stack([np.diff(u, axis=1, append=u[:, -1:]), np.diff(u, axis=0, append=u[-1:])])


def iteration(u: np.ndarray, p: np.ndarray, g: np.ndarray, rho_c: np.ndarray, params: TVL1):
    """One fixed-point iteration: u (2, H, W), p (2, 2, H, W) -> both, and the sum of squared updates."""
    limit = params.lambda_ * params.theta
    size = np.maximum((g * g).sum(0), 1e-10)
    rho = (g * u).sum(0) + rho_c
    v = u + np.clip(-rho / size, -limit, limit) * g
    new = v + params.theta * np.stack([divergence(p[0]), divergence(p[1])])
    slope = np.stack([forward_gradient(new[0]), forward_gradient(new[1])])
    norm = np.sqrt((slope**2).sum(1, keepdims=True))
    step = params.tau / params.theta
    return new, (p + step * slope) / (1 + step * norm), ((new - u) ** 2).sum()


def median(u: np.ndarray) -> np.ndarray:
    """5x5, edges replicated."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(u, 2, "edge"), (5, 5))
    return np.median(windows, axis=(2, 3))


def level_sizes(width: int, height: int, params: TVL1) -> list[tuple[int, int]]:
    """(width, height) of each level until a side falls below 16."""
    sizes = [(width, height)]
    while len(sizes) < params.scales:
        width, height = (int(np.rint(side * params.scale_step)) for side in sizes[-1])
        if min(width, height) < 16:
            break
        sizes.append((width, height))
    return sizes


def tvl1(prev: np.ndarray, next: np.ndarray, params: TVL1) -> np.ndarray:
    """Flow (H, W, 2) of two uint8 (H, W) frames."""
    sizes = level_sizes(prev.shape[1], prev.shape[0], params)
    first, second = [prev.astype(float)], [next.astype(float)]
    ratio = (1 / params.scale_step,) * 2
    for size in sizes[1:]:
        first.append(resize(first[-1], *size, ratio))
        second.append(resize(second[-1], *size, ratio))
    u = np.zeros((2, *first[-1].shape))
    for level in reversed(range(len(sizes))):
        width, height = sizes[level]
        if u.shape[1:] != (height, width):
            old = u.shape[2] / width, u.shape[1] / height
            u = np.stack([resize(plane, width, height, old) for plane in u]) / params.scale_step
        p = np.zeros((2, 2, height, width))
        for _ in range(params.warps):
            g, rho_c = linearise(first[level], second[level], u)
            error, target = np.inf, params.epsilon**2 * width * height
            for _ in range(params.outer_iterations):
                if error <= target:
                    break
                if params.median > 1:
                    u = np.stack([median(plane) for plane in u])
                for _ in range(params.inner_iterations):
                    u, p, error = iteration(u, p, g, rho_c, params)
                    if error <= target:
                        break
    return np.moveaxis(u, 0, -1)
