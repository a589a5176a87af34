"""Sheets of pictures with a line of text under each: what training made, to be looked at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .files import replacing

LINE = 14


def sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], path: Path, columns: int = 8) -> np.ndarray:
    """Write uint8 pictures [H, W, 3], each over its title, as one PNG; returns that, uint8 [H', W', 3]."""
    height, width = pictures[0].shape[:2]
    per_line = max(8, width // 6)
    lines = [[t[i : i + per_line] for i in range(0, len(t), per_line)][:2] for t in titles]
    deep = height + LINE * max(map(len, lines)) + 4
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + 4), rows * deep), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, (picture, text) in enumerate(zip(pictures, lines, strict=True)):
        x, y = (i % columns) * (width + 4), (i // columns) * deep
        canvas.paste(Image.fromarray(picture), (x, y))
        for k, line in enumerate(text):
            pen.text((x, y + height + 1 + LINE * k), line, fill="black", font=font)
    with replacing(path) as unfinished:
        canvas.save(unfinished, "PNG")
    return np.asarray(canvas)
