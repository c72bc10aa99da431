"""Draws and writes the demo's videos: eight motions over textures in which no single frame tells the motion.

Owns the pictures and the video files for the lists in ``manifests/demo-*.csv``; serving, preparing and
training are done by others. A video's bytes depend on (seed, youtube_id, its rows) and the encoder.

The texture is a sum of octaves of value noise (Perlin, "An Image Synthesizer", SIGGRAPH 1985) under an
envelope that is fixed on the screen, as in Shepard's endless scale (JASA 1964): octaves that zooming
makes too coarse fade out while finer ones fade in. So every frame of every class has one distribution,
at any time, whatever moved before it; and the noise has no border that could come into sight.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numba
import numpy as np

CLASSES = (
    "moving down",
    "moving left",
    "moving right",
    "moving up",
    "turning clockwise",
    "turning counterclockwise",
    "zooming in",
    "zooming out",
)
"""In the order of their indices; to "zoom in" makes things larger, "clockwise" is as seen on the screen."""

RATES = ("12", "24", "25", "30000/1001", "30", "50")  # frames a second
CONTAINERS = ("mp4", "mp4", "webm", "mkv", "ts")  # mp4 twice: it is the commonest
SHAPES = ((1, 1), (4, 3), (3, 4), (5, 4), (4, 5))  # width to height
SHORT_SIDES = (256, 288, 320)  # pixels
SPEEDS = (0.45, 0.75)  # short sides a second, at half a short side from the centre for zooms and turns
MARGIN = 0.6  # seconds that a video goes on after its last clip
MISSING, TRUNCATED = "missing-", "truncated-"  # what an id may begin with
OUT_OF_RANGE, CUT_OFF = "pastend-", "cutoff-"

_DRAWN_SIDE = 128  # pixels of the short side as drawn; ffmpeg enlarges it
_LATTICE = 128  # noise values a side, periodic; a power of two
_COARSEST = 1.5  # noise cells a short side, of the coarsest octave in sight
_OCTAVES = 4  # in sight at a time
_LENGTH_OF_SPOILED = 3.0  # seconds, of a video whose rows ask for what it does not have


@dataclass(frozen=True)
class Row:
    """A well-formed row of the demo's lists: one clip, `start` and `end` in seconds."""

    youtube_id: str
    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Motion:
    """Motion in one second; one of the four is not zero.

    `right` and `down` are in short sides, `zoom` in octaves (positive makes larger), `turn` in radians,
    positive clockwise on the screen.
    """

    right: float = 0.0
    down: float = 0.0
    zoom: float = 0.0
    turn: float = 0.0


@dataclass(frozen=True)
class Texture:
    """Appearance: `lattice` float32 noise (n, n), `offsets` float64 (octaves, 2), `palette` float32 (4, 3).

    `angle` in radians and `octave` in [0, 1) say how it lies on the screen at time 0.
    """

    lattice: np.ndarray
    offsets: np.ndarray
    palette: np.ndarray
    gain: float
    angle: float
    octave: float


def rows(path: Path) -> list[Row]:
    """The rows of a list that describe a video; the malformed ones are passed over."""
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                start, end = float(row["time_start"]), float(row["time_end"])
            except ValueError:
                continue
            found.append(Row(row["youtube_id"], row["label"], start, end))
    return found


