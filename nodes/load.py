"""Loading: the bundled miniature, and decoders from `models/ldznet`."""

import os

import folder_paths
from comfy_api.latest import io

from ..ldznet_core.hosts.comfy import manage
from ..ldznet_core.hosts.comfy_mini import load_mini
from ..ldznet_core.weights import load_decoder
from .shared import CATEGORY, Decoder

FOLDER = "ldznet"
BUNDLED = {"miniature: ldznet (bundled)": "ldznet", "miniature: znet (bundled)": "znet"}


def register_folder() -> None:
    """Tell ComfyUI of `models/ldznet`, beside what extra_model_paths.yaml may have said of it."""
    folder = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, folder)
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, ".safetensors", ".ckpt"})


class LDZNetLoadMini(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetLoadMini",
            display_name="Load Miniature (LD-ZNet)",
            category=CATEGORY,
            description=(
                "A whole diffusion model that comes with this extension, small enough to draw and to find things in "
                "seconds on a CPU, and the LD-ZNet decoder made for it. It knows 32 things, such as a pumpkin, a panda "
                "or a ladybug, drawn as emoji: use it to try workflows, and your own checkpoint to work."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="Draws at 128x128; works in every stock node"),
                io.Clip.Output(display_name="CLIP", tooltip="The miniature's text encoder"),
                io.Vae.Output(display_name="VAE", tooltip="The miniature's VAE"),
                Decoder.Output(display_name="DECODER", tooltip="LD-ZNet, trained for the miniature"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_mini(), manage(load_decoder("mini")))


class LDZNetLoadDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetLoadDecoder",
            display_name="Load Decoder (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Loads a mask decoder from models/ldznet. A decoder belongs to a family of checkpoints and is refused "
                "by name where it does not fit the model that is loaded."
            ),
            inputs=[
                io.Combo.Input(
                    "decoder_name",
                    options=[*folder_paths.get_filename_list(FOLDER), *BUNDLED],
                    tooltip="A decoder in models/ldznet, the authors' .ckpt included, or one bundled for the miniature",
                ),
            ],
            outputs=[Decoder.Output(display_name="DECODER", tooltip="For Segment and Segment Captured")],
        )

    @classmethod
    def fingerprint_inputs(cls, decoder_name: str) -> str:
        """A decoder that was trained further under the same name is loaded again."""
        if decoder_name in BUNDLED:
            return decoder_name
        status = os.stat(folder_paths.get_full_path_or_raise(FOLDER, decoder_name))
        return f"{decoder_name} {status.st_size} {status.st_mtime_ns}"

    @classmethod
    def execute(cls, decoder_name: str) -> io.NodeOutput:
        if decoder_name in BUNDLED:
            return io.NodeOutput(manage(load_decoder("mini", BUNDLED[decoder_name])))
        return io.NodeOutput(manage(load_decoder(folder_paths.get_full_path_or_raise(FOLDER, decoder_name))))
