"""Makes the picture of docs/methods.md: the same scenes through every method, side by side.

    python tools/make_methods.py mini-build/world.zip

Scenes are the first of their kind; nothing is picked.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.backbones.queries import Queries
from ldznet_core.imaging.images import read_image, to_tensor
from ldznet_core.mini.bank import Recipe, compose_scenes
from ldznet_core.mini.evaluation import GENERATED, SEED, redrawn, scenes_of
from ldznet_core.mini.world import Scene
from ldznet_core.segment.guided_filter import refine
from ldznet_core.segment.methods import decoder_free

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SIZE, DRAWN = 256, 2
CELL, GAP, LINE, FONT = 176, 8, 30, 18
INK, PALE = (22, 24, 28), (236, 238, 241)
GLOW = (1.0, 0.62, 0.1)  # the colour of a mask of 1


@dataclass(frozen=True)
class Row:
    """A picture [H, W, 3] in 0..1 and the phrase to mask in it; `z` [1, 4, h, w] and `queries` where it was sampled."""

    title: str
    picture: Tensor
    phrase: str
    z: Tensor | None = None
    queries: Queries | None = None

    @classmethod
    def of(cls, title: str, scene: Scene, **captured) -> "Row":
        """A scene with the noun of its lowest thing as the phrase."""
        return cls(title, torch.from_numpy(scene.image) / 255, scene.things[0].sprite.noun, **captured)


def rows(backbone, pack: Path) -> Iterator[Row]:
    yield Row("park.png", to_tensor(read_image(PICTURES / "park.png"))[0], "panda")
    for title, styles, splits in (
        ("drawings never seen, in styles seen", None, ("val", "test")),
        ("a style never seen (fluent-emoji-flat)", ("fluent-emoji-flat",), ("ood",)),
    ):
        recipe = Recipe(SIZE, len(backbone.model.about["nouns"]), styles, splits, ("test",), (0.0, 0.0, 1.0))
        yield Row.of(title, compose_scenes(pack, recipe, SEED, 1)[0])
    scenes = scenes_of(GENERATED, backbone, pack, DRAWN)
    for scene in scenes:
        z = backbone.encode(torch.from_numpy(scene.image)[None] / 255)
        yield Row.of("drawn by the miniature", scene, z=z, queries=redrawn(backbone, z, [scene.caption]))


def columns(backbone, row: Row) -> Iterator[tuple[str, Tensor | None]]:
    """Titles and soft masks [1, H, W]; None where a method needs a sampling run and there was none."""
    image, phrases = row.picture[None], [row.phrase]
    for title, kind in (("light", "light"), ("LD-ZNet", "ldznet"), ("ZNet", "znet")):
        yield title, Segmenter(backbone, load_decoder("mini", kind=kind))(image, phrases)[0]
    attention = decoder_free(backbone)
    predicted = attention.predict(image, phrases)
    yield "attention", predicted.masks[0]
    yield "attention, refined", refine(predicted.masks[0], row.picture, predicted.reach)
    if row.queries:
        predicted = attention.predict_latent(row.z, phrases, captured=row.queries)
    yield "captured, refined", refine(predicted.masks[0], row.picture, predicted.reach) if row.queries else None
    yield "noise", decoder_free(backbone, "noise").predict(image, phrases).masks[0]


def cell(picture: Tensor) -> Image.Image:
    """A picture [H, W, 3] in 0..1, [H, W, 1] where it is grey."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().expand(-1, -1, 3).numpy()
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.LANCZOS)


def heated(picture: Tensor, mask: Tensor) -> Image.Image:
    """The picture in grey, from dark to glowing as its mask [H, W] goes from 0 to 1, with a line where it is 0.5."""
    grey = (picture @ torch.tensor([0.299, 0.587, 0.114]))[..., None]  # [H, W, 1]
    dark, glow = 0.45 * grey, (0.35 + 0.65 * grey) * torch.tensor(GLOW)
    image = cell(dark + mask[..., None] * (glow - dark))
    inside = cell(mask[..., None]).convert("L").point(lambda value: 255 * (value > 127))
    line = ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(3)))
    image.paste("white", mask=line)
    return image


def sheet(backbone, pack: Path) -> Image.Image:
    table = [(row, list(columns(backbone, row))) for row in rows(backbone, pack)]
    font, titles = ImageFont.load_default(FONT), ["picture", *(title for title, _ in table[0][1])]
    step = CELL + GAP
    canvas = Image.new("RGB", (GAP + len(titles) * step, LINE + len(table) * (LINE + step)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((GAP + column * step + CELL / 2, LINE / 2), title, INK, font, anchor="mm")
    for number, (row, made) in enumerate(table):
        top = LINE + number * (LINE + step)
        pen.text((GAP, top + LINE / 2), f"{row.title}: where is the {row.phrase}?", INK, font, anchor="lm")
        canvas.paste(cell(row.picture), (GAP, top + LINE))
        for column, (_, masks) in enumerate(made, start=1):
            left = GAP + column * step
            if masks is not None:
                canvas.paste(heated(row.picture, masks[0]), (left, top + LINE))
            else:
                pen.rectangle((left, top + LINE, left + CELL - 1, top + LINE + CELL - 1), PALE)
                pen.text((left + CELL / 2, top + LINE + CELL / 2), "only while drawing", INK, font, anchor="mm")
    return canvas


if __name__ == "__main__":
    sheet(load_backbone("mini"), Path(sys.argv[1])).save(PICTURES / "methods.jpg", quality=86, optimize=True)
