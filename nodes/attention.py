"""Masks without a decoder: from the cross-attention of any checkpoint, or from its noise estimates."""

import logging
from collections.abc import Callable
from functools import partial

from comfy_api.latest import io

from ..ldznet_core.backbones.comfy import ComfyBackbone
from ..ldznet_core.backbones.comfy_dit import ComfyTransformerBackbone, shows_attention
from ..ldznet_core.backbones.comfy_x0 import ComfyX0Backbone
from ..ldznet_core.backbones.families.dit import TransformerFamily
from ..ldznet_core.errors import InputError
from ..ldznet_core.segment.attention import SPREADS
from ..ldznet_core.segment.base import PRESENT
from ..ldznet_core.segment.methods import METHODS, decoder_free
from .inputs import MOST_SEED, caption_of, check_connected, number, phrases_of, pictures_of, whole
from .shared import (
    CATEGORY,
    SEED,
    TEXT,
    THRESHOLD,
    Captured,
    mask_outputs,
    nothing,
    output,
    progress,
    scaled_latents,
)

log = logging.getLogger("LD-ZNet")


def backbone_for(method: str, model) -> Callable[..., ComfyBackbone]:
    """What makes a backbone of a MODEL on which the method works."""
    if method == "noise":
        kind = ComfyX0Backbone
    else:
        kind = ComfyTransformerBackbone if shows_attention(model) else ComfyBackbone
    return partial(kind, model)


class LDZNetAttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetAttentionMask",
            display_name="Segment without Decoder (Attention)",
            category=CATEGORY,
            description=(
                "Words to soft masks without a decoder, from the attention of the loaded model: Stable Diffusion 1.x, "
                "2.x or SDXL, or a diffusion transformer such as Flux, Stable Diffusion 3.5, Qwen-Image or Z-Image. "
                "One pass serves any number of phrases. Works on other models by the method noise. These masks are "
                "coarser than those of Segment: connect masks and reach to Refine Mask."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint"),
                TEXT,
                io.Model.Input("model", optional=True, tooltip="The checkpoint's MODEL. Not needed with a capture"),
                io.Image.Input("image", optional=True, tooltip="The image to segment, of any size. Needs the VAE"),
                io.Latent.Input("latent", optional=True, tooltip="The image as a latent. Saves the encoding"),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the checkpoint. Only an image needs it"),
                Captured.Input(
                    "capture",
                    optional=True,
                    tooltip="From Capture. Needs the LATENT of the sampler that used its MODEL. The attention of the "
                    "sampling steps is read, and a UNet does not run again. A transformer reads the words in the "
                    "latent that the sampler had half way",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="attention",
                    tooltip="attention reads where the model's attention to the words goes. noise compares the noise "
                    "estimates with and without a phrase. It is slower and coarser, and works on any image model",
                ),
                io.Int.Input(
                    "timestep",
                    default=-1,
                    min=-1,
                    max=999,
                    tooltip="How much noise is added to the latent before the model reads it. -1 is the best value: "
                    f"{METHODS['attention'].timestep} for the attention of a UNet, {TransformerFamily.timestep} "
                    f"for that of a transformer, {METHODS['noise'].timestep} for noise",
                ),
                SEED,
                THRESHOLD,
                io.Combo.Input(
                    "spread",
                    options=list(SPREADS),
                    default=SPREADS[0],
                    tooltip="How far a mask spreads along the self-attention. objects: to the edges of the object. "
                    "stuff: a little, for sky or grass. none: not at all. auto: objects where the self-attention is "
                    "finer than the cross-attention, else none. With a transformer, all but none take from a mask what "
                    "does not look like its strongest part",
                ),
                io.Float.Input(
                    "presence",
                    default=PRESENT,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="A phrase counts as present when its attention peaks this many standard deviations above "
                    "its attention on pure noise. 0 turns the check off. The method noise has no such check",
                ),
                io.String.Input(
                    "caption",
                    optional=True,
                    default="",
                    tooltip="What the image shows, if you know it. May be empty. Attention is then read under it. In a "
                    "transformer phrases ride along with it, with a capture too. A UNet with a capture has the prompt",
                ),
            ],
            outputs=mask_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, clip, text, model=None, image=None, latent=None, vae=None, capture=None, method="attention",
        timestep=-1, seed=0, threshold=0.5, spread="auto", presence=PRESENT, caption="",
    ) -> io.NodeOutput:
        check_connected(clip=clip)
        if model is not None:
            check_connected(model=model)
        phrases, threshold = phrases_of(text), number("threshold", threshold, 0, 1)
        if capture is not None and latent is None:
            raise InputError("a capture finds its latents by their values: connect the LATENT of its sampler")
        if model is None and capture is None:
            raise InputError("there is no model: connect a model, or a capture with its latent")
        timestep, presence = whole("timestep", timestep, -1, 999), number("presence", presence, 0, 20)
        options = {
            "timestep": None if timestep < 0 else timestep,
            "seed": whole("seed", seed, 0, MOST_SEED),
            "caption": caption_of(caption),
        }
        image, latents = pictures_of(image, latent)
        if (empty := nothing(image, latents, phrases)) is not None:
            return empty
        backbone = backbone_for(method, model if capture is None else capture.model)(clip=clip, vae=vae)
        segmenter = decoder_free(backbone, method, spread=spread, progress=progress())
        if latents is None:
            prediction = segmenter.predict(image, phrases, **options)
        else:
            z = scaled_latents(backbone, latents, image)
            captured = None
            if capture is not None and method == "attention":
                captured = capture.noised(latents) if shows_attention(capture.model) else capture.queries(latents)
            prediction = segmenter.predict_latent(z, phrases, captured=captured, **options)
        if prediction.presence is not None:
            for row in prediction.presence.tolist():
                log.info("presence: %s", ", ".join(f"{p} {x:.1f}" for p, x in zip(phrases, row, strict=True)))
        return output(image, prediction.present(presence), phrases, threshold, prediction.reach)
