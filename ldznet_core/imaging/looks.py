"""Looks that nothing was drawn in: what makes a decoder learn things and not the hand that drew them.

`restyle` gives one thing a look of its own, `restyle_picture` changes a whole picture. Both depend only on the
generator passed in. Pictures are float32 [h, w, 3] in 0..255, things [h, w, 4] with alpha in 0..1.
"""

import numpy as np
from PIL import Image, ImageFilter

LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def restyle(rng: np.random.Generator, thing: np.ndarray, keep_hue: bool = False) -> tuple[np.ndarray, bool]:
    """The thing in one to three looks at random, at times in another shape, and whether its hue may have changed.

    A shape or an outline may make it larger than what came in.
    """
    if rng.random() < 0.5:
        thing = bent(rng, thing)
    colour, alpha = thing[..., :3], thing[..., 3]
    changes_hue = False
    looks = list(INSIDE) if keep_hue else [*INSIDE, *HUES]
    for i in rng.permutation(len(looks))[: rng.integers(1, 4)]:
        colour = looks[i](rng, colour)
        changes_hue |= looks[i] in HUES
    thing = np.dstack([np.clip(colour, 0, 255), alpha]).astype(np.float32)
    if rng.random() < 0.35:
        thing = outlined(rng, thing)
    return thing, changes_hue


def restyle_picture(rng: np.random.Generator, picture: np.ndarray, keep_hue: bool = False) -> np.ndarray:
    """The picture with one or two changes at random."""
    looks = list(INSIDE) if keep_hue else [*INSIDE, *HUES]
    for i in rng.permutation(len(looks))[: rng.integers(1, 3)]:
        picture = looks[i](rng, picture)
    return np.clip(picture, 0, 255).astype(np.float32)


# ---- looks: [h, w, 3] to [h, w, 3] ----------------------------------------------------------------


def recoloured(rng, colour):
    """Channels mixed by a random matrix whose rows sum to about one, so that grey stays nearly grey."""
    mix = np.eye(3) * rng.uniform(0.2, 1.0) + rng.dirichlet((0.6, 0.6, 0.6), 3) * rng.uniform(0.2, 0.9)
    mix /= mix.sum(1, keepdims=True)
    return (colour @ mix.T.astype(np.float32)) * rng.uniform(0.85, 1.15, 3).astype(np.float32)


def turned(rng, colour):
    """Hues turned by swapping channels, at times inverted."""
    colour = colour[..., rng.permutation(3)]
    return 255 - colour if rng.random() < 0.2 else colour


def grey(rng, colour):
    """Less or no colour, at times in one tint."""
    luma = (colour @ LUMA)[..., None]
    tint = rng.uniform(0.75, 1.2, 3).astype(np.float32) if rng.random() < 0.5 else np.ones(3, np.float32)
    share = rng.uniform(0.6, 1.0)
    return colour * (1 - share) + luma * tint * share


def toned(rng, colour):
    """Another gamma, contrast and brightness."""
    x = np.clip(colour / 255, 0, 1) ** rng.uniform(0.5, 1.9)
    return 255 * ((x - 0.5) * rng.uniform(0.6, 1.4) + 0.5 + rng.uniform(-0.12, 0.12))


def saturated(rng, colour):
    luma = (colour @ LUMA)[..., None]
    return luma + (colour - luma) * rng.uniform(0.35, 1.8)


def posterised(rng, colour):
    """Few levels a channel, as in flat art."""
    levels = rng.integers(2, 6)
    return np.round(np.clip(colour, 0, 255) / 255 * levels) * (255 / levels)


def blurred(rng, colour):
    return filtered(colour, ImageFilter.GaussianBlur(float(rng.uniform(0.005, 0.02)) * max(colour.shape[:2])))


def painted(rng, colour):
    """Strokes of a brush: the most common of the colours around."""
    return filtered(colour, ImageFilter.ModeFilter(int(rng.choice((5, 7, 9)))))


def drawn(rng, colour):
    """Edges drawn as lines, dark or light, over the picture or over paper."""
    luma = np.clip(colour @ LUMA, 0, 255)
    soft = filtered(np.repeat(luma[..., None], 3, 2), ImageFilter.GaussianBlur(float(rng.uniform(0.6, 1.6))))[..., 0]
    dy, dx = np.gradient(soft)
    lines = np.clip(np.hypot(dx, dy) / rng.uniform(8, 25), 0, 1)[..., None]
    ink = rng.uniform(0, 70, 3) if rng.random() < 0.8 else rng.uniform(180, 255, 3)
    share = rng.choice((0.0, 0.3, 1.0), p=(0.5, 0.2, 0.3))
    paper = rng.uniform(190, 255, 3) if ink.mean() < 128 else rng.uniform(0, 80, 3)
    ground = colour * (1 - share) + paper * share
    return ground * (1 - lines) + ink * lines


def hatched(rng, colour):
    """Parallel lines, thicker where it is dark."""
    height, width = colour.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 8)
    wave = 0.5 + 0.5 * np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period))
    dark = 1 - np.clip(colour @ LUMA, 0, 255) / 255
    lines = np.clip((dark * rng.uniform(0.8, 1.4) - wave) * 4, 0, 1)[..., None] * rng.uniform(0.4, 1.0)
    ground = colour if rng.random() < 0.6 else np.broadcast_to(rng.uniform(190, 255, 3), colour.shape)
    return ground * (1 - lines) + rng.uniform(0, 90, 3) * lines


