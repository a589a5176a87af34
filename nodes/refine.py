"""Refine Mask: the edges of masks follow those of the image."""

import torch
from comfy import model_management
from comfy_api.latest import io

from ..ldznet_core.errors import InputError
from ..ldznet_core.segment.guided_filter import refine
from .inputs import images_of, masks_of, number
from .shared import CATEGORY, preview_of, progress


class LDZNetRefineMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetRefineMask",
            display_name="Refine Mask (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Moves the edges of soft masks to the edges of the image, at the full size of the image and without "
                "any model. Works on masks of any node."
            ),
            inputs=[
                io.Mask.Input(
                    "mask",
                    tooltip="One mask for each image, or as many for each as Segment makes. One mask serves all images",
                ),
                io.Image.Input("image", tooltip="The image whose edges the masks follow. The masks get its size"),
                io.Float.Input(
                    "reach",
                    default=0.04,
                    min=0.005,
                    max=0.5,
                    step=0.005,
                    tooltip="How far an edge may move, as a share of the long side of the image. Connect reach of the "
                    "node that made the masks",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="Soft masks of the image's size, in the same order")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, mask, image, reach=0.04) -> io.NodeOutput:
        masks, images, reach = masks_of(mask), images_of(image), number("reach", reach, 0.005, 1)
        if len(masks) == 1:
            masks = masks.expand(len(images), -1, -1)
        elif len(masks) % max(1, len(images)) or len(masks) and not len(images):
            raise InputError(f"{len(masks)} masks do not go with {len(images)} images: give as many for each")
        report, refined = progress(), [torch.zeros(0, *images.shape[1:3])]
        each = len(masks) // max(1, len(images))
        for i in range(len(images) if each else 0):
            report(i / len(images))
            refined.append(refine(masks[i * each : (i + 1) * each].cpu(), images[i].cpu(), reach))
        report(1.0)
        out = torch.cat(refined)
        shown = (one[..., None].expand(-1, -1, 3) for one in out)
        return io.NodeOutput(out.to(model_management.intermediate_device()), ui=preview_of(shown))
