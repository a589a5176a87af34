"""Masks during generation: the sampler computes the features anyway."""

from comfy_api.latest import io

from ..ldznet_core.hosts.comfy import ComfyHost
from ..ldznet_core.hosts.comfy_capture import watch
from ..ldznet_core.segmenter import Segmenter, split_phrases
from .shared import CATEGORY, TEXT, THRESHOLD, Captured, Decoder, latent_of, mask_outputs, output, progress


class LDZNetCapture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetCapture",
            display_name="Capture (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Put this between the checkpoint and the sampler: it draws the very same picture, and what the UNet "
                "sees on the way is kept for Segment Captured and Attention Mask, which then need no further pass. Put "
                "it after LoRAs and other changes of the model."
            ),
            inputs=[io.Model.Input("model", tooltip="The model to sample with; it is not changed")],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For the sampler"),
                Captured.Output(display_name="CAPTURE", tooltip="For Segment Captured or Attention Mask"),
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(*watch(model))


class LDZNetSegmentCaptured(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetSegmentCaptured",
            display_name="Segment Captured (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Words to soft masks of a picture that was just sampled, from what Capture kept: no encoding and no "
                "pass of the UNet. Change the words as often as you like without sampling again."
            ),
            inputs=[
                Captured.Input("capture", tooltip="From the Capture node whose MODEL the sampler used"),
                io.Latent.Input("latent", tooltip="The LATENT that this sampler gave, unchanged"),
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint"),
                Decoder.Input("decoder", tooltip="A decoder made for that family of checkpoints"),
                TEXT,
                io.Image.Input("image", optional=True, tooltip="The decoded picture, for overlay and size"),
                THRESHOLD,
            ],
            outputs=mask_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, capture, latent, clip, decoder, text, image=None, threshold=0.5) -> io.NodeOutput:
        phrases = split_phrases(text)
        host = ComfyHost(capture.model, clip, None, decoder)
        segmenter = Segmenter(host, decoder.model, progress=progress())
        z = latent_of(host, latent, image)
        features = capture.features(latent["samples"]) if decoder.model.taps else None
        masks = segmenter.latent(z, phrases, features=features)
        return output(image, masks, phrases, threshold)
