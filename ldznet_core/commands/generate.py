"""`ldznet generate`: draw a caption, with masks from the features of the drawing itself, then use a mask: cut
the object out and draw it anew. Sampling is the backbone's, masks are the segmenter's."""

import argparse
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..backbones.families.unet import plan
from ..backbones.steering import Reader, Region
from ..backbones.torch_ldm import LDMBackbone
from ..decoders.base import Decoder
from ..errors import InputError
from ..imaging.images import read_image, to_tensor, write_pngs
from ..imaging.naming import shorten, size, slug
from ..imaging.visualize import cut_out
from ..segment.base import MaskPrediction
from ..segment.decoder import Segmenter
from ..segment.methods import decoder_free
from ..segment.phrases import split_phrases
from ..segment.postprocess import threshold
from ..segment.regions import reader
from .results import draw, endings, name_files, report, settle, stem_bytes
from .shared import (
    MAX_SEED,
    add_attention_options,
    add_mask_options,
    add_model_options,
    add_out_option,
    check_files,
    check_folder,
    check_text,
    check_uses,
    choose_method,
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
        "Draws the caption and writes DIR/<caption>-<seed>.png; beside it masks <phrase>.png, overlay.png, "
        "composite.png (the first phrase found, cut out), inpainted.png (that object drawn anew) and, with --labels, "
        "labels.png. Masks are taken while drawing: no further pass of the model reads the drawing, except with "
        "--method noise or a transformer. Where DIR holds another drawing of that name, this one is called "
        "<caption>-<seed>-2, ...; the same drawing is written again. Prints one line of JSON."
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
    parser.add_argument("--replace", metavar="CAPTION", help="caption of the second drawing (default: CAPTION)")
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        type=parse_region,
        metavar="WORDS=CAPTION",
        help="draw CAPTION where WORDS are being drawn, such as 'balloon=a strawberry'; may be repeated",
    )
    add_model_options(parser)
    add_attention_options(parser)


