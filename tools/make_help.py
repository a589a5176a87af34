"""Makes the pictures of the help pages in web/docs, by running the nodes on the bundled miniature.

    python tools/make_help.py

It needs the ComfyUI engine that the tests run on (README). Drawings are of seed 0, but for the ground of the composite,
the emptiest of ten, and for regions, two of twenty in which both things were drawn.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import engine

STOCK = engine.start().nodes  # before any other part of ComfyUI is imported

import torch  # noqa: E402
from comfy_extras.nodes_mask import GrowMask, ImageCompositeMasked  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from ldznet_core.imaging.images import read_image, to_tensor  # noqa: E402
from ldznet_core.imaging.visualize import overlay, panel  # noqa: E402

PAGES = engine.ROOT / "web" / "docs"
PICTURE = engine.ROOT / "docs" / "pictures" / "park.png"
NODES = {name: node.execute for name, node in engine.node_classes(engine.load_pack()).items()}
WORDS = ["panda", "pumpkin", "ladybug"]
TEXT = "\n".join(WORDS)
HEIGHT, NARROW = 250, 186  # of a row of three, of four or five
STEPS, SIDE = 20, 256  # of drawings

Cells = list[tuple[str, Image.Image]]


def shown(tensor: Tensor) -> Image.Image:
    """An IMAGE [1, H, W, 3] or one mask [H, W] to look at."""
    picture = tensor[0] if tensor.ndim == 4 else tensor[..., None].expand(-1, -1, 3)
    return Image.fromarray((picture.cpu().clamp(0, 1) * 255).round().byte().numpy())


def cut_out(segment) -> Image.Image:
    """The crop of a segment of SEGS, dark outside its mask."""
    light = 0.25 + 0.75 * torch.from_numpy(segment.cropped_mask)[None, ..., None]
    return shown(torch.from_numpy(segment.cropped_image) * light)


@dataclass(frozen=True)
class Miniature:
    """MODEL, CLIP, VAE and LDZNET_DECODER of Load Miniature."""

    model: object
    clip: object
    vae: object
    decoder: object


def draw(mini: Miniature, caption: str, model=None, seed: int = 0, latent: dict | None = None) -> tuple[dict, Tensor]:
    """LATENT and IMAGE that KSampler samples for a caption, in the mask of `latent` where it has one."""
    positive, negative = (STOCK.CLIPTextEncode().encode(mini.clip, text)[0] for text in (caption, ""))
    latent = latent or {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    (sampled,) = STOCK.KSampler().sample(
        model or mini.model, seed, STEPS, 3.0, "euler", "normal", positive, negative, latent
    )
    return sampled, STOCK.VAEDecode().decode(mini.vae, sampled)[0]


def of_a_picture(mini: Miniature) -> Iterator[tuple[str, Cells]]:
    """Pages of the nodes that are shown on README's picture."""
    image = to_tensor(read_image(PICTURE))

    def segment(text: str, decoder=mini.decoder) -> tuple[Tensor, Tensor]:
        """Masks and their union."""
        return NODES["LDZNetSegment"](mini.model, mini.clip, decoder, text, image=image, vae=mini.vae).args[:2]

    masks, union = segment(TEXT)
    segmented = overlay(image[0], masks, WORDS)
    yield "segment", [
        ("overlay", segmented),
        ("masks, the first: panda", shown(masks[0])),
        ("masks, the second: pumpkin", shown(masks[1])),
    ]
    znet, _ = NODES["LDZNetLoadDecoder"]("miniature: znet (bundled)").args
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
    (_, segments) = NODES["LDZNetMasksToSEGS"](masks[:3], TEXT, image=image, crop_factor=2.0).args[0][0]
    yield "segs", [
        ("overlay of Segment", segmented),
        *((f"{s.label}, confidence {s.confidence:.2f}", cut_out(s)) for s in segments),
    ]
    (refined,) = NODES["LDZNetRefineMask"](masks[:1], image).args
    yield "refine", [
        ("before", shown(masks[0])),
        ("after", shown(refined[0])),
        ("before", overlay(image[0], masks[:1], WORDS[:1])),
        ("after", overlay(image[0], refined, WORDS[:1])),
    ]
    attention, _, _, reach = NODES["LDZNetAttentionMask"](
        mini.clip, TEXT, model=mini.model, image=image, vae=mini.vae
    ).args
    (refined,) = NODES["LDZNetRefineMask"](attention, image, reach=reach).args
    yield "attentionmask", [
        ("image", shown(image)),
        ("without decoder", overlay(image[0], attention, WORDS)),
        ("refined", overlay(image[0], refined, WORDS)),
        ("refined, in Label Map", shown(NODES["LDZNetLabelMap"](refined, TEXT).args[0])),
        ("Segment", segmented),
    ]


