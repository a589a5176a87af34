"""Figures of rectangles, lines and words, drawn once and written as PNG and as SVG."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from .files import replacing

SCALE = 2  # pixels of the PNG for one unit of the figure
ANCHORS = {"start": "l", "middle": "m", "end": "r"}
# Okabe and Ito's colours, which the colour-blind can tell apart; black and yellow are left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
# Points of cividis, a scale that is even in lightness and looks alike to the colour-blind.
CIVIDIS = ((0, 34, 78), (67, 78, 108), (125, 124, 120), (188, 174, 108), (254, 232, 56))


class Figure:
    """A white page of `width` x `height` units, x to the right and y down. Colours are "#rrggbb"."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._pen = ImageDraw.Draw(self.image)
        self._elements = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']

    def rectangle(
        self, x: float, y: float, width: float, height: float, fill: str | None = None, outline: str | None = None,
        thickness: float = 2,
    ) -> None:  # fmt: skip
        corners = [v * SCALE for v in (x, y, x + width, y + height)]
        if fill:
            self._pen.rectangle((*corners[:2], corners[2] - 1, corners[3] - 1), fill)
        if outline:
            self._pen.rectangle(corners, outline=outline, width=round(thickness * SCALE))
        half = thickness / 2 if outline else 0  # Pillow draws outlines inside, SVG half outside
        box = f'x="{x + half:g}" y="{y + half:g}" width="{width - 2 * half:g}" height="{height - 2 * half:g}"'
        stroke = f' stroke="{outline}" stroke-width="{thickness:g}"' if outline else ""
        self._elements.append(f'<rect {box} fill="{fill or "none"}"{stroke}/>')

    def line(self, points: Sequence[tuple[float, float]], colour: str, thickness: float = 2) -> None:
        self._pen.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(thickness * SCALE), joint="curve")
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thickness:g}"/>')

    def text(
        self, x: float, y: float, words: str, size: float = 12, anchor: str = "start", colour: str = "#000000"
    ) -> None:
        """Words whose middle line is at `y` and that start, end or are centred at `x` as `anchor` says."""
        font = ImageFont.load_default(size * SCALE)
        self._pen.text((x * SCALE, y * SCALE), words, colour, font, ANCHORS[anchor] + "m")
        self._elements.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}">'
            f"{escape(words)}</text>"
        )

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
        return "\n".join([f'{head} font-family="Helvetica, Arial, sans-serif">', *self._elements, "</svg>\n"])

    def save(self, file: Path) -> None:
        """As SVG where the name ends in .svg, else as PNG."""
        with replacing(file) as unfinished:
            if file.suffix.lower() == ".svg":
                unfinished.write_text(self.svg(), encoding="utf-8")
            else:
                self.image.save(unfinished, "PNG")

    def write(self, png: Path, svg: Path) -> None:
        self.save(png)
        self.save(svg)


def heat(share: float) -> str:
    """The colour of a value in 0..1, from dark blue to yellow."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    first = min(int(at), len(CIVIDIS) - 2)
    pairs = zip(CIVIDIS[first], CIVIDIS[first + 1], strict=True)
    return "#" + "".join(f"{round(a + (at - first) * (b - a)):02x}" for a, b in pairs)
