"""What the nodes have in common: sockets, inputs and outputs that mean the same everywhere, progress, previews."""

from collections.abc import Callable, Iterable

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..ldznet_core.hosts.comfy import ComfyHost
from ..ldznet_core.images import to_tensor
from ..ldznet_core.masks import present
from ..ldznet_core.pictures import overlay
from ..ldznet_core.segmenter import check_pair, fit

CATEGORY = "LD-ZNet"
Decoder = io.Custom("LDZNET_DECODER")
Captured = io.Custom("LDZNET_CAPTURE")
PREVIEWS = 24  # pictures shown on a node
TICKS = 1000

TEXT = io.String.Input(
    "text",
    multiline=True,
    default="",
    placeholder="cat\nred apple",
    tooltip="What to find: one phrase a line, or several in a line with a vertical bar between them",
)
TIMESTEP = io.Int.Input(
    "timestep",
    default=400,
    min=0,
    max=999,
    tooltip="How noisy the latent is made before the UNet reads it. Objects show best at 300 to 500",
)
SEED = io.Int.Input(
    "seed",
    default=0,
    min=0,
    max=0xFFFFFFFFFFFFFFFF,
    control_after_generate=False,
    tooltip="Seed of that noise: masks change a little with it",
)
THRESHOLD = io.Float.Input(
    "threshold",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.01,
    tooltip="A phrase counts as found where its mask is above this; if it nowhere is, its mask is all zero. "
    "Masks stay soft: use Threshold Mask for hard ones",
)


def mask_outputs() -> list:
    return [
        io.Mask.Output(display_name="masks", tooltip="Soft masks, one a phrase and image: those of the first image "
                       "first, in the order of the phrases"),
        io.Mask.Output(display_name="union", tooltip="One mask an image: whatever any phrase found"),
        io.Image.Output(display_name="overlay", tooltip="The image with what was found tinted and named"),
    ]


def progress() -> Callable[[float], None]:
    """A progress bar that takes the share of the work done, 0..1, and ends it where the user has said so."""
    bar = ProgressBar(TICKS)

    def report(share: float) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(share * TICKS), TICKS)

    return report


def latent_of(host: ComfyHost, latent: dict, image: Tensor | None) -> Tensor:
    """The scaled latents [B, 4, h, w] of a LATENT. Raises InputError where they are not those of the image, if any."""
    z = host.scaled(latent["samples"])
    if image is not None:
        check_pair(image, z)
    return z


def output(image: Tensor | None, masks: Tensor, phrases: list[str], threshold: float) -> io.NodeOutput:
    """Masks [B, P, H, W] as MASK [B*P, H, W], their union [B, H, W] and the overlay [B, H, W, 3], with a preview.

    They get the size of the image [B, H, W, 3]; without one the overlay is on grey.
    """
    masks = masks if image is None else fit(masks, tuple(image.shape[1:3]))
    batch, _, height, width = masks.shape
    image = torch.full((batch, height, width, 3), 0.5) if image is None else image[..., :3].cpu()
    masks = present(masks, threshold)
    drawn = [overlay(*pair, phrases, tau=threshold) for pair in zip(image, masks, strict=True)]
    shown = [picture for pair in zip(drawn, masks, strict=True) for picture in preview(*pair)]
    sized = [to_tensor(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in drawn]
    device = model_management.intermediate_device()
    tensors = (masks.flatten(0, 1), masks.amax(1), torch.cat(sized))
    return io.NodeOutput(*(t.to(device) for t in tensors), ui=preview_of(shown))


def preview_of(pictures: Iterable[Tensor]):
    """Pictures [h, w, 3] to be shown on the node; nothing where the engine has no previews."""
    shown = getattr(ui, "PreviewImage", None)
    return shown and shown(list(pictures)[:PREVIEWS])


def preview(drawn: Image.Image, masks: Tensor) -> list[Tensor]:
    """An overlay and its masks [P, H, W] as pictures [h, w, 3] of one size."""
    grey = [Image.fromarray((mask * 255).round().byte().numpy()).resize(drawn.size) for mask in masks]
    return [to_tensor(picture)[0] for picture in (drawn, *grey)]
