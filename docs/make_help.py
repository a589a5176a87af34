"""Makes the pictures of the help pages in web/docs, by running the nodes on the bundled miniature.

    python docs/make_help.py

It needs the ComfyUI engine that the tests run on (README). Drawings are of seed 0, but for the ground of the composite,
which is the emptiest of ten.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import engine  # noqa: E402

STOCK = engine.start().nodes  # before any other part of ComfyUI is imported

import torch  # noqa: E402
from comfy_extras.nodes_mask import GrowMask, ImageCompositeMasked  # noqa: E402
from PIL import Image  # noqa: E402
from studio import Studio, park  # noqa: E402
from torch import Tensor  # noqa: E402

from ldznet_core.pictures import overlay, panel  # noqa: E402

PAGES = ROOT / "web" / "docs"
NODES = {name: node.execute for name, node in engine.node_classes(engine.load_pack()).items()}
WORDS = ["panda", "pumpkin", "ladybug"]
TEXT = "\n".join(WORDS)
REACH = 0.09  # of Refine Mask, where it follows Attention Mask on the miniature
HEIGHT, NARROW = 250, 186  # of a row of three, of four or five
STEPS = 20

Cells = list[tuple[str, Image.Image]]


def shown(tensor: Tensor) -> Image.Image:
    """An IMAGE [1, H, W, 3] or one mask [H, W] to look at."""
    picture = tensor[0] if tensor.ndim == 4 else tensor[..., None].expand(-1, -1, 3)
    return Image.fromarray((picture.cpu().clamp(0, 1) * 255).round().byte().numpy())


def draw(studio: Studio, caption: str, model=None, **options) -> tuple[dict, Tensor]:
    """LATENT and IMAGE of a caption."""
    latent = studio.draw(model, steps=STEPS, positive=studio.prompt(caption), **options)
    return latent, STOCK.VAEDecode().decode(studio.vae, latent)[0]


def of_a_picture(studio: Studio) -> Iterator[tuple[str, Cells]]:
    """Pages of the nodes that are shown on README's picture."""
    image = park()

    def segment(text: str, decoder=studio.decoder) -> tuple[Tensor, Tensor]:
        """Masks and their union."""
        return NODES["LDZNetSegment"](studio.model, studio.clip, decoder, text, image=image, vae=studio.vae).args[:2]

    masks, union = segment(TEXT)
    found = overlay(image[0], masks, WORDS)
    yield "segment", [
        ("overlay", found),
        ("masks, the first: panda", shown(masks[0])),
        ("masks, the second: pumpkin", shown(masks[1])),
    ]
    (znet,) = NODES["LDZNetLoadDecoder"]("miniature: znet (bundled)").args
    _, by_latent = segment(TEXT, znet)
    yield "loaddecoder", [
        ("image", shown(image)),
        ("miniature: ldznet", shown(union[0])),
        ("miniature: znet", shown(by_latent[0])),
    ]
    four = [*WORDS, "dog"]  # which is not there, and marks what is
    text = "|".join(four)
    masks, _ = segment(text)
    maps, exclusive = NODES["LDZNetLabelMap"](masks, text).args
    yield "labelmap", [
        ("overlay of Segment", overlay(image[0], masks, four)),
        ("label map", shown(maps)),
        ("exclusive masks: panda", shown(exclusive[0])),
    ]
    (refined,) = NODES["LDZNetRefineMask"](masks[:1], image).args
    yield "refine", [
        ("before", shown(masks[0])),
        ("after", shown(refined[0])),
        ("before", overlay(image[0], masks[:1], WORDS[:1])),
        ("after", overlay(image[0], refined, WORDS[:1])),
    ]
    attention = NODES["LDZNetAttentionMask"](studio.clip, TEXT, model=studio.model, image=image, vae=studio.vae).args[0]
    (refined,) = NODES["LDZNetRefineMask"](attention, image, reach=REACH).args
    yield "attentionmask", [
        ("image", shown(image)),
        ("Attention Mask", overlay(image[0], attention, WORDS)),
        ("refined", overlay(image[0], refined, WORDS)),
        ("refined, in Label Map", shown(NODES["LDZNetLabelMap"](refined, TEXT).args[0])),
        ("Segment", found),
    ]


def of_drawings(studio: Studio) -> Iterator[tuple[str, Cells]]:
    """Pages of the nodes that are shown on what the miniature draws."""
    seen, capture = NODES["LDZNetCapture"](studio.model).args

    def find(drawing: tuple[dict, Tensor], noun: str) -> Tensor:
        latent, image = drawing
        return NODES["LDZNetSegmentCaptured"](capture, latent, studio.clip, studio.decoder, noun, image).args[0]

    captions = {"pumpkin": "a pumpkin on a blue background", "ladybug": "a ladybug on grass"}
    drawn = {noun: draw(studio, caption, seen) for noun, caption in captions.items()}
    masks = {noun: find(drawing, noun) for noun, drawing in drawn.items()}
    yield "loadmini", [
        cell
        for noun, caption in captions.items()
        for cell in ((caption, shown(drawn[noun][1])), (noun, shown(masks[noun][0])))
    ]
    caption = "a penguin on a red background"
    alone, heard = draw(studio, caption), draw(studio, caption, seen)
    if not torch.equal(alone[1], heard[1]):
        raise RuntimeError("drawn with Capture, the picture is another: its page says that it is the same")
    yield "capture", [
        ("sampled without Capture", shown(alone[1])),
        ("with Capture: the same", shown(heard[1])),
        ("mask: penguin", shown(find(heard, "penguin")[0])),
    ]
    (latent, image), mask = drawn["pumpkin"], masks["pumpkin"]
    grown = GrowMask().expand_mask(mask, 2, True)[0]
    room = STOCK.SetLatentNoiseMask().set_mask(latent, grown)[0]
    anew = draw(studio, "a strawberry on a blue background", latent=room)[1]
    grass = draw(studio, "a grass background", seed=1)[1]
    composite = ImageCompositeMasked().composite(grass, image, 0, 0, False, mask)[0]
    yield "segmentcaptured", [
        ("overlay", overlay(image[0], mask, ["pumpkin"])),
        ("drawn anew in the mask", shown(anew)),
        ("composited with the mask", shown(composite)),
    ]


@torch.inference_mode()
def main() -> None:
    studio = Studio(*NODES["LDZNetLoadMini"]().args)
    for pages in (of_a_picture, of_drawings):
        for name, cells in pages(studio):
            titles, pictures = zip(*cells, strict=True)
            height = HEIGHT if len(cells) == 3 else NARROW
            panel(pictures, titles, height=height).save(PAGES / f"{name}.jpg", quality=78, optimize=True, subsampling=0)


if __name__ == "__main__":
    main()