def of_drawings(mini: Miniature) -> Iterator[tuple[str, Cells]]:
    """Pages of the nodes that are shown on what the miniature draws."""
    watched, capture = NODES["LDZNetCapture"](mini.model).args

    def find(drawing: tuple[dict, Tensor], noun: str) -> Tensor:
        latent, image = drawing
        return NODES["LDZNetSegmentCaptured"](capture, latent, mini.clip, mini.decoder, noun, image).args[0]

    captions = {"pumpkin": "a pumpkin on a blue background", "ladybug": "a ladybug on grass"}
    drawn = {noun: draw(mini, caption, watched) for noun, caption in captions.items()}
    masks = {noun: find(drawing, noun) for noun, drawing in drawn.items()}
    yield "loadmini", [
        cell
        for noun, caption in captions.items()
        for cell in ((caption, shown(drawn[noun][1])), (noun, shown(masks[noun][0])))
    ]
    caption = "a penguin on a red background"
    alone, outputs = draw(mini, caption), draw(mini, caption, watched)
    if not torch.equal(alone[1], outputs[1]):
        raise RuntimeError("drawn with Capture, the picture is another: its page says that it is the same")
    yield "capture", [
        ("sampled without Capture", shown(alone[1])),
        ("with Capture: the same", shown(outputs[1])),
        ("mask: penguin", shown(find(outputs, "penguin")[0])),
    ]
    (latent, image), mask = drawn["pumpkin"], masks["pumpkin"]
    grown = GrowMask().expand_mask(mask, 2, True)[0]
    room = STOCK.SetLatentNoiseMask().set_mask(latent, grown)[0]
    anew = draw(mini, "a strawberry on a blue background", latent=room)[1]
    grass = draw(mini, "a grass background", seed=1)[1]
    composite = ImageCompositeMasked().composite(grass, image, 0, 0, False, mask)[0]
    yield "segmentcaptured", [
        ("overlay", overlay(image[0], mask, ["pumpkin"])),
        ("drawn anew in the mask", shown(anew)),
        ("composited with the mask", shown(composite)),
    ]


def of_steps(mini: Miniature) -> Iterator[tuple[str, Cells]]:
    """What Capture shows of words while it draws. Engines of 2024 cannot: COMFYUI_PATH names a newer one."""
    capture = sys.modules[NODES["LDZNetCapture"].__module__]
    preview, steps = sys.modules[capture.add_previews.__module__], []
    preview.EVERY, preview.SHARE = 0.0, math.inf
    capture.show_preview = lambda place, picture: steps.append(picture)
    watched, _ = NODES["LDZNetCapture"](mini.model, mini.clip, "panda, balloon").args
    draw(mini, "a panda and a balloon on a blue background", watched, seed=12)
    if steps:
        yield "words", [(f"step {i} of {STEPS}", steps[i - 1]) for i in (2, 6, 10, 20)]


def of_regions(mini: Miniature) -> Iterator[tuple[str, Cells]]:
    """The page of Set Words, where the engine has hooks of conditionings."""
    light, _ = NODES["LDZNetLoadDecoder"]("miniature: light (bundled)").args
    base, change = (
        STOCK.CLIPTextEncode().encode(mini.clip, f"{text} on a blue background")[0]
        for text in ("a panda and a balloon", "a strawberry")
    )
    (marked,) = NODES["LDZNetConditioningSetWords"](change, mini.clip, "balloon", decoder=light).args
    negative = STOCK.CLIPTextEncode().encode(mini.clip, "")[0]

    def drawn(positive: list, seed: int) -> Image.Image:
        blank = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
        latent = STOCK.KSampler().sample(mini.model, seed, STEPS, 3.0, "euler", "normal", positive, negative, blank)[0]
        return shown(STOCK.VAEDecode().decode(mini.vae, latent)[0])

    yield "setwords", [
        cell
        for seed in (10, 12)
        for cell in (
            ("a panda and a balloon", drawn(base, seed)),
            ("where the balloon is: a strawberry", drawn(base + marked, seed)),
        )
    ]


@torch.inference_mode()
def main() -> None:
    mini = Miniature(*NODES["LDZNetLoadMini"]().args)
    for pages in (of_a_picture, of_drawings, of_steps, of_regions):
        for name, cells in pages(mini):
            titles, pictures = zip(*cells, strict=True)
            height = HEIGHT if len(cells) == 3 else NARROW
            panel(pictures, titles, height=height).save(PAGES / f"{name}.jpg", quality=78, optimize=True, subsampling=0)


if __name__ == "__main__":
    main()
