"""Makes the picture that README segments: sprites that no network was trained on, composed on grass.

    python docs/make_pictures.py mini-build/world.zip
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ldznet_core.mini.world import TINTS, load_pack

PICTURES = Path(__file__).parent / "pictures"
PLACED = (("noto", "cat", 22, 118, 118), ("twemoji", "bus", 134, 26, 104), ("noto", "watermelon", 148, 150, 92))


def park(pack_file: str, side: int = 256) -> Image.Image:
    """Three things of the test split (style, noun, left, top, width) on a piece of grass of the test split."""
    pack = load_pack(pack_file)
    lawns = (b.rgb for b in pack.backgrounds if (b.word, b.split) == ("grass", "test"))
    grass = next(rgb for rgb in lawns if np.ptp(rgb, -1).max() < 12)  # the grey texture, whose licence is CC0
    height = min(grass.shape[:2])
    green = np.clip(grass[:height, :height] / grass.mean() * TINTS["grass"][1], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(green).resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    for style, noun, left, top, width in PLACED:
        (sprite,) = pack.select(nouns=(noun,), styles=(style,), splits=("test",))
        image = Image.fromarray(sprite.rgba)
        image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
        canvas.alpha_composite(image, (left, top))
    return canvas.convert("RGB")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    park(sys.argv[1]).save(PICTURES / "park.png", optimize=True)
