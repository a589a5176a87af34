"""Label Map: one colour and one exclusive mask for each of several phrases."""

import torch
from comfy import model_management
from comfy_api.latest import io

from ..ldznet_core.imaging.images import to_tensor
from ..ldznet_core.imaging.visualize import label_map
from ..ldznet_core.segment.postprocess import BACKGROUND, exclusive
from .inputs import by_image, masks_of, number, phrases_of
from .shared import CATEGORY, TEXT, preview_of


class LDZNetLabelMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetLabelMap",
            display_name="Label Map (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Gives every pixel to the phrase with the highest mask there, or to the background. Makes a map with "
                "one colour for each phrase and a legend, and masks that do not overlap."
            ),
            inputs=[
                io.Mask.Input(
                    "masks", tooltip="The masks of Segment, Segment Captured or Segment without Decoder"
                ),
                TEXT,
                io.Float.Input(
                    "threshold",
                    default=BACKGROUND,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="A pixel where no mask is above this is background",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="label map", tooltip="One colour a phrase, black background, a legend"),
                io.Mask.Output(display_name="exclusive masks", tooltip="Soft masks that do not overlap"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, masks, text, threshold=BACKGROUND) -> io.NodeOutput:
        phrases, threshold = phrases_of(text), number("threshold", threshold, 0, 1)
        masks = by_image(masks_of(masks, "masks"), phrases)
        kept, labels = exclusive(masks, threshold)
        maps = [to_tensor(label_map(one, phrases)) for one in labels]
        shown = torch.cat(maps) if maps else torch.zeros(0, *masks.shape[2:], 3)
        device = model_management.intermediate_device()
        return io.NodeOutput(shown.to(device), kept.flatten(0, 1).to(device), ui=preview_of(shown))