def write(lists: list[Path], folder: Path, seed: int, workers: int | None = None) -> int:
    """Write the video of every id in `lists` that is not there yet; returns how many were written.

    Args:
        lists: manifests in Kinetics' format.
        folder: gets ``<youtube_id>.<container>``; made if absent.
        seed: other numbers give other textures, speeds, rates, sizes and containers to the same lists.
        workers: encoders at a time (default: one a core).
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, list[Row]] = {}
    for path in lists:
        for row in rows(path):
            wanted.setdefault(row.youtube_id, []).append(row)
    there = {path.stem for path in folder.iterdir() if not path.name.endswith(".part")}
    todo = [clips for name, clips in wanted.items() if name not in there and not name.startswith(MISSING)]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        list(pool.map(lambda clips: _write_video(clips, folder, seed), todo))
    return len(todo)


def motion(label: str, speed: float) -> Motion:
    """The motion of a class; `speed` as in SPEEDS."""
    return {
        "moving down": Motion(down=speed),
        "moving left": Motion(right=-speed),
        "moving right": Motion(right=speed),
        "moving up": Motion(down=-speed),
        "turning clockwise": Motion(turn=2 * speed),
        "turning counterclockwise": Motion(turn=-2 * speed),
        "zooming in": Motion(zoom=2 * speed / math.log(2)),
        "zooming out": Motion(zoom=-2 * speed / math.log(2)),
    }[label]


def texture(random: np.random.Generator) -> Texture:
    """A texture drawn at random; nothing of the class goes into it."""
    return Texture(
        lattice=random.standard_normal((_LATTICE, _LATTICE)).astype(np.float32),
        offsets=random.uniform(0, _LATTICE, (64, 2)),
        palette=_palette(random),
        gain=random.uniform(0.9, 1.1),
        angle=random.uniform(0, 2 * math.pi),
        octave=random.uniform(0, 1),
    )


def _palette(random: np.random.Generator) -> np.ndarray:
    """Four colours from dark to light (or light to dark), slightly tinted; float32 (4, 3)."""
    grey = np.linspace(20, 235, 4)[:: random.choice((-1, 1))]
    return np.clip(grey[:, None] + random.normal(0, 12, (4, 3)), 0, 255).astype(np.float32)


def draw(texture: Texture, motion: Motion, time: float, width: int, height: int) -> np.ndarray:
    """The picture at `time` seconds: uint8 (height, width, 3) RGB."""
    picture = np.empty((height, width, 3), np.uint8)
    angle = texture.angle - motion.turn * time
    level = texture.octave + motion.zoom * time
    shift = (motion.right * time, motion.down * time)
    _draw(texture.lattice, texture.offsets, texture.palette, texture.gain, angle, level, shift, picture)
    return picture


@numba.njit(nogil=True, cache=True, fastmath=True)
def _draw(lattice, offsets, palette, gain, angle, level, shift, picture):  # pragma: no cover - compiled
    height, width, _ = picture.shape
    side = min(height, width)
    mask = lattice.shape[0] - 1
    first = math.ceil(level)  # the coarsest octave in sight
    weights, steps, starts = np.empty(_OCTAVES), np.empty((_OCTAVES, 2)), np.empty((_OCTAVES, 2))
    for i in range(_OCTAVES):
        seen = first + i - level  # 0 to _OCTAVES: how fine it is on the screen
        weights[i] = gain * math.sin(math.pi * seen / _OCTAVES)
        scale = _COARSEST * 2.0**seen  # noise cells a short side
        steps[i] = scale * math.cos(angle), scale * math.sin(angle)
        starts[i] = offsets[(first + i) % offsets.shape[0]]
    for y in range(height):
        down = (y + 0.5 - height / 2) / side - shift[1]
        for x in range(width):
            right = (x + 0.5 - width / 2) / side - shift[0]
            value = np.float32(0.0)
            for i in range(_OCTAVES):
                u = steps[i, 0] * right - steps[i, 1] * down + starts[i, 0]
                v = steps[i, 1] * right + steps[i, 0] * down + starts[i, 1]
                left, above = math.floor(u), math.floor(v)
                p, q = np.float32(u - left), np.float32(v - above)
                p, q = p * p * (3 - 2 * p), q * q * (3 - 2 * q)
                upper, lower = lattice[above & mask], lattice[(above + 1) & mask]
                j, k = left & mask, (left + 1) & mask
                top = upper[j] + p * (upper[k] - upper[j])
                bottom = lower[j] + p * (lower[k] - lower[j])
                value += np.float32(weights[i]) * (top + q * (bottom - top))
            place = 3.0 / (1.0 + math.exp(-2.0 * value))  # 0 to 3, along the palette
            step = min(int(place), 2)
            part = place - step
            for channel in range(3):
                low, high = palette[step, channel], palette[step + 1, channel]
                picture[y, x, channel] = np.uint8(low + part * (high - low))


def _write_video(clips: list[Row], folder: Path, seed: int) -> None:
    """Write the one video that all `clips` are taken from, under a temporary name until it is whole."""
    name = clips[0].youtube_id
    random = np.random.default_rng(list(hashlib.sha256(f"{seed}/{name}".encode()).digest()))
    seen, moves = texture(random), motion(clips[0].label, random.uniform(*SPEEDS))
    rate, container = str(random.choice(RATES)), str(random.choice(CONTAINERS))
    (across, down), short = SHAPES[random.integers(len(SHAPES))], int(random.choice(SHORT_SIDES))
    length = max(clip.end for clip in clips) + MARGIN
    if name.startswith((OUT_OF_RANGE, CUT_OFF)):
        length = _LENGTH_OF_SPOILED
    if name.startswith(TRUNCATED):
        container = "mp4"  # its index stands at the end, so that a part of it is no video
    top, bottom = (int(x) for x in (rate + "/1").split("/")[:2])
    drawn = [2 * round(_DRAWN_SIDE * x / min(across, down) / 2) for x in (across, down)]
    size = [2 * round(short * x / min(across, down) / 2) for x in (across, down)]

    def pictures() -> Iterator[np.ndarray]:
        for i in range(math.ceil(length * top / bottom)):
            yield draw(seen, moves, i * bottom / top, *drawn)

    path = folder / f"{name}.{container}"
    partial = folder / f"{path.name}.part"
    _encode(pictures(), drawn, size, rate, container, partial)
    if name.startswith(TRUNCATED):
        os.truncate(partial, partial.stat().st_size * 2 // 5)
    partial.rename(path)


def _encode(
    pictures: Iterator[np.ndarray], drawn: list[int], size: list[int], rate: str, container: str, path: Path
) -> None:
    """Write RGB `pictures` of `drawn` (width, height) as a video of `size`. RuntimeError: ffmpeg's words."""
    codec = {
        "webm": "-c:v libvpx -deadline realtime -cpu-used 8 -b:v 1500k -g 48",
        "mp4": "-c:v libx264 -preset veryfast -crf 20 -g 48 -bf 2",
        "mkv": "-c:v mpeg4 -q:v 4 -g 24",
        "ts": "-c:v libx264 -preset veryfast -crf 20 -g 24",
    }[container]
    muxer = {"mkv": "matroska", "ts": "mpegts"}.get(container, container)
    options = (
        f"-hide_banner -loglevel error -nostdin -y -f rawvideo -pix_fmt rgb24 -s {drawn[0]}x{drawn[1]} "
        f"-r {rate} -i pipe:0 -vf scale={size[0]}:{size[1]}:flags=bicubic,format=yuv420p "
        f"-threads 1 {codec} -f {muxer}"
    )
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *options.split(), os.fspath(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin
    assert process.stderr
    try:
        for picture in pictures:
            process.stdin.write(picture)
        process.stdin.close()
    except BrokenPipeError:
        pass  # its exit status and words say why
    except BaseException:
        process.kill()
        raise
    finally:
        words = process.stderr.read().decode("utf-8", "replace").strip()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"ffmpeg could not write {path}: {words or process.returncode}")