def grained(rng, colour):
    """Grain of film, in colour or grey."""
    depth = 3 if rng.random() < 0.5 else 1
    return colour + rng.normal(0, rng.uniform(4, 28), (*colour.shape[:2], depth)).astype(np.float32)


def textured(rng, colour):
    """A soft texture, as of paper, wool or stone, of a random scale in each direction."""
    height, width = colour.shape[:2]
    cells = [max(2, round(side / rng.uniform(2, 24))) for side in (height, width)]
    noise = Image.fromarray(rng.normal(0, 1, cells).astype(np.float32))
    noise = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    return colour * np.clip(1 + noise * rng.uniform(0.05, 0.25), 0, 2)


def shaded(rng, colour):
    """Light from one side, as on a round thing."""
    height, width = colour.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y / max(height - 1, 1) - 0.5, x / max(width - 1, 1) - 0.5
    away = np.hypot(x - rng.uniform(-0.4, 0.4), y - rng.uniform(-0.4, 0.4))
    return colour * (rng.uniform(1.0, 1.4) - away * rng.uniform(0.3, 1.1))[..., None]


def inked(rng, colour):
    """Two tones, as of a stamp or a woodcut: ink where it is darker than around, or than most."""
    luma = np.clip(colour @ LUMA, 0, 255)
    radius = float(rng.uniform(0.05, 0.2)) * max(luma.shape)
    around = filtered(np.repeat(luma[..., None], 3, 2), ImageFilter.GaussianBlur(radius))[..., 0]
    share = rng.uniform(0, 1)
    level = share * around + (1 - share) * np.quantile(luma, rng.uniform(0.2, 0.8)) - rng.uniform(0, 12)
    light = np.clip((luma - level) / rng.uniform(4, 16) + 0.5, 0, 1)[..., None]
    ink, paper = rng.uniform(0, 70, 3), rng.uniform(195, 255, 3)
    if rng.random() < 0.5:
        ink, paper = ink.mean().repeat(3), paper.mean().repeat(3)
    return light * paper + (1 - light) * ink if rng.random() < 0.8 else light * ink + (1 - light) * paper


HUES = (recoloured, turned, grey, inked)
INSIDE = (toned, saturated, posterised, blurred, painted, drawn, hatched, grained, textured, shaded)


# ---- shapes ----


def bent(rng, thing: np.ndarray) -> np.ndarray:
    """The thing [h, w, 4] turned, sheared, stretched and bent softly, and cut to what is left of it."""
    height, width = thing.shape[:2]
    pad = max(2, round(0.25 * max(height, width)))
    layers = np.dstack([thing[..., :3] * thing[..., 3:], thing[..., 3:]])  # what is not there has no colour to bleed
    layers = np.pad(layers, ((pad, pad), (pad, pad), (0, 0)))
    height, width = layers.shape[:2]
    angle, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2)
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    matrix = turn @ np.array(((1, shear), (0, 1))) @ np.diag((stretch, 1 / stretch))
    cells = 6
    edges = [np.round(np.linspace(0, side, cells + 1)).astype(int) for side in (width, height)]
    points = np.stack(np.meshgrid(*edges), -1).astype(float)  # [rows, columns, (x, y)]
    middle = np.array((width, height)) / 2
    bends = rng.normal(0, 0.02 * max(width, height), points.shape)
    sources = (points - middle) @ matrix.T + middle + bends
    mesh = [
        (
            (edges[0][x], edges[1][y], edges[0][x + 1], edges[1][y + 1]),
            tuple(sources[[y, y + 1, y + 1, y], [x, x, x + 1, x + 1]].ravel()),
        )
        for y in range(cells)
        for x in range(cells)
    ]
    layers = np.dstack([
        Image.fromarray(layer.astype(np.float32)).transform(
            (width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
        )
        for layer in layers.transpose(2, 0, 1)
    ])  # fmt: skip
    colour, alpha = layers[..., :3] / np.maximum(layers[..., 3:], 1e-3), layers[..., 3:]
    rows, columns = ((alpha[..., 0] > 0.02).any(axis).nonzero()[0] for axis in (1, 0))
    if not len(rows):
        return thing
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.dstack([colour, alpha])[box].astype(np.float32)


# ---- outlines -------------------------------------------------------------------------------------


def outlined(rng, thing: np.ndarray) -> np.ndarray:
    """The thing with a line of one colour around it, and room for that line."""
    width = max(1, round(rng.uniform(0.008, 0.04) * max(thing.shape[:2])))
    thing = np.pad(thing, ((width, width), (width, width), (0, 0)))
    alpha = Image.fromarray((thing[..., 3] * 255).astype(np.uint8))
    # MaxFilter widens by a square; a blur and a threshold make the line round.
    wide = alpha.filter(ImageFilter.MaxFilter(2 * width + 1)).filter(ImageFilter.GaussianBlur(width / 2))
    wide = np.clip((np.asarray(wide, np.float32) / 255 - 0.35) * 3, 0, 1)
    wide = np.maximum(wide, thing[..., 3])
    ink = rng.choice(((0, 0, 0), (255, 255, 255), tuple(rng.uniform(0, 255, 3))), p=(0.5, 0.25, 0.25))
    colour = np.array(ink, np.float32) * (1 - thing[..., 3:]) + thing[..., :3] * thing[..., 3:]
    return np.dstack([colour, wide]).astype(np.float32)


def filtered(colour: np.ndarray, how: ImageFilter.Filter) -> np.ndarray:
    image = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(how)).astype(np.float32)
