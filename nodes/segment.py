"""Masks after generation: any image or latent, one partial pass of the loaded UNet."""

from comfy_api.latest import io

from ..ldznet_core.errors import InputError
from ..ldznet_core.hosts.comfy import ComfyHost
from ..ldznet_core.segmenter import Segmenter, split_phrases
from .shared import CATEGORY, SEED, TEXT, THRESHOLD, TIMESTEP, Decoder, latent_of, mask_outputs, output, progress


class LDZNetSegment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetSegment",
            display_name="Segment (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Words to soft masks with the diffusion model that is already loaded. Reads an image (encoded with the "
                "VAE) or, for less, a latent that the workflow already has. With both, the latent is read and the "
                "masks have the image's size."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint whose UNet looks at the picture; it is not changed"),
                io.Clip.Input("clip", tooltip="The CLIP of that checkpoint"),
                Decoder.Input("decoder", tooltip="A decoder made for that family of checkpoints"),
                TEXT,
                io.Image.Input("image", optional=True, tooltip="What to look at, of any size; needs the VAE"),
                io.Latent.Input("latent", optional=True, tooltip="What to look at, as a latent: saves the encoding"),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of that checkpoint; only an image needs it"),
                TIMESTEP,
                SEED,
                THRESHOLD,
                io.Int.Input(
                    "samples",
                    optional=True,  # prompts that were saved before it was there still run
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Masks under so many noises are averaged: steadier, at that many times the cost",
                ),
            ],
            outputs=mask_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, decoder, text, image=None, latent=None, vae=None, timestep=400, seed=0, threshold=0.5,
        samples=1,
    ) -> io.NodeOutput:
        phrases = split_phrases(text)
        if image is None and latent is None:
            raise InputError("there is nothing to look at: connect an image or a latent")
        host = ComfyHost(model, clip, vae, decoder)
        segmenter = Segmenter(host, decoder.model, samples=samples, progress=progress())
        if latent is None or decoder.model.kind == "rgbnet" and image is not None:
            masks = segmenter(image[..., :3], phrases, timestep=timestep, seed=seed)
        else:
            z = latent_of(host, latent, image)
            masks = segmenter.latent(z, phrases, timestep=timestep, seed=seed)
        return output(image, masks, phrases, threshold)
