"""Makes the picture that README segments: three things in styles the networks know, in a scene they do not.

    python tools/make_pictures.py mini-build/world.zip
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ldznet_core.mini.sprites import load_pack
from ldznet_core.mini.world import TINTS

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PLACED = (("noto", "panda", 18, 112, 118), ("twemoji", "pumpkin", 134, 22, 106), ("noto", "ladybug", 152, 138, 88))


def park(pack_file: str, side: int = 256) -> Image.Image:
    """Three things (style, noun, left, top, width) on a piece of grass that was kept from training."""
    pack = load_pack(pack_file)
    lawns = (b.rgb for b in pack.backgrounds if (b.word, b.split) == ("grass", "test"))
    grass = next(rgb for rgb in lawns if np.ptp(rgb, -1).max() < 12)  # the grey texture, whose licence is CC0
    height = min(grass.shape[:2])
    green = np.clip(grass[:height, :height] / grass.mean() * TINTS["grass"][1], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(green).resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    for style, noun, left, top, width in PLACED:
        (sprite,) = pack.select(nouns=(noun,), styles=(style,))
        image = Image.fromarray(sprite.rgba)
        image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
        canvas.alpha_composite(image, (left, top))
    return canvas.convert("RGB")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    park(sys.argv[1]).save(PICTURES / "park.png", optimize=True)
