"""What several nodes share: sockets, widgets, outputs, progress and previews."""

import sys
from collections.abc import Callable, Iterable

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..ldznet_core.backbones.comfy import ComfyBackbone
from ..ldznet_core.imaging.images import to_tensor
from ..ldznet_core.imaging.visualize import overlay
from ..ldznet_core.segment.guided_filter import REACH
from ..ldznet_core.segment.postprocess import present
from ..ldznet_core.segment.sizing import check_pair, fit
from .inputs import MOST_SEED
from .views import WithViews, views_of

CATEGORY = "LD-ZNet"
Decoder = io.Custom("LDZNET_DECODER")
Captured = io.Custom("LDZNET_CAPTURE")
PREVIEWS = 24  # pictures shown on a node
PREVIEW_SIDE = 512  # pixels on the long side of what is shown while sampling, at most
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
    default=-1,
    min=-1,
    max=999,
    tooltip="How much noise is added to the latent before the UNet reads it. -1 is the best value of the decoder",
)
SEED = io.Int.Input(
    "seed",
    default=0,
    min=0,
    max=MOST_SEED,
    control_after_generate=False,
    tooltip="Seed of that noise. Masks change a little with it",
)
THRESHOLD = io.Float.Input(
    "threshold",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.01,
    tooltip="A phrase counts as found when some pixel of its mask is above this. If none is, its mask is all zero. "
    "Masks stay soft. Threshold Mask makes hard ones",
)


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on a node that declares the hidden unique_id; nothing where no page is there to show it."""
    module, place = sys.modules.get("server"), getattr(node.hidden, "unique_id", None)
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None and place is not None:
        server.send_progress_text(text, place)


def show_preview(place: str | None, picture: Image.Image) -> None:
    """Show a picture on the node of that id, as samplers show theirs, until it shows another. Nothing where no page is
    there to show it."""
    module = sys.modules.get("server")
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is None or place is None:
        return
    from comfy_api import feature_flags
    from protocol import BinaryEventTypes

    if feature_flags.supports_feature(server.sockets_metadata, server.client_id, "supports_preview_metadata"):
        nodes = dict.fromkeys(("node_id", "display_node_id", "parent_node_id", "real_node_id"), place)
        metadata = {**nodes, "prompt_id": server.last_prompt_id}
        sent = (("JPEG", picture, PREVIEW_SIDE), metadata)
        server.send_sync(BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA, sent, server.client_id)


def mask_outputs() -> list:
    return [
        io.Mask.Output(display_name="masks", tooltip="Soft masks, one for each phrase and image: all phrases of the "
                       "first image, then those of the second"),
        io.Mask.Output(display_name="union", tooltip="One mask for each image: the highest of its phrases"),
        io.Image.Output(display_name="overlay", tooltip="The image with the masks tinted and named"),
        io.Float.Output(display_name="reach", tooltip="How far the edges of these masks may be off. Connect it to "
                        "reach of Refine Mask"),
    ]


def progress() -> Callable[[float], None]:
    """A function that shows the share of the work done, 0..1, and raises where the user has interrupted the run."""
    bar = ProgressBar(TICKS)

    def report(share: float) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(share * TICKS), TICKS)

    return report


def scaled_latents(backbone: ComfyBackbone, samples: Tensor, image: Tensor | None) -> Tensor:
    """A LATENT's samples as the UNet takes them, [B, 4, h, w]. Raises InputError where they are not those of the
    image [B, H, W, 3], if any."""
    z = backbone.scaled(samples)
    if image is not None:
        check_pair(image, z)
    return z


def nothing(image: Tensor | None, samples: Tensor | None, phrases: list[str]) -> io.NodeOutput | None:
    """The outputs of a batch of 0 images [0, H, W, 3] or latents [0, C, h, w]; None of any other batch."""
    if image is not None and not len(image):
        size = tuple(image.shape[1:3])
    elif samples is not None and not len(samples):
        size = (samples.shape[-2] * 8, samples.shape[-1] * 8)
    else:
        return None
    return output(None, torch.zeros(0, len(phrases), *size), phrases, 0.5, REACH)


def output(
    image: Tensor | None, masks: Tensor, phrases: list[str], threshold: float, reach: float
) -> io.NodeOutput:
    """Masks [B, P, H, W] as MASK [B*P, H, W], their union [B, H, W], the overlay [B, H, W, 3] and `reach`.

    They get the size of the image [B, H, W, 3]; without one the overlay is on grey. B may be 0.
    """
    masks = masks if image is None else fit(masks, tuple(image.shape[1:3]))
    batch, _, height, width = masks.shape
    soft, seen = masks, image
    image = torch.full((batch, height, width, 3), 0.5) if image is None else image.cpu()
    masks = present(masks, threshold)
    drawn = [overlay(*pair, phrases, tau=threshold) for pair in zip(image, masks, strict=True)]
    shown = [picture for pair in zip(drawn, masks, strict=True) for picture in preview(*pair)]
    sized = [to_tensor(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in drawn]
    device = model_management.intermediate_device()
    tensors = (masks.flatten(0, 1), masks.amax(1), torch.cat([torch.zeros(0, height, width, 3), *sized]))
    if previews := preview_of(shown):
        previews = WithViews(previews, views_of(seen, soft, phrases))  # the panel has a threshold of its own
    return io.NodeOutput(*(t.to(device) for t in tensors), reach, ui=previews)


def preview_of(pictures: Iterable[Tensor]):
    """Pictures [h, w, 3] to be shown on the node; None where there are none or the engine has no previews."""
    shown, pictures = getattr(ui, "PreviewImage", None), list(pictures)[:PREVIEWS]
    return shown(pictures) if shown and pictures else None


def preview(drawn: Image.Image, masks: Tensor) -> list[Tensor]:
    """An overlay and its masks [P, H, W] as pictures [h, w, 3] of one size."""
    grey = [Image.fromarray((mask * 255).round().byte().numpy()).resize(drawn.size) for mask in masks]
    return [to_tensor(picture)[0] for picture in (drawn, *grey)]