def run(args: argparse.Namespace) -> Iterator[dict]:
    phrases = read_phrases(args.text)
    caption, replacement = (check_caption(text) for text in (args.caption, args.replace or args.caption))
    choose_method(args)
    check_uses(args)
    check_folder(args.out)
    uses = ("composite", "inpainted")
    ends = endings(phrases, args.labels, reserved=uses)
    stem = choose_stem(caption, args.seed, stem_bytes(args.out, (*ends, *uses)))
    check_files([args.out / f"{stem}.png", *name_files(args.out, stem, (*ends, *uses))])
    backbone, decoder = open_model(args)
    side = round(backbone.native_area**0.5)
    width, height = args.size or (side, side)
    capture, find = choose_reader(backbone, decoder, args, phrases, (height // 8, width // 8))
    regions = open_regions(backbone, decoder, args.region)
    warn_of_cuts(backbone, dict.fromkeys((caption, replacement, *(text for text, _, _ in regions))))

    started = perf_counter()
    with precision(backbone.device, args.dtype):
        z, captured = backbone.sample(
            caption, height, width, seed=args.seed, **capture, regions=regions, progress=progress("drawing")
        )
        image = decode(backbone, z)
        masking = perf_counter()
        prediction = find(z, image, captured)
        masking = perf_counter() - masking
    masks, labels = settle(prediction, image[0], args)  # [P, H, W], as large as the drawing
    stem = free_stem(args.out, stem, to_picture(image))
    drawing, files = args.out / f"{stem}.png", name_files(args.out, stem, ends)
    pictures = {drawing: to_picture(image), **draw(image[0], masks, labels, phrases, files, args.threshold)}

    object_mask = next((mask for mask in masks if threshold(mask, args.threshold).any()), None)
    composite = inpainted = None
    if object_mask is None:
        log.warning("nothing was found, so there is no composite and nothing drawn anew: try another --seed")
    else:
        region = regrow(object_mask, args.threshold)
        with precision(backbone.device, args.dtype):
            anew, _ = backbone.sample(
                replacement,
                height,
                width,
                seed=(args.seed + 1) % (MAX_SEED + 1),
                keep=(z, region.to(z)),
                progress=progress("drawing anew"),
            )
            variant = decode(backbone, anew)
        composite, inpainted = name_files(args.out, stem, uses)
        pictures[composite] = cut_out(image[0], object_mask)
        pictures[inpainted] = to_picture(paste(image, variant, region))
    write_pngs(pictures)
    yield {
        "caption": caption,
        "image": str(drawing),
        **report(masks, prediction, phrases, files, args.threshold),
        "composite": composite and str(composite),
        "inpainted": inpainted and str(inpainted),
        "seconds": round(perf_counter() - started, 3),
        "mask_seconds": round(masking, 3),
    }


def open_regions(
    backbone: LDMBackbone, decoder: Decoder | None, regions: Sequence[tuple[list[str], str]]
) -> list[tuple[str, Region, Reader]]:
    """What `backbone.sample` takes of the words and captions of regions. They are found by the decoder where it tells
    that words are not being drawn, else by attention."""
    steering = decoder if decoder is not None and decoder.tells_presence else None
    return [(caption, Region(), reader(backbone, steering, words)) for words, caption in regions]


def choose_reader(
    backbone: LDMBackbone,
    decoder: Decoder | None,
    args: argparse.Namespace,
    phrases: Sequence[str],
    size: tuple[int, int],
) -> tuple[dict[str, Any], Callable[[Tensor, Tensor, Any], MaskPrediction]]:
    """What `backbone.sample` is to capture, and the function that then finds the phrases from the latent [1, 4, *size],
    the drawing [1, 8h, 8w, 3] and what was captured."""
    if decoder is None:
        warn_of_cuts(backbone, phrases)
        free = decoder_free(backbone, args.method, spread=args.spread or "auto")

        def find(z: Tensor, image: Tensor, captured: Any) -> MaskPrediction:
            return free.predict_latent(z, phrases, seed=args.seed, captured=captured)

        captures = args.method == "attention" and "queries" in backbone.capabilities
        return {"asked": plan(backbone.unet_config, *size)} if captures else {}, find

    segmenter = Segmenter(backbone, decoder, text="caption")
    warn_of_cuts(backbone, map(segmenter.template.format, phrases))

    def find(z: Tensor, image: Tensor, captured: Any) -> MaskPrediction:
        if decoder.reads == "pixels":
            return segmenter.predict(image, phrases)
        return segmenter.predict_latent(z, phrases, captured=captured)

    return {"taps": decoder.taps, "near": decoder.timestep}, find


def choose_stem(caption: str, seed: int, room: int) -> str:
    """What the files of a drawing are called: at most `room` bytes, numbers of `free_stem` among them."""
    return shorten(slug(caption, 80), room - size(f"-{seed}-999")) + f"-{seed}"


def free_stem(out: Path, stem: str, drawing: Image.Image) -> str:
    """`stem`, with -2, -3, ... where `out` holds another drawing of that name."""
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        file = out / f"{name}.png"
        if not file.exists() or holds(file, drawing):
            return name


def holds(file: Path, drawing: Image.Image) -> bool:
    try:
        return read_image(file).tobytes() == drawing.tobytes()
    except InputError:
        return False


def check_caption(caption: str) -> str:
    if not caption.strip():
        raise InputError("the caption is empty: say what to draw, for example 'a cat on grass'")
    check_text(caption)
    return caption.strip()


def parse_region(text: str) -> tuple[list[str], str]:
    """An argparse type: WORDS=CAPTION, where WORDS may be several phrases with vertical bars between them."""
    words, equals, caption = text.partition("=")
    if not (equals and words.strip(" |") and caption.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is no region such as 'balloon=a strawberry'")
    return split_phrases(words), caption.strip()


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


def decode(backbone: LDMBackbone, z: Tensor) -> Tensor:
    """The drawing [1, H, W, 3] in 0..1, rounded to the 8 bits of its file, so that what is made of it fits it. Raises
    InputError where the drawing is not finite."""
    image = backbone.decode(z)
    if not image.isfinite().all():
        raise InputError(
            "the drawing has values that are not finite (NaN or infinity): the model overflows, so try --dtype float32 "
            "or bfloat16"
        )
    return to_tensor(to_picture(image))


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
