"""Builds the miniature world's pack: named emoji sprites with alpha and background photos in one zip file.

Where the art comes from is art.py's business.
"""

import io
import json
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..imaging.files import replacing
from .art import OOD_STYLES, SIDE, TRAIN_STYLES, background_images, emoji_names, npm_pack, rasteriser, style_images

log = logging.getLogger(__name__)

FORMAT = "ldznet-mini-world-1"

COLOURS = ("white", "black", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")

# Concepts whose emoji label is not the everyday word; the second entry is the colour in the label, if any.
RENAMED = {
    "red apple": ("apple", "red"),
    "green apple": ("apple", "green"),
    "automobile": ("car", None),
    "lady beetle": ("ladybug", None),
    "deciduous tree": ("tree", None),
    "heart suit": ("heart", None),
    "jack-o-lantern": ("pumpkin", None),
}


def build_pack(out_path, cache_dir, progress: Callable[[str], None] = log.info) -> Path:
    """Fetch the art into cache_dir (what is there stays), rasterise it and write the pack to out_path."""
    out_path, cache_dir = Path(out_path), Path(cache_dir)
    render = rasteriser()
    cache_dir.mkdir(parents=True, exist_ok=True)
    split = json.loads((Path(__file__).parent / "split.json").read_text(encoding="utf-8"))
    marks = {
        (style, concept): name
        for name in ("train", "val", "test")
        for style, concepts in split[name].items()
        for concept in concepts
    }
    zero_shot = set(split["zero_shot"])
    emoji = emoji_names(cache_dir, progress)
    files: dict[str, bytes] = {}
    sprites: dict[str, list[dict]] = {concept: [] for concept in split["vocab"]}

    for style, package in {**TRAIN_STYLES, **OOD_STYLES}.items():
        images = style_images(style, npm_pack(package, cache_dir, progress), split["vocab"], emoji, render)
        kept = 0
        for concept, image in images:
            mark = "ood" if style in OOD_STYLES else marks.get((style, concept))
            mark = "zero_shot" if concept in zero_shot else mark
            rgba = None if mark is None else _crop(image)
            if rgba is None:
                continue
            noun, colour = noun_of(concept)
            name = f"sprites/{style}/{re.sub('[^a-z0-9]+', '-', concept.lower())}.webp"
            # Flat art is smallest lossless; shaded renders are not. Alpha stays lossless either way.
            options = {"lossless": style != "fluent-3d", "quality": 90, "alpha_quality": 100, "method": 4}
            files[name] = _encode(Image.fromarray(rgba), "WEBP", **options)
            has_colour_word = bool(set(concept.lower().split()) & set(COLOURS))
            if style.endswith("high-contrast"):
                colour = None  # black on white, whatever the label says
            elif not has_colour_word:
                colour = dominant_colour(rgba)
            sprites[concept].append(
                {
                    "file": name,
                    "concept": concept.lower().replace("’", "'"),
                    "noun": noun,
                    "style": style,
                    "split": mark,
                    "group": emoji[concept]["group"],
                    "colour": colour,
                }
            )
            kept += 1
        progress(f"{style}: {kept} sprites")

    backgrounds = []
    for name, word, mark, image in background_images(cache_dir, progress):
        files[f"backgrounds/{name}.jpg"] = _encode(image, "JPEG", quality=88)
        backgrounds.append({"file": f"backgrounds/{name}.jpg", "word": word, "split": mark})
    progress(f"{len(backgrounds)} backgrounds")

    # Vocabulary order, so that a reader of the pack sees the nouns in that order.
    index = {"format": FORMAT, "sprites": sum(sprites.values(), []), "backgrounds": backgrounds}
    _write_zip(out_path, {"index.json": json.dumps(index, ensure_ascii=False).encode(), **files})
    progress(f"{out_path}: {out_path.stat().st_size / 1e6:.1f} MB")
    return out_path


def noun_of(concept: str) -> tuple[str, str | None]:
    """The everyday noun of an emoji label and the colour its renaming gives, for example ("apple", "red")."""
    label = concept.lower().replace("’", "'")
    if label in RENAMED:
        return RENAMED[label]
    return re.sub(r" (face|animal)$", "", label), None


def dominant_colour(rgba: np.ndarray) -> str | None:
    """The colour word on which > 70 % of the saturated pixels agree; None where too few are saturated."""
    pixels = rgba[rgba[..., 3] > 200][:, :3]  # [n,3]
    if len(pixels) == 0:
        return None
    hsv = np.asarray(Image.fromarray(pixels[None]).convert("HSV"), np.float32)[0]  # [n,3]
    hue, saturation, value = hsv.T
    hue, saturation, value = hue * (360 / 255), saturation / 255, value / 255
    saturated = (saturation > 0.35) & (value > 0.2)
    # A panda's pink tongue must not make it a pink panda: most of the thing has to be saturated.
    if saturated.mean() < 0.5:
        return None
    hue, saturation, value = hue[saturated], saturation[saturated], value[saturated]
    bounds = np.array([14, 37, 66, 172, 255, 292, 342])
    names = np.array(["red", "orange", "yellow", "green", "blue", "purple", "pink", "red"])
    words = names[np.digitize(hue, bounds)]
    warm = (hue < 48) | (hue > 348)
    words[warm & (value < 0.68)] = "brown"
    words[(words == "brown") & (hue < 10) & (saturation > 0.7)] = "red"
    words[(words == "red") & (saturation < 0.55) & (value > 0.8)] = "pink"
    word, count = max(zip(*np.unique(words, return_counts=True), strict=True), key=lambda pair: pair[1])
    return str(word) if count > 0.7 * len(words) else None


def _crop(image: Image.Image) -> np.ndarray | None:
    """Cropped to its content, longest side SIDE; None for empty art and for tiles that fill their square."""
    alpha = np.asarray(image)[..., 3]
    if (alpha > 127).mean() > 0.97 or not (alpha > 127).any():
        return None
    box = Image.fromarray(np.where(alpha > 8, 255, 0).astype(np.uint8)).getbbox()
    image = image.crop(box)
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))  # Pillow premultiplies RGBA on resize


# ---- the file ------------------------------------------------------------------------------------


def _encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    """A stored zip with fixed dates (equal inputs give equal bytes), put in place in one step."""
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data)
