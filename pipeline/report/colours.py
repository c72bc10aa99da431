"""Shows optical flow in colours: direction is hue, length is saturation.

The wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011, as their
colorcode.cpp draws it (the Middlebury wheel).
"""

from __future__ import annotations

import numpy as np

from pipeline.flow import coding

_SEGMENTS = ((15, 0, 1), (6, 1, 0), (4, 1, 2), (11, 2, 1), (13, 2, 0), (6, 0, 2))
"""(steps, the channel that is full, the one that rises or falls): red, yellow, green, cyan, blue, magenta."""


def wheel() -> np.ndarray:
    """The 55 hues of the wheel, float64 (55, 3) RGB in [0, 1], from red by way of yellow and blue."""
    hues = np.zeros((sum(steps for steps, _, _ in _SEGMENTS), 3))
    start = 0
    for number, (steps, full, moving) in enumerate(_SEGMENTS):
        ramp = np.arange(steps) / steps
        hues[start : start + steps, full] = 1
        hues[start : start + steps, moving] = ramp if number % 2 == 0 else 1 - ramp
        start += steps
    return hues


def colour(flow: np.ndarray, longest: float) -> np.ndarray:
    """Colour-code flow.

    Args:
        flow: (..., 2) in pixels, u (to the right) before v (down).
        longest: pixels; a flow of this length has full colour, a longer one is darkened.

    Returns:
        uint8 (..., 3) RGB; no flow is white.
    """
    hues = wheel()
    u, v = flow[..., 0] / longest, flow[..., 1] / longest
    radius = np.hypot(u, v)[..., None]
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(hues) - 1)
    step = np.floor(place).astype(int)
    part = (place - step)[..., None]
    hue = (1 - part) * hues[step] + part * hues[(step + 1) % len(hues)]
    shade = np.where(radius <= 1, 1 - radius * (1 - hue), hue * 0.75)
    return (255 * shade).astype(np.uint8)


def code_table(longest: float) -> np.ndarray:
    """The colour of every flow that stored flow can hold: uint8 (256, 256, 3), by the codes of v and u."""
    steps = coding.dequantise(np.arange(256, dtype=np.uint8))
    v, u = np.meshgrid(steps, steps, indexing="ij")
    return colour(np.stack([u, v], axis=-1), longest)


def legend(side: int = 128) -> np.ndarray:
    """The wheel as a picture, uint8 (side, side, 3): each pixel has the colour of flow that points to it."""
    place = (np.arange(side) + 0.5) / side * 2.2 - 1.1
    flow = np.stack(np.meshgrid(place, place), axis=-1)
    picture = colour(flow, 1.0)
    picture[np.hypot(flow[..., 0], flow[..., 1]) > 1] = 255
    return picture
