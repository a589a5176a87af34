"""Several phrases at once: one colour and one exclusive mask each."""

import torch
from comfy import model_management
from comfy_api.latest import io

from ..ldznet_core.errors import InputError
from ..ldznet_core.images import to_tensor
from ..ldznet_core.masks import BACKGROUND, exclusive
from ..ldznet_core.pictures import label_map
from ..ldznet_core.segmenter import split_phrases
from .shared import CATEGORY, TEXT, preview_of


class LDZNetLabelMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetLabelMap",
            display_name="Label Map (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Lets the masks of several phrases compete: every pixel goes to the phrase that is surest of it, or to "
                "the background. Gives a map with one colour a phrase and a legend, and masks that do not overlap."
            ),
            inputs=[
                io.Mask.Input(
                    "masks", tooltip="From Segment, Segment Captured or Attention Mask: one a phrase and image"
                ),
                TEXT,
                io.Float.Input(
                    "threshold",
                    default=BACKGROUND,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The background's score: it wins where no phrase is above this",
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
        phrases = split_phrases(text)
        if masks.ndim != 3 or len(masks) % len(phrases):
            raise InputError(
                f"{len(masks)} masks are not those of {len(phrases)} phrases: give the text that made them"
            )
        kept, labels = exclusive(masks.unflatten(0, (-1, len(phrases))), threshold)
        maps = torch.cat([to_tensor(label_map(one, phrases)) for one in labels])
        device = model_management.intermediate_device()
        return io.NodeOutput(maps.to(device), kept.flatten(0, 1).to(device), ui=preview_of(maps))
