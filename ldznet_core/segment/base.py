"""What all methods share: the masks that they return, the checks of what they are asked, and the way from an image to
a latent and back to the image's size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.base import Backbone, require
from ..backbones.joint import Noised
from ..backbones.queries import Queries
from ..backbones.recording import Features
from ..errors import InputError
from ..imaging.images import to_tensor
from .guided_filter import REACH
from .phrases import check_phrases
from .sizing import fit, resize, working_size

ROWS_AT_ONCE = 8  # of one pass of a network: bounds its memory
ENCODING = 0.3  # the share of the work that is the VAE's, for the progress bar
GRID = 64  # pixels: eight for each position of a latent, and the networks halve that grid three times
PRESENT = 2.0  # presence of 96 % of what is there in the validation scenes of the miniature, by its attention
POSITIONS_OFF = 2  # by which the edges of a coarse mask may be off, by the validation scenes of the miniature


@dataclass(frozen=True)
class MaskPrediction:
    """What every method returns.

    `masks` [B, P, H, W] are soft, in 0..1. `presence` [B, P] says how sure it is that each phrase is in the picture:
    what has `PRESENT` counts as there. Attention gives it in standard deviations above pure noise, a decoder as
    log-odds with `PRESENT` at even odds; None where a method cannot tell. `reach` says how far an edge may be off
    because the masks were made on a coarse grid, as a share of the image's long side: `refine` takes it.
    Raises InputError where a value is not finite, because NaN must never pass for "nothing found".
    """

    masks: Tensor
    presence: Tensor | None = None
    reach: float = REACH

    def __post_init__(self):
        for name, values in (("mask", self.masks), ("presence", self.presence)):
            if values is not None and not values.isfinite().all():
                raise InputError(
                    f"the model gave a {name} that is not finite (NaN or infinity): it overflows in this precision or "
                    "its weights are damaged; load it in float32 or bfloat16"
                )

    def present(self, least: float) -> Tensor:
        """The masks, all zero for phrases of less than `least` presence."""
        if self.presence is None:
            return self.masks
        return self.masks * (self.presence >= least)[..., None, None]


class BaseSegmenter:
    """A method of making masks, bound to a backbone.

    A subclass gives `timestep` and `samples` (its defaults), `tells_presence`, `area`, `predict_passes` and in `needs`
    the capability of the backbone that it asks for. `samples` noises are averaged. `progress` is called before every
    pass of a network with the share of the work done, 0..1; what it raises (an interruption) ends the work.
    """

    timestep = 400
    samples = 1
    tells_presence = False
    needs = ""

    def __init__(self, backbone: Backbone, samples: int | None = None, progress: Callable[[float], None] | None = None):
        if self.needs:
            require(backbone, self.needs)
        if samples is not None and samples < 1:
            raise InputError(f"{samples} samples cannot be averaged: ask for 1 or more")
        self.backbone, self.samples = backbone, samples or self.samples
        self.progress = progress or (lambda share: None)

    @property
    def area(self) -> int:
        """About how many pixels an image is worked on at."""
        return self.backbone.native_area

    def __call__(
        self, image, phrases: Sequence[str], *, timestep: int | None = None, seed: int = 0, caption: str = ""
    ) -> Tensor:
        """Soft masks [B, P, H, W] in 0..1 at the image's size, as `predict`."""
        return self.predict(image, phrases, timestep=timestep, seed=seed, caption=caption).masks

    def predict(
        self, image, phrases: Sequence[str], *, timestep: int | None = None, seed: int = 0, caption: str = ""
    ) -> MaskPrediction:
        """Masks [B, P, H, W] at the size of `image`: PIL, or float [B, H, W, 3] in 0..1.

        The work is done on a copy of about `area` pixels, both sides multiples of 64. `timestep` says how noisy the
        latent is made before the backbone reads it (default: the method's), `seed` which noise, `caption` what the
        picture shows, if known. Raises InputError for a bad image, no phrase or an empty one, or a timestep outside
        0..999.
        """
        phrases, image, timestep = check_phrases(phrases), to_tensor(image), self.check_timestep(timestep)
        size = tuple(image.shape[1:3])
        if not len(image):
            return self.predict_nothing(len(phrases), size)
        small = resize(image, working_size(*size, area=self.area, multiple=GRID))
        z = encode(self.backbone, small, lambda share: self.progress(ENCODING * share))
        found = self.predict_passes(z, phrases, timestep, seed, caption, None, ENCODING)
        return replace(found, masks=fit(found.masks, size))

    def predict_latent(
        self,
        z: Tensor,
        phrases: Sequence[str],
        *,
        timestep: int | None = None,
        seed: int = 0,
        caption: str = "",
        captured: Features | Queries | Noised | None = None,
    ) -> MaskPrediction:
        """Masks [B, P, H, W] of scaled latents [B, C, h, w], whose positions are `stride` pixels of the backbone, 8 in
        most.

        `captured` is what was recorded while these latents were sampled, one row an image: a decoder's features or
        attention's queries, with which no pass of the backbone is made over the latents; or for a transformer the
        sampler's own noisy latents, which are read in their place. Raises InputError as `predict`, and for latents
        that are not finite.
        """
        phrases, timestep = check_phrases(phrases), self.check_timestep(timestep)
        check_latents(z)
        if not len(z):
            stride = self.backbone.stride
            return self.predict_nothing(len(phrases), (z.shape[-2] * stride, z.shape[-1] * stride))
        return self.predict_passes(z, phrases, timestep, seed, caption, captured, 0.0)

    def predict_passes(
        self,
        z: Tensor,
        phrases: Sequence[str],
        timestep: int,
        seed: int,
        caption: str,
        captured: Features | Queries | Noised | None,
        done: float,
    ) -> MaskPrediction:
        """As `predict_latent`, of checked input; `done` is the share of the work that came before."""
        raise NotImplementedError

    def predict_nothing(self, phrases: int, size: tuple[int, int]) -> MaskPrediction:
        """The answer to a batch of no images."""
        return MaskPrediction(torch.zeros(0, phrases, *size), torch.zeros(0, phrases) if self.tells_presence else None)

    def check_timestep(self, timestep: int | None) -> int:
        timestep = self.timestep if timestep is None else timestep
        if not 0 <= timestep <= 999:
            raise InputError(f"timestep {timestep} is outside 0..999: this method works best near {self.timestep}")
        return timestep


