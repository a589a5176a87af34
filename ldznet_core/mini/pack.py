"""Builds the miniature world's pack: named emoji sprites with alpha and background photos in one zip file.

The art comes from pinned npm, PyPI and Debian packages at build time and is never part of the repository;
the licences of the art are those of the packages.
"""

import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError

log = logging.getLogger(__name__)

SIDE = 128  # longest side of a sprite in pixels
BACKGROUND_SIDE = 320  # short side of a background in pixels
FORMAT = "ldznet-mini-world-1"

TRAIN_STYLES = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojione-v1": "@iconify-json/emojione-v1@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
}
OOD_STYLES = {
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "fluent-emoji-high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
}
NAMES_PACKAGE = "emojibase-data@17.0.0"
SKIMAGE = "scikit-image==0.26.0"
DEBIAN_PACKAGES = ("mate-backgrounds", "lomiri-wallpapers-16.04")

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

# fxemoji has no code points and older names; its plain "cat" is the face.
FXEMOJI_NAMES = {
    "cat face": "cat",
    "cat": "catside",
    "dog face": "dog",
    "dog": "dogside",
    "mouse face": "mouse",
    "mouse": "mouseside",
    "tiger face": "tiger",
    "tiger": "tigerside",
    "panda": "pandaface",
    "wolf": "wolfface",
    "ewe": "sheep",
    "spouting whale": "spurtingwhale",
    "castle": "europeancastle",
    "locomotive": "steamlocomotive",
    "bullseye": "directhit",
    "woman’s boot": "boot",
    "gem stone": "gem",
    "locked": "lock",
    "clamp": "compression",
    "moai": "moyai",
}

# Only photos without nameable vocabulary objects: an unlabelled dog in a photo would be a false negative.
PHOTOS = {
    "Bridge_by_Sander_Klootwijk.jpg": "photo",
    "aitzgorri_by_Aitzol_Berasategi.jpg": "photo",
    "analogpattern_by_Peter_Nerlich.jpg": "photo",
    "life_by_Aitzol_Berasategi.jpg": "photo",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": "photo",
    "umang_by_Abhishek_Mudgal.jpg": "photo",
    "mate/nature/Blinds.jpg": "leaves",
    "mate/nature/Dune.jpg": "photo",
    "mate/nature/GreenMeadow.jpg": "grass",
    "mate/nature/RainDrops.jpg": "leaves",
    "mate/nature/Storm.jpg": "photo",
    "mate/nature/Wood.jpg": "wood",
}
SKIMAGE_TEXTURES = {"brick.png": "brick", "grass.png": "grass", "gravel.png": "gravel"}


def build_pack(out_path, cache_dir, progress: Callable[[str], None] = log.info) -> Path:
    """Fetch the art into cache_dir (what is there stays), rasterise it and write the pack to out_path."""
    out_path, cache_dir = Path(out_path), Path(cache_dir)
    render = _rasteriser()
    cache_dir.mkdir(parents=True, exist_ok=True)
    split = json.loads((Path(__file__).parent / "split.json").read_text(encoding="utf-8"))
    marks = {
        (style, concept): name
        for name in ("train", "val", "test")
        for style, concepts in split[name].items()
        for concept in concepts
    }
    zero_shot = set(split["zero_shot"])
    emoji = _emoji_names(cache_dir, progress)
    files: dict[str, bytes] = {}
    sprites: dict[str, list[dict]] = {concept: [] for concept in split["vocab"]}

    for style, package in {**TRAIN_STYLES, **OOD_STYLES}.items():
        images = _style_images(style, _npm_pack(package, cache_dir, progress), split["vocab"], emoji, render)
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
    for name, word, mark, image in _backgrounds(cache_dir, progress):
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


# ---- fetching ------------------------------------------------------------------------------------


def _run(command: list[str], what: str, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    except FileNotFoundError:
        raise InputError(f"cannot fetch {what}: {command[0]!r} is not installed; install it") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"cannot fetch {what}: {command[0]} took over 15 min; check the network") from None
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise InputError(f"cannot fetch {what}: {command[0]} failed ({tail}); check the network and the tool")


