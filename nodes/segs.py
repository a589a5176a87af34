"""Masks to SEGS: each phrase becomes a labelled region for the detailers of Impact Pack."""

from comfy_api.latest import io

from ..ldznet_core.errors import InputError
from ..ldznet_core.segment.segs import segs_of
from ..ldznet_core.segment.sizing import fit
from .inputs import by_image, images_of, masks_of, number, phrases_of
from .shared import CATEGORY, TEXT


class LDZNetMasksToSEGS(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetMasksToSEGS",
            display_name="Masks to SEGS (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Makes each phrase that was found a segment for the detailers, filters and previews of ComfyUI Impact "
                "Pack: its mask, bounding box and crop, labelled with the phrase. A phrase that was not found gives "
                "none. Of a batch of images it makes a list, one SEGS for each image."
            ),
            inputs=[
                io.Mask.Input("masks", tooltip="The masks of Segment, Segment Captured or Segment without Decoder. "
                              "They may pass through Refine Mask or Grow Mask first"),
                TEXT,
                io.Image.Input("image", optional=True, tooltip="The image of these masks. The segments get its size "
                               "and carry their crops of it, which previews and pickers show"),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The bounding box holds the pixels of the mask above this. If there are none, the phrase "
                    "gives no segment. The mask in a segment stays soft",
                ),
                io.Float.Input(
                    "crop_factor",
                    default=3.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How many times as wide and high as the bounding box the crop is that a detailer works on",
                ),
            ],
            outputs=[
                io.Custom("SEGS").Output(
                    display_name="SEGS", is_output_list=True, tooltip="For nodes of Impact Pack, one for each image"
                )
            ],
        )

    @classmethod
    def execute(cls, masks, text, image=None, threshold=0.5, crop_factor=3.0) -> io.NodeOutput:
        phrases = phrases_of(text)
        masks = by_image(masks_of(masks, "masks"), phrases)
        options = number("threshold", threshold, 0, 1), number("crop_factor", crop_factor, 1, 100)
        images = None if image is None else images_of(image)
        if images is not None and len(images) != len(masks):
            raise InputError(
                f"masks of {len(masks)} images do not go with {len(images)} images: connect those that were segmented"
            )
        if images is not None:
            masks = fit(masks, tuple(images.shape[1:3]))
        pairs = zip(masks, images if images is not None else [None] * len(masks), strict=True)
        segs = [segs_of(one, phrases, of, *options) for one, of in pairs]
        return io.NodeOutput(segs or [(tuple(masks.shape[-2:]), [])])
