"""Loading: the bundled miniature, and decoders from `models/ldznet`."""

import os

import folder_paths
from comfy_api.latest import io

from ..ldznet_core.backbones.comfy import manage
from ..ldznet_core.backbones.comfy_mini import load_mini
from ..ldznet_core.backbones.comfy_mini_dit import load_mini_dit
from ..ldznet_core.decoders.describe import describe
from ..ldznet_core.decoders.files import load_decoder
from .shared import CATEGORY, Decoder, show_text

FOLDER = "ldznet"
NETWORKS = {"unet": load_mini, "dit": load_mini_dit}
BUNDLED = {f"miniature: {kind} (bundled)": kind for kind in ("light", "ldznet", "znet")}


def register_folder() -> None:
    """Add `models/ldznet` to ComfyUI's model folders. Folders of extra_model_paths.yaml stay."""
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
                "A small diffusion model that comes with this extension, and a light decoder trained for it. It "
                "draws and segments in seconds on a CPU. It knows 32 things, such as a pumpkin, a panda or a ladybug, "
                "drawn as emoji. Use it to try workflows, and your own checkpoint for real work."
            ),
            inputs=[
                io.Combo.Input(
                    "network",
                    options=list(NETWORKS),
                    default="unet",
                    optional=True,
                    tooltip="unet is of the kind of Stable Diffusion 1.5, dit a transformer of the kind of Stable "
                    "Diffusion 3. DECODER fits unet; masks of dit come from Segment without Decoder",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="Draws at 256x256. Works in every stock node"
                ),
                io.Clip.Output(display_name="CLIP", tooltip="The miniature's text encoder"),
                io.Vae.Output(display_name="VAE", tooltip="The miniature's VAE"),
                Decoder.Output(display_name="DECODER", tooltip="A light decoder, trained for the miniature"),
            ],
        )

    @classmethod
    def execute(cls, network: str = "unet") -> io.NodeOutput:
        return io.NodeOutput(*NETWORKS[network](), manage(load_decoder("mini")))


class LDZNetLoadDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LDZNetLoadDecoder",
            display_name="Load Decoder (LD-ZNet)",
            category=CATEGORY,
            description=(
                "Loads a mask decoder from models/ldznet. A decoder is made for one family of checkpoints. Where it "
                "does not fit the loaded model, an error names what differs."
            ),
            inputs=[
                io.Combo.Input(
                    "decoder_name",
                    options=[*folder_paths.get_filename_list(FOLDER), *BUNDLED],
                    tooltip="A decoder in models/ldznet, the authors' .ckpt included, or one bundled for the miniature",
                ),
            ],
            outputs=[
                Decoder.Output(display_name="DECODER", tooltip="For Segment and Segment Captured"),
                io.String.Output(
                    display_name="INFO", tooltip="Its kind, family, training data and scores, as its file says"
                ),
            ],
            hidden=[io.Hidden.unique_id],
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
            decoder = load_decoder("mini", BUNDLED[decoder_name])
        else:
            decoder = load_decoder(folder_paths.get_full_path_or_raise(FOLDER, decoder_name))
        info = describe(decoder)
        show_text(cls, info)
        return io.NodeOutput(manage(decoder), info)
