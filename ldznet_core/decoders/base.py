"""What a mask decoder declares, and what its file says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from ..networks.unet import UNetConfig

CONDITIONS = ("phrase", "caption", "empty")
"""The texts that may condition the backbone while features are read: each phrase, a caption of the picture, or none."""


@dataclass(frozen=True)
class DecoderInfo:
    """What a decoder file says of itself.

    `timesteps` is the half-open range that its features were trained at, `pixels` the image area, `templates` the
    sentences that phrases were put in, and `conditions` the texts (of `CONDITIONS`) that conditioned its features.
    Raises ValueError for no condition or an unknown one.
    """

    family: str
    prediction: str
    timesteps: tuple[int, int] = (300, 500)
    pixels: int = 384 * 384
    templates: tuple[str, ...] = ("a photo of a {}.",)
    training: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    licence: str = "Apache-2.0"
    conditions: tuple[str, ...] = ("phrase",)

    def __post_init__(self):
        if not self.conditions or not {*self.conditions} <= {*CONDITIONS}:
            raise ValueError(f"conditions {[*self.conditions]} are not among {', '.join(CONDITIONS)}")


class Decoder(Protocol):
    """A network that turns latents, phrases' contexts and features of a backbone into logits of masks.

    `kind` is its name in files and on the command line. `reads` says what it takes: scaled latents [B, C, h, w], or
    pixels [B, 3, 8h, 8w] in -1..1. `taps` names the features that it takes, in order, named as in
    `networks.taps`; none for a decoder without features. `attends` are those of the taps, queries all of them,
    whose attention to the phrases it takes as well. `tells_presence` says whether it knows if a phrase names anything,
    `timestep` how noisy latents are best made for it. `conditions` are the texts (of `CONDITIONS`) that its features
    were trained under. `backbone_config` holds the sizes of the UNet that it was made for, and `info` what its file
    says, if it came from one.
    """

    kind: str
    reads: Literal["latent", "pixels"]
    taps: tuple[str, ...]
    attends: tuple[str, ...]
    tells_presence: bool
    timestep: int
    info: DecoderInfo | None

    @property
    def conditions(self) -> tuple[str, ...]: ...

    @property
    def backbone_config(self) -> UNetConfig: ...

    def __call__(
        self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps: Tensor | None = None
    ) -> Tensor:
        """Logits [N, 1, 8h, 8w] of B latents `z` and N contexts [N, 77, D], N / B an image and image-major.

        `features` holds one map [B, C, h_i, w_i] for each tap, then for each of `attends` the attention
        [N, 2 heads, h_i, w_i] (see `segment.features`); `timesteps` [B] says how noisy the latents were that they
        were read of.
        """
        ...

    def predict(
        self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The same logits, and log-odds [N] that the phrases name anything; None where it does not tell."""
        ...
