"""The picture that is laid over a video: what was recognised, with probabilities as bars, and when."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _BAR = (0, 0, 0, 165), (255, 255, 255, 255), (74, 144, 217, 235)
_LINES = 18  # of text that the short side would hold


def label(size: tuple[int, int], seconds: tuple[float, float], classes: Sequence[tuple[str, float]]) -> bytes:
    """A box in the lower left corner: the time, and a line a class, the most probable first.

    Returns RGBA, height * width * 4 bytes, for a video of `size` (width, height), pixels. `seconds` are from
    when to when it holds.
    """
    width, height = size
    line = max(12, min(size) // _LINES)
    font = ImageFont.load_default(round(0.72 * line))  # comes with Pillow; letters of European languages
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    margin, box = line // 2, min(width, 18 * line)
    top = height - (len(classes) + 1) * line - 2 * margin
    draw.rectangle((0, top, box, height), fill=_PAPER)
    draw.text((margin, top + margin), f"{_clock(seconds[0])} to {_clock(seconds[1])}", font=font, fill=_INK)
    for number, (name, probability) in enumerate(classes, 1):
        y = top + margin + number * line
        full = box - 2 * margin
        draw.rectangle((margin, y, margin + max(1, round(full * probability)), y + line - 2), fill=_BAR)
        text = _fitting(f"{probability:4.0%}  {name}", font, full - margin)
        draw.text((margin + margin // 2, y + 1), text, font=font, fill=_INK)
    return picture.tobytes()


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, or as much of it as has room."""
    shown = text
    while text and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}..."
    return shown


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds * 10), 600)
    return f"{minutes}:{rest // 10:02d}.{rest % 10}"
