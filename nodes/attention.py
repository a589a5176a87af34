"""Masks without a decoder: any checkpoint's own attention, or its noise estimates, say where the words are."""

import logging

from comfy_api.latest import io

from ..ldznet_core.errors import InputError
from ..ldznet_core.hosts.comfy import ComfyHost
from ..ldznet_core.hosts.comfy_any import AnyComfyHost
from ..ldznet_core.segmenter import split_phrases
from ..ldznet_core.training_free import METHODS, PRESENT, SPREADS, TIMESTEPS, TrainingFree
from .shared import CATEGORY, SEED, TEXT, THRESHOLD, Captured, latent_of, mask_outputs, output, progress

log = logging.getLogger("LD-ZNet")


class LDZNetAttentionMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetAttentionMask",
            display_name="Attention Mask (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Words to soft masks with no decoder, on any checkpoint of Stable Diffusion 1.x, 2.x or SDXL: its own "
                "attention knows where they are (of other models, their noise estimate). One pass of the UNet for any "
                "number of phrases or, with a capture of the sampling, none. Coarser than Segment: follow it with "
                "Refine Mask."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint"),
                TEXT,
                io.Model.Input("model", optional=True, tooltip="The checkpoint; a capture brings its own"),
                io.Image.Input("image", optional=True, tooltip="What to look at, of any size; needs the VAE"),
                io.Latent.Input("latent", optional=True, tooltip="What to look at, as a latent: saves the encoding"),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the checkpoint; only an image needs it"),
                Captured.Input(
                    "capture",
                    optional=True,
                    tooltip="From Capture, with the LATENT of the sampler that used its MODEL: attention of all steps",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip="attention, or noise: the difference that a phrase makes to the noise estimate (slower, "
                    "coarser, and there where attention is of no use)",
                ),
                io.Int.Input(
                    "timestep",
                    default=-1,
                    min=-1,
                    max=999,
                    tooltip="How noisy the latent is made before the UNet reads it; -1 is what the method does best "
                    f"with, {TIMESTEPS['attention']} for attention and {TIMESTEPS['noise']} for noise",
                ),
                SEED,
                THRESHOLD,
                io.Combo.Input(
                    "spread",
                    options=list(SPREADS),
                    default=SPREADS[0],
                    tooltip="How far attention runs along what belongs together: to the edges of objects, a little for "
                    "stuff such as sky or grass, or none; auto is objects where the model can tell",
                ),
                io.Float.Input(
                    "presence",
                    default=PRESENT,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="A phrase counts as there when its attention peaks this many standard deviations above "
                    "what it gets from pure noise; 0 takes your word for it. Not with the method noise",
                ),
                io.String.Input(
                    "caption",
                    optional=True,
                    default="",
                    tooltip="What the picture shows, if you know; may be empty. Only for attention without a capture",
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
        phrases = split_phrases(text)
        if capture is not None and latent is None:
            raise InputError("a capture knows latents by their values: connect the LATENT that its sampler gave")
        if model is None and capture is None:
            raise InputError("there is nothing to look with: connect a model, or a capture of one")
        if image is None and latent is None:
            raise InputError("there is nothing to look at: connect an image or a latent")
        kind = ComfyHost if method == "attention" else AnyComfyHost
        host = kind(model if capture is None else capture.model, clip, vae)
        find = TrainingFree(host, method, spread=spread, progress=progress())
        given = {"timestep": None if timestep < 0 else timestep, "seed": seed, "caption": caption.strip()}
        if latent is None:
            found = find.find(image[..., :3], phrases, **given)
        else:
            z = latent_of(host, latent, image)
            queries = capture.queries(latent["samples"]) if capture is not None and method == "attention" else None
            found = find.latent(z, phrases, queries=queries, **given)
        if found.presence is not None:
            for row in found.presence.tolist():
                log.info("presence: %s", ", ".join(f"{p} {x:.1f}" for p, x in zip(phrases, row, strict=True)))
        return output(image, found.present(presence), phrases, threshold)
