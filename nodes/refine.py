"""Edges that follow the image."""

import torch
from comfy import model_management
from comfy_api.latest import io

from ..ldznet_core.errors import InputError
from ..ldznet_core.refine import refine
from .shared import CATEGORY, preview_of, progress


class LDZNetRefineMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetRefineMask",
            display_name="Refine Mask (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Moves the edges of soft masks to those of the image, at the image's full size and without any model. "
                "What a mask is sure of stays as it is. Works on masks of any node."
            ),
            inputs=[
                io.Mask.Input("mask", tooltip="One mask an image, or as many for each as Segment gives; of any size"),
                io.Image.Input("image", tooltip="The image whose edges they shall follow; masks get its size"),
                io.Float.Input(
                    "reach",
                    default=0.04,
                    min=0.005,
                    max=0.2,
                    step=0.005,
                    tooltip="How far an edge may move, as a share of the image's long side",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="Soft masks of the image's size, in their order")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, mask, image, reach=0.04) -> io.NodeOutput:
        masks = mask.reshape(-1, *mask.shape[-2:])
        if len(masks) % len(image):
            raise InputError(f"{len(masks)} masks do not go with {len(image)} images: give as many for each")
        report, refined = progress(), []
        for i, part in enumerate(masks.unflatten(0, (len(image), -1))):
            report(i / len(image))
            refined.append(refine(part.cpu(), image[i, ..., :3].cpu(), reach))
        report(1.0)
        out = torch.cat(refined)
        shown = (one[..., None].expand(-1, -1, 3) for one in out)
        return io.NodeOutput(out.to(model_management.intermediate_device()), ui=preview_of(shown))
