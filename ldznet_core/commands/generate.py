"""`ldznet generate`: draw a caption, with masks from the features of the drawing itself, then use a mask: cut
the object out and draw it anew. Sampling is the host's, masks are the segmenter's."""

import argparse
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..hosts.ldm import LDMHost
from ..images import slug, to_tensor
from ..masks import threshold
from ..networks.decoder import MaskDecoder
from ..pictures import cut_out
from ..queries import plan
from ..refine import REACH
from ..segmenter import Segmenter
from ..training_free import Found, TrainingFree
from .results import draw, endings, report, settle, write
from .shared import (
    MAX_SEED,
    add_attention_options,
    add_mask_options,
    add_model_options,
    add_out_option,
    check_folder,
    check_text,
    check_uses,
    open_model,
    precision,
    progress,
    read_phrases,
    warn_of_cuts,
)

log = logging.getLogger(__name__)

GRID = 64  # sides are multiples of this: 8 pixels a latent position, 8 of those a position at the bottom
LARGEST = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws the caption and writes DIR/<caption>-<seed>.png; beside it <phrase>.png masks, overlay.png, "
        "composite.png (the first phrase found, cut out), inpainted.png (that object drawn anew) and, with --labels, "
        "labels.png. Masks are taken while drawing: no further pass of the model reads the drawing, except with "
        "--method noise. Prints one line of JSON."
    )
    parser.add_argument("caption", metavar="CAPTION", help="such as 'a cat and a red apple on grass'")
    add_mask_options(parser)
    add_out_option(parser, "drawings")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help=f"pixels, multiples of {GRID} (default: the model's own)",
    )
    parser.add_argument("--replace", metavar="CAPTION", help="what is drawn anew (default: the same caption)")
    add_model_options(parser)
    add_attention_options(parser)


