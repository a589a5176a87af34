"""Masks after generation: any image or latent, one partial pass of the loaded UNet."""

from comfy_api.latest import io

from ..ldznet_core.backbones.comfy import ComfyBackbone
from ..ldznet_core.errors import InputError
from ..ldznet_core.segment.base import PRESENT
from ..ldznet_core.segment.decoder import Segmenter
from ..ldznet_core.segment.tiles import predict_tiled
from .inputs import MOST_SEED, check_connected, number, phrases_of, pictures_of, whole
from .shared import (
    CATEGORY,
    SEED,
    TEXT,
    THRESHOLD,
    TIMESTEP,
    Decoder,
    mask_outputs,
    nothing,
    output,
    progress,
    scaled_latents,
)


class LDZNetSegment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetSegment",
            display_name="Segment (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Words to soft masks with the diffusion model that is already loaded. Reads an image, which the VAE "
                "encodes, or a latent of the workflow, which saves the encoding. With both, the latent is read and "
                "the masks have the size of the image."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the checkpoint. It is not changed"),
                io.Clip.Input("clip", tooltip="The CLIP of that checkpoint"),
                Decoder.Input("decoder", tooltip="A decoder made for that family of checkpoints"),
                TEXT,
                io.Image.Input("image", optional=True, tooltip="The image to segment, of any size. Needs the VAE"),
                io.Latent.Input("latent", optional=True, tooltip="The image as a latent. Saves the encoding"),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of that checkpoint. Only an image needs it"),
                TIMESTEP,
                SEED,
                THRESHOLD,
                io.Int.Input(
                    "samples",
                    optional=True,  # prompts that were saved before it was there still run
                    default=1,
                    min=1,
                    max=64,
                    tooltip="This many masks of different noise are averaged. Steadier, at that many times the cost",
                ),
                io.Boolean.Input(
                    "tiles",
                    optional=True,
                    default=False,
                    tooltip="Also goes over a large image in overlapping windows at its own scale, at the cost of one "
                    "more pass for each. Finds small things. Needs an image, and no latent",
                ),
            ],
            outputs=mask_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, clip, decoder, text, image=None, latent=None, vae=None, timestep=-1, seed=0, threshold=0.5,
        samples=1, tiles=False,
    ) -> io.NodeOutput:
        check_connected(model=model, clip=clip, decoder=decoder)
        phrases, threshold = phrases_of(text), number("threshold", threshold, 0, 1)
        timestep = whole("timestep", timestep, -1, 999)
        noise = {"timestep": None if timestep < 0 else timestep, "seed": whole("seed", seed, 0, MOST_SEED)}
        image, latents = pictures_of(image, latent)
        if (empty := nothing(image, latents, phrases)) is not None:
            return empty
        if tiles and latents is not None:
            raise InputError("tiles are parts of an image: disconnect the latent, or switch tiles off")
        backbone = ComfyBackbone(model, clip, vae, decoder)
        segmenter = Segmenter(backbone, decoder.model, samples=whole("samples", samples, 1, 64), progress=progress())
        if tiles:
            found = predict_tiled(segmenter, image, phrases, **noise)
        elif latents is None or decoder.model.reads == "pixels" and image is not None:
            found = segmenter.predict(image, phrases, **noise)
        else:
            found = segmenter.predict_latent(scaled_latents(backbone, latents, image), phrases, **noise)
        return output(image, found.present(PRESENT), phrases, threshold, found.reach)