def _npm_pack(package: str, cache_dir: Path, progress) -> Path:
    tarball = cache_dir / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not tarball.exists():
        progress(f"npm pack {package}")
        _run(["npm", "pack", "--silent", package], package, cache_dir)
    if not tarball.exists():
        raise InputError(f"npm pack {package} left no {tarball.name} in {cache_dir}; use npm 7 or newer")
    return tarball


def _read_tar(tarball: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files of an npm tarball by their path inside the package."""
    try:
        with tarfile.open(tarball) as tar:
            members = ((m, m.name.split("/", 1)[-1]) for m in tar if m.isfile())
            return {name: tar.extractfile(m).read() for m, name in members if wanted(name)}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{tarball} cannot be read ({error}); delete it and build again") from None


def _skimage_file(cache_dir: Path, progress) -> Callable[[str], bytes]:
    """A reader of scikit-image's data files, out of the installed package or else out of its wheel."""
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.origin:
        return lambda name: (Path(spec.origin).parent / "data" / name).read_bytes()
    if not list(cache_dir.glob("scikit_image-*.whl")):
        progress(f"pip download {SKIMAGE}")
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", SKIMAGE], SKIMAGE, cache_dir)
    wheel = zipfile.ZipFile(sorted(cache_dir.glob("scikit_image-*.whl"))[0])
    return lambda name: wheel.read(f"skimage/data/{name}")


def _debian_photos(cache_dir: Path, progress) -> Path | None:
    """The folder of background photos in the unpacked Debian packages; None without Debian's tools."""
    unpacked = cache_dir / "debian"
    for package in DEBIAN_PACKAGES:
        if (unpacked / "usr/share/doc" / package).is_dir():
            continue
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                log.warning("no %s on this machine: the pack goes without the Debian background photos", tool)
                return None
        if not list(cache_dir.glob(f"{package}_*.deb")):
            progress(f"apt-get download {package}")
            _run(["apt-get", "download", package], package, cache_dir)
        deb = sorted(cache_dir.glob(f"{package}_*.deb"))[-1]
        _run(["dpkg-deb", "-x", str(deb.resolve()), str(unpacked.resolve())], package, cache_dir)
    return unpacked / "usr/share/backgrounds"


# ---- sprites -------------------------------------------------------------------------------------


def _emoji_names(cache_dir: Path, progress) -> dict[str, dict]:
    """emojibase label -> {"code": code points without the variation selector, "group": our group word}."""
    tarball = _npm_pack(NAMES_PACKAGE, cache_dir, progress)
    files = _read_tar(tarball, lambda name: name in ("en/data.json", "meta/groups.json"))
    subgroups = json.loads(files["meta/groups.json"])["subgroups"]
    return {
        entry["label"]: {
            "code": _plain_code(entry["hexcode"]),
            "group": _group(subgroups.get(str(entry.get("subgroup")), "")),
        }
        for entry in json.loads(files["en/data.json"])
    }


def _plain_code(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _group(subgroup: str) -> str:
    first = subgroup.split("-")[0]
    special = {"musical-instrument": "instrument", "place-building": "building", "game": "toy"}
    plain = {"animal": "animal", "plant": "plant", "food": "food", "transport": "vehicle"}
    if subgroup in ("drink", "dishware", "sport", "clothing", "tool"):
        return subgroup
    return special.get(subgroup) or plain.get(first, "object")


def _rasteriser() -> Callable[[str], Image.Image]:
    try:
        import resvg_py
    except ImportError:
        raise InputError("building the pack needs resvg_py: pip install resvg-py==0.5.0") from None

    def render(svg: str) -> Image.Image:
        # Twice the size, so that cropping and resizing to the final side loses no sharpness.
        png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    return render


def _style_images(style: str, tarball: Path, concepts, emoji, render):
    """Yields (concept, RGBA image) for every vocabulary concept that the style has."""
    if style == "fluent-3d":
        files = _read_tar(tarball, lambda name: name.startswith("assets/") and name.endswith(".webp"))
        by_code = {_plain_code(name[len("assets/") : -len(".webp")]): data for name, data in files.items()}
        for concept in concepts:
            if emoji[concept]["code"] in by_code:
                yield concept, Image.open(io.BytesIO(by_code[emoji[concept]["code"]])).convert("RGBA")
        return
    files = _read_tar(tarball, lambda name: name in ("icons.json", "chars.json"))
    icons = json.loads(files["icons.json"])
    by_code = {_plain_code(code): name for code, name in json.loads(files.get("chars.json", b"{}")).items()}
    # Some icons lack a code point but carry the label as their name or as an alias.
    by_name = {_letters(name): name for name in (*icons.get("aliases", {}), *icons["icons"])}
    for concept in concepts:
        label = FXEMOJI_NAMES.get(concept, concept) if style == "fxemoji" else concept
        name = by_code.get(emoji[concept]["code"]) or by_name.get(_letters(label))
        if name is None:
            continue
        image = render(_svg(icons, name))
        yield concept, _sticker(image) if style.endswith("high-contrast") else image


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _svg(icons: dict, name: str) -> str:
    """The SVG text of an icon in an Iconify set."""
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _sticker(image: Image.Image) -> Image.Image:
    """Line art with its inside painted white, so that the mask is the silhouette and not thin strokes."""
    try:
        from scipy import ndimage
    except ImportError:
        raise InputError("building the pack needs scipy: pip install scipy") from None
    rgba = np.asarray(image, np.float32)  # [h,w,4]
    alpha = rgba[..., 3:] / 255
    # Closing bridges the thin cuts by which an inside is open to the outside.
    pad, disk = 8, np.hypot(*np.mgrid[-4:5, -4:5]) <= 4
    solid = np.pad(alpha[..., 0] > 0.5, pad)
    inside = ndimage.binary_fill_holes(ndimage.binary_closing(solid, disk))[pad:-pad, pad:-pad]
    painted = np.concatenate([rgba[..., :3] * alpha + 255 * (1 - alpha), np.full_like(alpha, 255)], -1)
    return Image.fromarray(np.where(inside[..., None], painted, rgba).round().astype(np.uint8))


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


# ---- backgrounds ---------------------------------------------------------------------------------


def _backgrounds(cache_dir: Path, progress):
    """Yields (name, word, split, image); a texture is cut in three so that every split has its word."""
    read = _skimage_file(cache_dir, progress)
    for file, word in SKIMAGE_TEXTURES.items():
        yield from _cut(word, word, Image.open(io.BytesIO(read(file))).convert("RGB"))
    folder = _debian_photos(cache_dir, progress)
    splits = _photo_splits(list(PHOTOS))
    for file, word in PHOTOS.items() if folder else ():
        try:
            image = Image.open(folder / file)
            image.draft("RGB", (3 * BACKGROUND_SIDE, 3 * BACKGROUND_SIDE))
            image = image.convert("RGB")
        except OSError as error:
            log.warning("background photo %s left out: %s", file, error)
            continue
        name = re.sub("[^a-z0-9]+", "-", Path(file).stem.lower())
        if word == "photo":
            yield name, word, splits[file], _shrink(image)
        else:
            yield from _cut(f"{word}-{name}", word, _shrink(image, 2 * BACKGROUND_SIDE))


def _photo_splits(files: list[str]) -> dict[str, str]:
    """Photo file -> split: whole files in the order of their hash, about 5/8 train, 1/8 val, 2/8 test."""
    photos = sorted(
        (f for f in files if PHOTOS[f] == "photo"), key=lambda f: hashlib.sha256(f.encode()).hexdigest()
    )
    pattern = ("train", "test", "train", "val", "train", "test", "train", "train")
    return {file: pattern[i % len(pattern)] for i, file in enumerate(photos)}


def _cut(name: str, word: str, image: Image.Image):
    width, height = image.size
    low = height * 5 // 8
    boxes = {
        "train": (0, 0, width, low),
        "val": (0, low, width // 2, height),
        "test": (width // 2, low, width, height),
    }
    for mark, box in boxes.items():
        yield f"{name}-{mark}", word, mark, _shrink(image.crop(box))


def _shrink(image: Image.Image, side: int = BACKGROUND_SIDE) -> Image.Image:
    scale = side / min(image.size)
    if scale >= 1:
        return image
    return image.resize(tuple(round(s * scale) for s in image.size), Image.Resampling.LANCZOS)


# ---- the file ------------------------------------------------------------------------------------


def _encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    """A stored zip with fixed dates (equal inputs give equal bytes), put in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
