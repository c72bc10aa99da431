"""The same solver in torch, for all pairs of a clip at once: ``device="cuda"``.

One function a step, as in the specification that the tests hold both backends to; every pair has its
own stopping rule, and a pair that has converged keeps its values while others go on. The bytes differ
from the CPU kernel's (another order of sums), so it is another recipe. Written without a GPU at hand:
it runs on CPU tensors in the tests, its speed on a GPU is unmeasured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.flow.pyramid import level_sizes
from pipeline.flow.recipe import TVL1

BATCH_PIXELS = 16 << 20  # pixels of all pairs in one batch: some 2 GB of fields


def solve_pairs(gray: np.ndarray, params: TVL1, device: str) -> np.ndarray:
    """Flow of every pair of uint8 frames (T, H, W), T at least 2: float32 (T - 1, H, W, 2), pixels.

    Raises ValueError where this torch has no such device.
    """
    try:
        frames = torch.from_numpy(gray).to(device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"flow cannot be computed on the device {device!r}: {reason}") from error
    size = max(1, BATCH_PIXELS // (gray.shape[1] * gray.shape[2]))
    starts = range(0, len(gray) - 1, size)
    with torch.inference_mode():
        parts = [_solve(frames[start : start + size + 1], params).cpu() for start in starts]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()


def _solve(frames: Tensor, params: TVL1) -> Tensor:
    """(n + 1, H, W) -> (n, 2, H, W), coarse to fine."""
    height, width = frames.shape[1:]
    pyramid, ratio = [frames], 1 / params.scale_step
    sizes = level_sizes(width, height, params.scales, params.scale_step)
    for size in sizes[1:]:
        pyramid.append(resize(pyramid[-1], size, (ratio, ratio)))
    flow = frames.new_zeros((len(frames) - 1, 2, *pyramid[-1].shape[1:]))
    for level, (width, height) in reversed(list(zip(pyramid, sizes, strict=True))):
        if flow.shape[2:] != (height, width):
            old = (flow.shape[3] / width, flow.shape[2] / height)
            flow = resize(flow, (width, height), old) * ratio
        flow = _solve_level(level[:-1], level[1:], flow, params)
    return flow


def _solve_level(first: Tensor, second: Tensor, flow: Tensor, params: TVL1) -> Tensor:
    """Warp and relax; the first frames and the second ones, (n, H, W) each."""
    planes = torch.stack([second, *gradient(second)], dim=1)
    dual = flow.new_zeros((*flow.shape[:2], 2, *flow.shape[2:]))
    for _ in range(params.warps):
        warped = sample_bicubic(planes, flow)
        normal, rho, limit = linearise(first, warped, flow, params)
        flow, dual = _relax(flow, dual, normal, rho, limit, params)
    return flow


def _relax(flow: Any, dual: Any, normal: Any, rho: Any, limit: Any, params: TVL1) -> tuple[Tensor, Tensor]:
    """Rounds of median filter and iterations; a pair takes part until it changes by less than epsilon.

    The pairs still at it are gathered into a smaller batch at every round, and held by a mask within.
    """
    target = params.epsilon**2 * flow.shape[2] * flow.shape[3]
    active = torch.arange(len(flow), device=flow.device)
    for _ in range(params.outer_iterations):
        u, p = flow[active], dual[active]
        n, r, most = normal[active], rho[active], limit[active]
        if params.median > 1:
            u = median(u)
        moving = torch.ones(len(u), dtype=torch.bool, device=u.device)
        for done in range(params.inner_iterations):
            new_u, new_p, change = iteration(u, p, n, r, most, params)
            hold = moving[:, None, None, None]
            u, p = torch.where(hold, new_u, u), torch.where(hold[..., None], new_p, p)
            moving = moving & (change > target)
            if done % 4 == 3 and not bool(moving.any()):  # asking stalls the device, so seldom
                break
        flow[active], dual[active] = u, p
        active = active[moving]
        if not len(active):
            break
    return flow, dual


def iteration(u: Tensor, q: Tensor, normal: Tensor, rho: Tensor, limit: Tensor, params: TVL1) -> Any:
    """One iteration of every pair, in the variables of `pipeline.flow.iterations`.

    Args:
        u, normal: (n, 2, H, W); q: (n, 2, 2, H, W), component, then direction; rho, limit: (n, H, W).

    Returns:
        the next u and q, and the sum over pixels of |u' - u|^2, (n,).
    """
    residual = (normal * u).sum(1) + rho
    residual = torch.minimum(torch.maximum(residual, -limit), limit)
    down = residual[:, None] * normal - params.tau * divergence(q)
    new = u - down
    dx, dy = new.diff(append=new[..., -1:]), new.diff(dim=-2, append=new[..., -1:, :])
    slope = torch.stack([dx, dy], dim=2)
    norm = (slope * slope).sum(2, keepdim=True).sqrt()
    return new, (q + slope) / (1 + params.tau / params.theta * norm), (down * down).sum((1, 2, 3))


def divergence(q: Tensor) -> Tensor:
    """(n, 2, 2, H, W) -> (n, 2, H, W): backward differences, zero across the border."""
    x, y = q[:, :, 0], q[:, :, 1]
    return x - functional.pad(x[..., :-1], (1, 0)) + y - functional.pad(y[..., :-1, :], (0, 0, 1, 0))


def linearise(first: Tensor, warped: Tensor, flow: Tensor, params: TVL1) -> tuple[Tensor, Tensor, Tensor]:
    """g / |g|, the constant part of the residual over |g|, and lambda theta |g|, of `warped` (n, 3, H, W)."""
    image, g = warped[:, 0], warped[:, 1:]
    size = (g * g).sum(1).clamp_min(1e-10).sqrt()
    rho = image - (g * flow).sum(1) - first
    return g / size[:, None], rho / size, params.lambda_ * params.theta * size


def gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of (n, H, W); at an edge the pixel itself stands in for the missing one."""
    wide = torch.cat([image[..., :1], image, image[..., -1:]], -1)
    tall = torch.cat([image[..., :1, :], image, image[..., -1:, :]], -2)
    return (wide[..., 2:] - wide[..., :-2]) / 2, (tall[..., 2:, :] - tall[..., :-2, :]) / 2