def check_latents(z: Tensor) -> None:
    """Raises InputError unless `z` is a batch of finite latents [B, C, h, w] with something in each."""
    if z.ndim != 4 or not z.is_floating_point() or 0 in z.shape[1:]:
        raise InputError(f"expected latents as float [B, C, h, w], got {z.dtype} {[*z.shape]}")
    if not z.isfinite().all():
        raise InputError(
            f"the latents {[*z.shape]} have values that are not finite (NaN or infinity): sample or encode them again, "
            "in float32 if need be"
        )


def enlarge(
    masks: Tensor, presence: Tensor | None, padded: tuple[int, int], size: tuple[int, int], stride: int = 8
) -> MaskPrediction:
    """The prediction [B, P, stride h, stride w] of masks [B, P, rows, columns] on a coarse grid that covers a padded
    latent.

    `padded` and `size` are height and width of the latent with and without its padding, in positions of `stride`
    pixels.
    """
    reach = max(REACH, POSITIONS_OFF / max(masks.shape[-2:]))
    masks = F.interpolate(masks, (padded[0] * stride, padded[1] * stride), mode="bilinear", align_corners=False)
    return MaskPrediction(masks[..., : size[0] * stride, : size[1] * stride], presence, reach)


def encode(backbone: Backbone, images: Tensor, progress: Callable[[float], None], **options) -> Tensor:
    """Scaled latents [B, C, h, w] of images [B, H, W, 3], one at a time; `progress` is told the share done before
    each. Raises InputError where the VAE gives values that are not finite."""
    latents = []
    for i in range(len(images)):
        progress(i / len(images))
        latents.append(backbone.encode(images[i : i + 1], **options))
    z = torch.cat(latents)
    if not z.isfinite().all():
        raise InputError(
            "the VAE gave latents that are not finite (NaN or infinity): it overflows in this precision; load it in "
            "float32 or bfloat16"
        )
    return z
