"""What the miniature draws: batches of pictures, cut-outs of its own drawings, and scenes made of nothing else.

The masks of generated scenes are known by construction, without any segmentation network: each thing is drawn
alone on a plain ground and cut out by its difference from that ground; cut-outs are composed as sprites are; and
the whole picture is noised a little and drawn anew, so that every pixel of it is the miniature's own.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from ..backbones.sampling import STEPS
from ..backbones.torch_ldm import FileBackbone
from .sprites import Background, Sprite
from .words import article
from .world import Scene, compose

REDRAW_FROM = 200  # timestep: fine texture becomes the miniature's, shapes stay where they are
GROUNDS = ("white", "blue", "green", "pink", "yellow", "purple")
"""Plain grounds that things are drawn on to be cut out."""


@torch.inference_mode()
def denoise(backbone: FileBackbone, z_t: Tensor, captions: list[str], steps: list[int]) -> Tensor:
    """Denoise `z_t` [B, 4, h, w] from timestep `steps[0]` with guidance, a caption a row."""
    text = backbone.embed([""] * len(captions) + captions)
    *_, (_, z) = backbone.schedule.ddim(lambda z, t: backbone.guided(z, t, text), z_t, steps)
    return z


def redraw_steps(backbone: FileBackbone) -> list[int]:
    """The timesteps of generating a picture anew: from `REDRAW_FROM` on, as dense as those of a whole sampling run."""
    return backbone.schedule.steps(max(2, round(STEPS * REDRAW_FROM / 1000)), REDRAW_FROM)


def generate(backbone: FileBackbone, captions: list[str], size: int, seed: int = 0, batch: int = 32) -> np.ndarray:
    """One picture a caption, uint8 [N, size, size, 3]; the noise of row i follows from `seed` + i."""
    pictures = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        noise = torch.stack([torch.randn(4, size // 8, size // 8, generator=g) for g in generators])
        z = denoise(backbone, noise.to(backbone.device), part, backbone.schedule.steps(STEPS))
        pictures.append((backbone.decode(z) * 255).round().byte().cpu().numpy())
    return np.concatenate(pictures)


def cut_out(picture: np.ndarray) -> np.ndarray | None:
    """A drawing on a plain ground as RGBA, cropped; None where the ground is not plain or nothing stands out of it.

    `picture` is uint8 [H, W, 3]. What differs from the border's median colour, with its holes, is the thing.
    """
    values = picture.astype(np.float32)
    border = np.concatenate([values[:3].reshape(-1, 3), values[-3:].reshape(-1, 3),
                             values[:, :3].reshape(-1, 3), values[:, -3:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    if np.abs(border - ground).max(1).mean() > 16:
        return None
    distance = np.abs(values - ground).max(-1)
    thing = binary_fill_holes(distance >= 40)
    image = Image.fromarray((thing * 255).astype(np.uint8))
    image = image.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MedianFilter(5))  # specks and halo off
    alpha = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)))
    rows, columns = np.flatnonzero((alpha > 127).any(1)), np.flatnonzero((alpha > 127).any(0))
    share = (alpha > 127).mean()
    if not 0.06 < share < 0.7 or rows[0] == 0 or columns[0] == 0:
        return None
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.dstack([picture, alpha])[box]


def drawn_sprites(
    backbone: FileBackbone, nouns: tuple[str, ...], each: int, size: int, seed: int
) -> tuple[Sprite, ...]:
    """Cut-outs of the miniature's own drawings, up to `each` a noun."""
    wanted = [(noun, GROUNDS[i % len(GROUNDS)]) for noun in nouns for i in range(each)]
    captions = [f"{article(noun)} on {article(ground)} background" for noun, ground in wanted]
    pictures = generate(backbone, captions, size, seed)
    cut = ((noun, cut_out(picture)) for (noun, _), picture in zip(wanted, pictures, strict=True))
    return tuple(Sprite(n, n, "generated", "generated", "", None, rgba) for n, rgba in cut if rgba is not None)


def generated_scenes(
    backbone: FileBackbone, nouns: tuple[str, ...], count: int, size: int, seed: int = 0, each: int = 6
) -> list[Scene]:
    """Scenes of two and three things in which every pixel was drawn by the miniature, with masks by construction."""
    sprites = drawn_sprites(backbone, nouns, each, size, seed)
    rng = np.random.default_rng(seed)
    grounds = generate(backbone, [f"{article(c)} background" for c in GROUNDS] * 2, size, seed + 10_000)
    backgrounds = [Background("photo", "generated", g) for g in grounds]
    scenes = [compose(rng, sprites, backgrounds, size, (0, 0.6, 0.4)) for _ in range(count)]
    redrawn = []
    steps = redraw_steps(backbone)
    for start in range(0, count, 32):
        part = scenes[start : start + 32]
        images = torch.from_numpy(np.stack([s.image for s in part])).float() / 255
        z = backbone.encode(images)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed + start)).to(z)
        z_t = backbone.schedule.add_noise(z, noise, torch.full((len(z),), REDRAW_FROM))
        pictures = backbone.decode(denoise(backbone, z_t, [s.caption for s in part], steps))
        pictures = (pictures * 255).round().byte().cpu().numpy()
        redrawn += [Scene(p, s.caption, s.things, s.background) for p, s in zip(pictures, part, strict=True)]
    return redrawn
