"""Scenes of the miniature world: sprites composed on a background, with a caption and exact masks.

Everything is drawn on the fly and depends only on the random generator passed in.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import InputError
from ..imaging.looks import restyle_picture
from .pack import COLOURS
from .sprites import Sprite
from .styles import Looks, restyle_things
from .words import caption, clash, takes_article

COLOUR_RGB = {
    "white": (240, 240, 240),
    "black": (24, 24, 26),
    "grey": (132, 132, 134),
    "red": (206, 44, 44),
    "orange": (242, 142, 36),
    "yellow": (246, 218, 66),
    "green": (70, 160, 74),
    "blue": (60, 112, 206),
    "purple": (130, 72, 172),
    "pink": (244, 152, 188),
    "brown": (124, 80, 48),
}
# Grey textures get one of these tints (or none).
TINTS = {
    "grass": ((98, 150, 60), (124, 158, 72), (70, 126, 58)),
    "brick": ((170, 84, 66), (186, 112, 84), (150, 132, 122)),
    "gravel": ((150, 146, 140), (178, 156, 124), (120, 124, 130)),
}

MAX_ATTEMPTS = 200  # placements tried before compose gives up
PORTRAIT_SCALE = (0.68, 0.92)  # of a thing that is alone in the middle


@dataclass(frozen=True, eq=False)
class Thing:
    """A sprite as it lies in a scene; box is the mask's (left, top, right, bottom), ends excluded."""

    sprite: Sprite
    mask: np.ndarray  # bool [S,S], visible pixels only
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with its caption and its things, lowest first."""

    image: np.ndarray  # uint8 [S,S,3]
    caption: str
    things: tuple[Thing, ...]
    background: str

    def phrases(self) -> list[tuple[str, np.ndarray]]:
        """Every true and unambiguous phrase with the union mask of all things it names (bool [S,S])."""
        size = self.image.shape[0]
        found = []
        for noun in dict.fromkeys(t.sprite.noun for t in self.things):
            same = [t for t in self.things if t.sprite.noun == noun]
            found.append((noun, _union(same)))
            # With an uncoloured apple beside a red one nobody knows whether "red apple" means both.
            if all(t.sprite.colour for t in same):
                for colour in dict.fromkeys(t.sprite.colour for t in same):
                    found.append((f"{colour} {noun}", _union([t for t in same if t.sprite.colour == colour])))
            if len(self.things) >= 2:
                for words, axis, sign in _SIDES:
                    there = [t for t in same if sign * (_centre(t)[axis] / size - 0.5) > 0.08]
                    clear = all(
                        sign * (_centre(there[0])[axis] - _centre(t)[axis]) > 0.15 * size
                        for t in same
                        if there and t is not there[0]
                    )
                    if len(there) == 1 and clear:
                        found.append((f"the {noun} {words}", there[0].mask))
        return found


# words, axis of the centre (x, y), direction
_SIDES = (("on the left", 0, -1), ("on the right", 0, 1), ("at the top", 1, -1), ("at the bottom", 1, 1))


def _union(things) -> np.ndarray:
    return np.logical_or.reduce([t.mask for t in things])


def _centre(thing: Thing) -> tuple[float, float]:
    left, top, right, bottom = thing.box
    return (left + right) / 2, (top + bottom) / 2


# ---- composing -----------------------------------------------------------------------------------


def compose(
    rng: np.random.Generator, sprites, backgrounds, size=128, counts=(0.3, 0.45, 0.25), scale=None,
    looks: Looks | None = None, portraits: bool = False,
) -> Scene:
    """A random scene of 1, 2 or 3 things (with the probabilities in counts).

    The noun is drawn first and then one of its sprites, so that nouns are balanced. scale=(low, high) sets
    the longest side as a share of size; without backgrounds only plain colours are used. With `looks` things and
    pictures are restyled, and some pictures show nothing. With `portraits` a thing that is alone is large and near the
    middle, as people expect of a drawing of one thing.
    """
    if len(sprites) == 0:
        raise InputError("compose got no sprites: check the nouns, styles and splits that were selected")
    by_noun: dict[str, list[Sprite]] = {}
    for sprite in sprites:
        by_noun.setdefault(sprite.noun, []).append(sprite)
    weights = np.asarray(counts, float)
    number = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    if looks and rng.random() < looks.empty:
        image, background = _background(rng, backgrounds, size, [])
        if rng.random() < looks.pictures:
            image = restyle_picture(rng, image, keep_hue=True)
        image = np.clip(image + 0.5, 0, 255).astype(np.uint8)
        return Scene(image, caption(rng, [], background), (), background)
    chosen = _choose(rng, by_noun, number)
    for attempt in range(MAX_ATTEMPTS + 1):
        if attempt == MAX_ATTEMPTS:
            raise InputError(
                f"{number} things do not fit into {size} pixels at scale {scale}: make it smaller"
            )
        portrait = portraits and len(chosen) == 1
        shares = [_longest(rng, len(chosen), PORTRAIT_SCALE if portrait else scale) for _ in chosen]
        patches = [_patch(rng, s, share, size) for s, share in zip(chosen, shares, strict=True)]
        if looks:
            chosen, patches = restyle_things(rng, chosen, patches, looks, size)
        alphas = np.zeros((len(chosen), size, size), np.float32)
        corners = _places(rng, [p.shape[:2] for p in patches], size, portrait)
        for alpha, patch, (top, left) in zip(alphas, patches, corners, strict=True):
            alpha[top : top + patch.shape[0], left : left + patch.shape[1]] = patch[..., 3]
        masks = visible_masks(alphas)
        if all(m.sum() >= max(1, 0.35 * (a > 0.5).sum()) for m, a in zip(masks, alphas, strict=True)):
            break
        if not all((a > 0.5).any() for a in alphas):
            chosen = _choose(rng, by_noun, number)  # a sprite too thin for this size
    image, background = _background(rng, backgrounds, size, patches)  # float [S,S,3] 0..255
    for patch, (top, left) in zip(patches, corners, strict=True):
        region = image[top : top + patch.shape[0], left : left + patch.shape[1]]
        region += patch[..., 3:] * (patch[..., :3] - region)
    if looks and rng.random() < looks.pictures:
        image = restyle_picture(rng, image, keep_hue=True)
    things = tuple(Thing(s, m, _box(m)) for s, m in zip(chosen, masks, strict=True))
    image = np.clip(image + 0.5, 0, 255).astype(np.uint8)
    return Scene(image, caption(rng, chosen, background), things, background)


def visible_masks(alphas: np.ndarray) -> np.ndarray:
    """Masks [n,S,S] of layers alphas [n,S,S] (0..1, lowest first): more than half of a pixel is seen."""
    masks = np.empty(alphas.shape, bool)
    through = np.ones(alphas.shape[1:], np.float32)  # what the layers above let through
    for i in range(len(alphas) - 1, -1, -1):
        masks[i] = alphas[i] * through > 0.5
        through *= 1 - alphas[i]
    return masks


def _choose(rng, by_noun: dict[str, list[Sprite]], number: int) -> list[Sprite]:
    """Sprites of distinct nouns that do not clash; in 8 % of the scenes the first noun comes twice."""
    names = list(by_noun)
    picked: list[str] = []
    for noun in (names[i] for i in rng.permutation(len(names))[: 8 * number]):
        if not any(clash(noun, other) for other in picked):
            picked.append(noun)
        if len(picked) == number:
            break
    chosen = []
    for noun in picked:
        chosen.append(by_noun[noun][rng.integers(len(by_noun[noun]))])
    twins = [s for s in by_noun[picked[0]] if s is not chosen[0]]
    if number > 1 and rng.random() < 0.08 and twins and takes_article(picked[0]):
        chosen = chosen[: number - 1]
        chosen.insert(1, twins[rng.integers(len(twins))])
    return chosen


def _longest(rng, number: int, scale) -> float:
    low, high = scale or {1: (0.55, 0.85), 2: (0.38, 0.58)}.get(number, (0.30, 0.46))
    return rng.uniform(low, high)


def _patch(rng, sprite: Sprite, share: float, size: int) -> np.ndarray:
    """The sprite scaled to a share of the scene: float32 [h,w,4], colours 0..255, alpha 0..1."""
    image = Image.fromarray(sprite.rgba)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ratio = min(share, 1) * size / max(image.size)
    # Pillow premultiplies RGBA in resize and rotate, so no dark fringes.
    image = image.resize(tuple(max(1, round(s * ratio)) for s in image.size), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
        image.thumbnail((size, size))  # a turned large sprite must still fit
    patch = np.asarray(image).astype(np.float32)
    patch[..., :3] = np.minimum(patch[..., :3] * rng.uniform(0.92, 1.08), 255)
    patch[..., 3] /= 255
    return patch


def _places(rng, shapes, size: int, portrait: bool) -> list[tuple[int, int]]:
    """Corners (top, left) that keep every patch inside and the overlaps small."""
    if portrait:
        centres = [rng.normal(0.5, 0.06, 2)]
    elif len(shapes) == 1:
        centres = [rng.uniform(0, 1, 2)]  # (y, x), pushed inside below
    elif len(shapes) == 2:
        along = [rng.uniform(0.22, 0.32), rng.uniform(0.68, 0.78)]
        across = rng.uniform(0.3, 0.7, 2)
        centres = [np.array(pair) for pair in zip(across, along, strict=True)]
        if rng.random() < 0.4:
            centres = [c[::-1] for c in centres]
    else:
        corners = np.array([(0.26, 0.26), (0.26, 0.74), (0.74, 0.26), (0.74, 0.74)])
        centres = [corners[i % 4] + rng.uniform(-0.05, 0.05, 2) for i in range(max(4, len(shapes)))]
    order = rng.permutation(len(centres))[: len(shapes)]
    places = []
    for (height, width), i in zip(shapes, order, strict=True):
        y, x = centres[i] * size - (height / 2, width / 2)
        places.append((int(np.clip(round(y), 0, size - height)), int(np.clip(round(x), 0, size - width))))
    return places


def _background(rng, backgrounds, size: int, patches) -> tuple[np.ndarray, str]:
    """The picture behind the things (float32 [S,S,3]) and its word: a colour, a texture's word or "photo"."""
    kind = rng.choice(("colour", "texture", "photo"), p=(0.55, 0.25, 0.20))
    words = sorted({b.word for b in backgrounds if (b.word == "photo") == (kind == "photo")})
    if kind == "colour" or not words:
        return _plain(rng, size, patches)
    word = words[rng.integers(len(words))]
    fitting = [b for b in backgrounds if b.word == word]
    rgb = fitting[rng.integers(len(fitting))].rgb
    side = int(min(rgb.shape[:2]) * rng.uniform(0.5, 1.0))
    top = rng.integers(rgb.shape[0] - side + 1)
    left = rng.integers(rgb.shape[1] - side + 1)
    crop = Image.fromarray(np.ascontiguousarray(rgb[top : top + side, left : left + side]))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32)
    if word in TINTS and np.ptp(image, axis=-1).max() < 12:
        tint = np.array(TINTS[word][rng.integers(len(TINTS[word]))], np.float32)
        image = image / max(float(image.mean()), 1.0) * tint
    return np.clip(image * rng.uniform(0.85, 1.1), 0, 255), str(word)


def _plain(rng, size: int, patches) -> tuple[np.ndarray, str]:
    """A named colour far from the things' mean colours, flat or as a soft gradient of two shades."""
    means = []
    for patch in patches:
        weight = patch[::3, ::3, 3:]
        means.append((patch[::3, ::3, :3] * weight).sum((0, 1)) / max(float(weight.sum()), 1e-3))
    order = rng.permutation(len(COLOURS))
    distances = [min((np.abs(m - COLOUR_RGB[COLOURS[i]]).sum() for m in means), default=999) for i in order]
    # The first that is far enough, else the farthest.
    enough = [i for i, d in zip(order, distances, strict=True) if d > 130]
    word = COLOURS[enough[0] if enough else order[int(np.argmax(distances))]]
    base = np.array(COLOUR_RGB[word], np.float32) + rng.uniform(-12, 12, 3)
    image = np.broadcast_to(base, (size, size, 3))
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:size, :size] / max(size - 1, 1) - 0.5
        image = image * (1 + 0.22 * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    return np.clip(image, 0, 255).astype(np.float32), word


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
