"""Masks while sampling: the features that the sampler computes are kept."""

import logging

import torch
from comfy_api.latest import io

from ..ldznet_core.backbones.comfy import ComfyBackbone
from ..ldznet_core.backbones.comfy_capture import watch
from ..ldznet_core.backbones.comfy_dit import shows_attention
from ..ldznet_core.backbones.comfy_dit_capture import watch as watch_transformer
from ..ldznet_core.backbones.comfy_preview import add_previews
from ..ldznet_core.segment.base import PRESENT
from ..ldznet_core.segment.decoder import Segmenter
from ..ldznet_core.segment.preview import WordPreview
from .inputs import caption_of, check_connected, number, phrases_of, pictures_of
from .shared import (
    CATEGORY,
    TEXT,
    THRESHOLD,
    Captured,
    Decoder,
    mask_outputs,
    nothing,
    output,
    progress,
    scaled_latents,
    show_preview,
)

log = logging.getLogger("LD-ZNet")


class LDZNetCapture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetCapture",
            display_name="Capture (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Put this between the checkpoint and the sampler. The sampler draws the same image as without it, and "
                "the features of its UNet are kept. Segment Captured and Segment without Decoder then need no pass of "
                "the UNet. Of a diffusion transformer the latent half way is kept, for Segment without Decoder. Put it "
                "after LoRAs and other changes of the model."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with. It is not changed"),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP of the checkpoint. Only words need it"),
                io.String.Input(
                    "words",
                    optional=True,
                    default="",
                    placeholder="cat, red apple",
                    tooltip="While the sampler works, the node shows where these are being drawn: one or several "
                    "phrases, with commas between them. Empty shows nothing and costs nothing",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For the sampler"),
                Captured.Output(display_name="CAPTURE", tooltip="For Segment Captured or Segment without Decoder"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip=None, words="") -> io.NodeOutput:
        check_connected(model=model)
        words = caption_of(words, "words")
        if shows_attention(model):
            if words:
                log.warning("words are shown while UNets draw only, not while transformers do")
            return io.NodeOutput(*watch_transformer(model))
        clone, capture = watch(model)
        if words:
            show_words(cls, clone, model, clip, phrases_of(words.replace(",", "\n")))
        return io.NodeOutput(clone, capture)


def show_words(node: type[io.ComfyNode], clone, model, clip, phrases: list[str]) -> None:
    """Have the node show where phrases are while `clone`, that of `model`, samples."""
    check_connected(clip=clip)
    backbone, latents = ComfyBackbone(model, clip), model.get_model_object("latent_format")
    colours = [
        None if values is None else torch.tensor(values)
        for values in (latents.latent_rgb_factors, getattr(latents, "latent_rgb_factors_bias", None))
    ]
    place = getattr(node.hidden, "unique_id", None)
    text, empty = backbone.embed(phrases), backbone.embed([""])
    add_previews(clone, WordPreview(
        backbone.unet_config, phrases, text, empty, lambda picture: show_preview(place, picture), *colours
    ))


class LDZNetSegmentCaptured(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetSegmentCaptured",
            display_name="Segment Captured (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Words to soft masks of an image that was just sampled, from the features that Capture kept. Needs no "
                "encoding and no pass of the UNet. Change the words as often as you like without sampling again."
            ),
            inputs=[
                Captured.Input("capture", tooltip="From the Capture node whose MODEL the sampler used"),
                io.Latent.Input("latent", tooltip="The LATENT of that sampler, unchanged"),
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint"),
                Decoder.Input("decoder", tooltip="A decoder made for that family of checkpoints"),
                TEXT,
                io.Image.Input("image", optional=True, tooltip="The decoded image, for overlay and size of the masks"),
                THRESHOLD,
            ],
            outputs=mask_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, capture, latent, clip, decoder, text, image=None, threshold=0.5) -> io.NodeOutput:
        check_connected(capture=capture, latent=latent, clip=clip, decoder=decoder)
        phrases, threshold = phrases_of(text), number("threshold", threshold, 0, 1)
        image, latents = pictures_of(image, latent)
        if (empty := nothing(image, latents, phrases)) is not None:
            return empty
        backbone = ComfyBackbone(capture.model, clip, None, decoder)
        segmenter = Segmenter(backbone, decoder.model, progress=progress())
        z = scaled_latents(backbone, latents, image)
        features = capture.features(latents, decoder.model.taps) if decoder.model.taps else None
        found = segmenter.predict_latent(z, phrases, captured=features)
        return output(image, found.present(PRESENT), phrases, threshold, found.reach)
