"""A prompt for a part of the picture that words name, found while the picture is drawn."""

from functools import partial

from comfy_api.latest import io

from ..ldznet_core.backbones.comfy import encode_texts, whole_clip
from ..ldznet_core.backbones.comfy_steer import Marked, mark
from ..ldznet_core.backbones.steering import FEATHER, START, Region
from ..ldznet_core.segment.regions import reader, texts_read
from .inputs import check_connected, conditioning_of, number, phrases_of
from .shared import CATEGORY, Decoder


class LDZNetConditioningSetWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetConditioningSetWords",
            display_name="Conditioning (Set Words) (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Makes a prompt act only where something is being drawn, whatever the seed. As Conditioning (Set "
                "Mask), with words instead of a mask. Join it to the prompt of the whole picture with Conditioning "
                "(Combine). That prompt draws first. As soon as it shows where the words are, this one takes over "
                "there. LoRA hooks and ControlNets on this prompt act there, too."
            ),
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What is to be drawn in the region"),
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint"),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="balloon",
                    tooltip="What is drawn there by the prompt of the whole picture. The region is where that is. "
                    "Several phrases, one a line, are one region",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of this prompt in the region. Other prompts have the rest. 0 switches it off",
                ),
                io.Float.Input(
                    "start",
                    default=START,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the sampling after which the region holds. Earlier changes more, later finds "
                    "the region better",
                ),
                io.Float.Input(
                    "feather",
                    default=FEATHER,
                    min=0.0,
                    max=512.0,
                    step=8.0,
                    tooltip="Width in pixels over which the edge of the region fades",
                ),
                io.Boolean.Input("invert", default=False, tooltip="The region is everywhere but where the words are"),
                io.Boolean.Input(
                    "follow",
                    default=False,
                    tooltip="Finds the region anew at every step, for things that keep their name. Off: it stays as it "
                    "was when it was first found, for things that become something else",
                ),
                Decoder.Input(
                    "decoder",
                    optional=True,
                    tooltip="A light decoder made for that family of checkpoints. It finds the region better. Without "
                    "it the attention of the UNet is read",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="CONDITIONING", tooltip="For Conditioning (Combine)")],
        )

    @classmethod
    def execute(
        cls, conditioning, clip, text, strength=1.0, start=START, feather=FEATHER, invert=False, follow=False,
        decoder=None,
    ) -> io.NodeOutput:
        check_connected(clip=clip)
        if decoder is not None:
            check_connected(decoder=decoder)
        conditioning, phrases = conditioning_of(conditioning), phrases_of(text)
        region = Region(
            number("strength", strength, 0, 1), number("feather", feather, 0, 512), number("start", start, 0, 1),
            bool(invert), bool(follow),
        )
        model = None if decoder is None else decoder.model
        texts = texts_read(model, phrases)
        encoded = encode_texts(whole_clip(clip), texts)
        rows = {text: encoded.pick([row]) for row, text in enumerate(texts)}
        marked = Marked(region, rows, partial(reader, decoder=model, phrases=phrases))
        return io.NodeOutput(mark(conditioning, marked, decoder))