def sample_bicubic(planes: Tensor, flow: Tensor) -> Tensor:
    """(n, c, H, W) read at each pixel's place plus its flow; A = -0.75, zero outside the picture."""
    n, channels, height, width = planes.shape
    border = 6
    padded = functional.pad(planes, (border,) * 4)
    stride = width + 2 * border
    flat = padded.reshape(n, channels, -1)
    x = (torch.arange(width, device=flow.device) + flow[:, 0]).clamp(-4, width + 2)
    y = (torch.arange(height, device=flow.device)[:, None] + flow[:, 1]).clamp(-4, height + 2)
    column, row = x.floor(), y.floor()
    start = (row.long() + border - 1) * stride + column.long() + border - 1
    across, down = cubic_weights(x - column), cubic_weights(y - row)
    value = torch.zeros_like(planes)
    for j, weight_y in enumerate(down):
        line = torch.zeros_like(planes)
        for i, weight_x in enumerate(across):
            index = (start + j * stride + i).reshape(n, 1, -1).expand(-1, channels, -1)
            line = line + weight_x[:, None] * flat.gather(2, index).reshape(planes.shape)
        value = value + weight_y[:, None] * line
    return value


def cubic_weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2 from the one whose distance is t, 0 <= t < 1."""
    s, r, a = 1 - t, t + 1, -0.75
    c0 = ((a * r - 5 * a) * r + 8 * a) * r - 4 * a
    c1 = ((a + 2) * t - (a + 3)) * t * t + 1
    c2 = ((a + 2) * s - (a + 3)) * s * s + 1
    return c0, c1, c2, 1 - c0 - c1 - c2


def resize(planes: Tensor, size: tuple[int, int], ratio: tuple[float, float]) -> Tensor:
    """The last two dimensions to (width, height): bilinear, half-pixel centres, clamped."""

    def axis(planes: Tensor, dim: int, count: int, scale: float) -> Tensor:
        old = planes.shape[dim]
        steps = torch.arange(count, device=planes.device, dtype=torch.float64)
        place = ((steps + 0.5) * scale - 0.5).clamp(0, old - 1)
        low = place.floor().long()
        weight = (place - low).to(planes.dtype)
        a, b = planes.index_select(dim, low), planes.index_select(dim, (low + 1).clamp(max=old - 1))
        return a + (weight[:, None] if dim == -2 else weight) * (b - a)

    return axis(axis(planes, -2, size[1], ratio[1]), -1, size[0], ratio[0])


def median(flow: Tensor) -> Tensor:
    """5x5 of (n, 2, H, W), edges replicated."""
    wide = functional.pad(flow, (2, 2, 2, 2), mode="replicate")
    windows = wide.unfold(2, 5, 1).unfold(3, 5, 1).reshape(*flow.shape, 25)
    return windows.median(-1).values