def run(args: argparse.Namespace) -> Iterator[dict]:
    phrases = read_phrases(args.text)
    caption, replacement = (check_caption(text) for text in (args.caption, args.replace or args.caption))
    check_uses(args)
    check_folder(args.out)
    check_draws(args.model)
    name = f"{slug(caption, 80)}-{args.seed}"
    ends = endings(phrases, args.labels, reserved=("composite", "inpainted"))
    files = [args.out / f"{name}.{end}.png" for end in ends]
    host, decoder = open_model(args)
    side = host.model.about.get("size", 512)
    width, height = args.size or (side, side)
    capture, find = choose_reader(host, decoder, args, phrases, (height // 8, width // 8))
    warn_of_cuts(host, dict.fromkeys((caption, replacement)))

    started = perf_counter()
    with precision(host.device, args.dtype):
        z, captured = host.sample(caption, height, width, seed=args.seed, **capture, progress=progress("drawing"))
        image = decode(host, z)
        masking = perf_counter()
        found = find(z, image, captured)
        masking = perf_counter() - masking
    masks, labels = settle(found, image[0], args)  # [P, H, W], as large as the drawing
    drawing = args.out / f"{name}.png"
    pictures = {drawing: to_picture(image), **draw(image[0], masks, labels, phrases, files, args.threshold)}

    object_mask = next((mask for mask in masks if threshold(mask, args.threshold).any()), None)
    composite = inpainted = None
    if object_mask is None:
        log.warning("nothing was found, so there is no composite and nothing drawn anew: try another --seed")
    else:
        region = regrow(object_mask, args.threshold)
        with precision(host.device, args.dtype):
            anew, _ = host.sample(
                replacement,
                height,
                width,
                seed=(args.seed + 1) % (MAX_SEED + 1),
                keep=(z, region.to(z)),
                progress=progress("drawing anew"),
            )
            variant = decode(host, anew)
        composite, inpainted = args.out / f"{name}.composite.png", args.out / f"{name}.inpainted.png"
        pictures[composite] = cut_out(image[0], object_mask)
        pictures[inpainted] = to_picture(paste(image, variant, region))
    write(pictures)
    yield {
        "caption": caption,
        "image": str(drawing),
        **report(masks, found, phrases, files, args.threshold),
        "composite": composite and str(composite),
        "inpainted": inpainted and str(inpainted),
        "seconds": round(perf_counter() - started, 3),
        "mask_seconds": round(masking, 3),
    }


def choose_reader(
    host: LDMHost, decoder: MaskDecoder | None, args: argparse.Namespace, phrases: Sequence[str], size: tuple[int, int]
) -> tuple[dict[str, Any], Callable[[Tensor, Tensor, Any], Found]]:
    """What `host.sample` is to capture, and what then finds the phrases, given the latent [1, 4, *size], the drawing
    [1, 8h, 8w, 3] and what was captured."""
    if decoder is None:
        warn_of_cuts(host, phrases)
        free = TrainingFree(host, args.method, spread=args.spread or "auto")

        def find(z: Tensor, image: Tensor, captured: Any) -> Found:
            return free.latent(z, phrases, seed=args.seed, queries=captured)

        return {"asked": plan(host.unet_config, *size)} if args.method == "attention" else {}, find

    segmenter = Segmenter(host, decoder, text="caption")
    warn_of_cuts(host, map(segmenter.template.format, phrases))

    def find(z: Tensor, image: Tensor, captured: Any) -> Found:
        given = (image.permute(0, 3, 1, 2) * 2 - 1).to(host.device) if decoder.kind == "rgbnet" else z
        return Found(segmenter.latent(given, phrases, features=captured), None, REACH)

    return {"taps": decoder.taps}, find


def check_caption(caption: str) -> str:
    if not caption.strip():
        raise InputError("the caption is empty: say what to draw, for example 'a cat on grass'")
    check_text(caption)
    return caption.strip()


def check_draws(model: str) -> None:
    """Refuses what only segments before it is loaded."""
    if model != "mini" and Path(model).is_dir():
        raise InputError(
            f"a diffusers folder such as {model} segments only: to draw, give the model's .safetensors file, "
            "or use ComfyUI"
        )


def parse_size(text: str) -> tuple[int, int]:
    """An argparse type: WxH in pixels."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512x384")
    width, height = sides = [int(side) for side in match.groups()]
    if any(side % GRID or not GRID <= side <= LARGEST for side in sides):
        near = "x".join(str(min(max(round(side / GRID), 1) * GRID, LARGEST)) for side in sides)
        raise argparse.ArgumentTypeError(
            f"sides are multiples of {GRID} up to {LARGEST}, {text} is near {near}"
        )
    return width, height


def decode(host: LDMHost, z: Tensor) -> Tensor:
    """The drawing [1, H, W, 3] in 0..1, rounded to the 8 bits of its file, so that what is made of it fits it."""
    return to_tensor(to_picture(host.decode(z)))


def to_picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0].float().cpu() * 255).round().byte().numpy())


def regrow(mask: Tensor, tau: float) -> Tensor:
    """Where to draw anew on the latent grid [1, 1, H/8, W/8]: wherever `mask` [H, W] is, and one position
    around, because the edge of the old object would otherwise show through."""
    inside = F.max_pool2d(threshold(mask, tau).float()[None, None], 8)
    return F.max_pool2d(inside, 3, stride=1, padding=1)


def paste(image: Tensor, variant: Tensor, region: Tensor) -> Tensor:
    """`variant` into `image` (both [1, H, W, 3]) inside `region` [1, 1, H/8, W/8], fading out towards its edge.

    The VAE changes pixels far from where its latent did, but outside the region not a bit of the drawing may change.
    """
    inside = F.interpolate(region, scale_factor=8.0)  # [1, 1, H, W]
    faded = F.avg_pool2d(inside, 17, stride=1, padding=8, count_include_pad=False)
    alpha = (2 * faded - 1).clamp(min=0) * inside
    return torch.lerp(image, variant, alpha[:, 0, ..., None])
