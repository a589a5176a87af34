"""The miniature world's art as its makers publish it: emoji of ten styles and background pictures, by name.

It comes from pinned npm, PyPI and Debian packages when a pack is built and is never part of the repository;
its licences are those of the packages.
"""

import hashlib
import importlib.util
import io
import json
import logging
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


def npm_pack(package: str, cache_dir: Path, progress) -> Path:
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


# ---- emoji ---------------------------------------------------------------------------------------


def emoji_names(cache_dir: Path, progress) -> dict[str, dict]:
    """emojibase label -> {"code": code points without the variation selector, "group": our group word}."""
    tarball = npm_pack(NAMES_PACKAGE, cache_dir, progress)
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


def rasteriser() -> Callable[[str], Image.Image]:
    try:
        import resvg_py
    except ImportError:
        raise InputError("building the pack needs resvg_py: pip install resvg-py==0.5.0") from None

    def render(svg: str) -> Image.Image:
        # Twice the size, so that cropping and resizing to the final side loses no sharpness.
        png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    return render


def style_images(style: str, tarball: Path, concepts, emoji, render):
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


# ---- backgrounds ---------------------------------------------------------------------------------


def background_images(cache_dir: Path, progress):
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
