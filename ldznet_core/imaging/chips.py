"""Chips: names on rounded, coloured grounds, as overlays and label maps show them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (22, 24, 28), (255, 255, 255)

# For Pillow before 10.1, which brings no font that scales: a file, or a name that it finds among those installed.
# Host programs that pin such a version say where theirs is.
older_font = "DejaVuSans.ttf"


@dataclass(frozen=True)
class Box:
    left: int
    top: int
    right: int
    bottom: int

    def meets(self, other: Box, gap: int = 3) -> bool:
        return (
            self.left < other.right + gap
            and other.left < self.right + gap
            and self.top < other.bottom + gap
            and other.top < self.bottom + gap
        )


def chip(canvas: Image.Image, place: Box, text: str, size: int, colour: tuple[int, int, int]) -> None:
    """A rounded rectangle with a soft shadow and centred text, black or white by the ground's luminance."""
    fine = 4  # Pillow draws without smoothing, so draw larger and shrink
    width, height = place.right - place.left, place.bottom - place.top
    stencil = Image.new("L", (width * fine, height * fine))
    ImageDraw.Draw(stencil).rounded_rectangle(
        (0, 0, width * fine - 1, height * fine - 1), height * fine * 0.32, fill=255
    )
    stencil = stencil.resize((width, height), Image.Resampling.LANCZOS)
    shadow = stencil.point(lambda value: value * 90 // 255)
    canvas.paste((0, 0, 0), (place.left + 1, place.top + 2), shadow)
    canvas.paste(colour, (place.left, place.top), stencil)
    centre = ((place.left + place.right) / 2, (place.top + place.bottom) / 2)
    ImageDraw.Draw(canvas).text(centre, text, text_on(colour), font(size), anchor="mm")


def chip_size(label: str, size: int, room: int) -> tuple[int, int, str]:
    """Width and height of a chip and the text that it holds."""
    inset = round(size * 0.55)
    text = fit(label, size, room - 2 * inset)
    return min(round(font(size).getlength(text)) + 2 * inset, room), round(size * 1.55), text


def inside(canvas: Image.Image, left: float, top: float, width: int, height: int) -> Box:
    """The box at that place, moved as little as keeps it in the picture with a small margin."""
    margin = 4
    left = max(0, min(max(round(left), margin), canvas.width - margin - width))
    top = max(0, min(max(round(top), margin), canvas.height - margin - height))
    return Box(left, top, left + width, top + height)


def fit(text: str, size: int, room: float) -> str:
    """One line of `text`, cut with an ellipsis where it is wider than `room` pixels."""
    text = " ".join(text.split())
    if font(size).getlength(text) <= room:
        return text
    while text and font(size).getlength(text + "…") > room:
        text = text[:-1].rstrip()
    return text + "…"


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.truetype(older_font, size)


def text_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Ink or paper, whichever has the higher contrast on `colour` (WCAG 2 relative luminance)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.18 else PAPER
