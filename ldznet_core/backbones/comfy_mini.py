"""The bundled miniature in ComfyUI's own classes, so that every stock node works on it.

ComfyUI knows a checkpoint's family by full-size widths, so a small one is put together here, from the same classes
and the sizes that our own reader finds in the file.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import comfy.ops
import torch
from comfy import model_management
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from comfy.supported_models import SD15
from comfy.supported_models_base import ClipTarget

from ..checkpoints.bundled import BUNDLED
from ..checkpoints.ldm import LatentDiffusion, read
from ..checkpoints.tokenizer import ClipTokenizer


def load_mini(folder: Path = BUNDLED) -> tuple[ModelPatcher, CLIP, VAE]:
    """MODEL, CLIP and VAE of the miniature in `folder`, in float32: it is too small to gain from less."""
    model = read(folder / "mini.safetensors", ClipTokenizer.from_folder(folder / "tokenizer"))
    parts = load_model(model), load_clip(model, folder / "tokenizer"), load_vae(model)
    for number, part in enumerate(parts):
        # With this ComfyUI makes copies for other devices, such as several GPUs at once.
        getattr(part, "patcher", part).cached_patcher_init = (load_patcher, (folder, number))
    return parts


def load_patcher(folder: Path, number: int, disable_dynamic: bool = True) -> ModelPatcher:
    """The patcher of one part of `load_mini`, read anew from the file."""
    part = load_mini(folder)[number]
    return getattr(part, "patcher", part)


def load_model(model: LatentDiffusion) -> ModelPatcher:
    sizes, depth = model.unet.config, model.unet.config.transformer_depth
    blocks = sizes.num_res_blocks
    depths = [depth * (level in sizes.attention_levels) for level in range(len(sizes.channel_mult))]

    class Miniature(SD15):
        unet_extra_config = {"num_heads": sizes.num_heads, "num_head_channels": -1}
        native_side = model.about.get("size")

        def model_type(self, state_dict, prefix=""):
            return ModelType.V_PREDICTION if model.schedule.prediction == "v" else ModelType.EPS

    config = Miniature({
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "model_channels": sizes.model_channels,
        "num_res_blocks": [blocks] * len(sizes.channel_mult),
        "channel_mult": list(sizes.channel_mult),
        "transformer_depth": [d for d in depths for _ in range(blocks)],
        "transformer_depth_output": [d for d in depths for _ in range(blocks + 1)],
        "transformer_depth_middle": depth,
        "context_dim": sizes.context_dim,
        "adm_in_channels": None,
        "use_linear_in_transformer": sizes.use_linear,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    })
    config.set_inference_dtype(torch.float32, None)
    offload = model_management.unet_offload_device()
    base = config.get_model({}, "", device=offload)
    base.diffusion_model.load_state_dict(model.unet.state_dict())
    base.eval().requires_grad_(False)
    return ModelPatcher(base, load_device=model_management.get_torch_device(), offload_device=offload)


class ShortContext(SDClipModel):
    """A text encoder whose contexts end with the text's end token, or are `least` tokens long where that is more."""

    least = 0

    def encode_token_weights(self, token_weight_pairs: list[list[tuple]]) -> tuple:
        context, *rest = super().encode_token_weights(token_weight_pairs)
        if len(token_weight_pairs) == 1:
            # A token may also be the vector of an embedding of the user's.
            tokens = [token if isinstance(token, int) else None for token, *_ in token_weight_pairs[0]]
            context = context[:, : max(tokens.index(self.special_tokens["end"]) + 1, self.least)]
        return context, *rest


def load_clip(model: LatentDiffusion, tokenizer: Path, least: int = 0) -> CLIP:
    """Contexts have 77 tokens or, with `least`, so many and more where the text is longer."""
    sizes, words = model.text.config, model.tokenizer
    special = {"start": words.start, "end": words.end, "pad": words.end}
    # Older versions read this from a file only.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps({
            "num_hidden_layers": sizes.layers,
            "hidden_size": sizes.width,
            "num_attention_heads": sizes.heads,
            "intermediate_size": sizes.width * 4,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": sizes.positions,
            "eos_token_id": words.end,
        }))
        kind = type("Encoder", (ShortContext,), {"least": least}) if least else SDClipModel
        encoder = partial(kind, textmodel_json_config=str(file), special_tokens=special)
        splitter = partial(SDTokenizer, str(tokenizer), embedding_size=sizes.width)
        target = ClipTarget(partial(SD1Tokenizer, tokenizer=splitter), partial(SD1ClipModel, clip_model=encoder))
        clip = CLIP(target)
    transformer = clip.cond_stage_model.clip_l.transformer
    # ComfyUI's class has CLIP's vocabulary built in.
    like = transformer.get_input_embeddings().weight
    table = comfy.ops.manual_cast.Embedding(sizes.vocabulary, sizes.width, dtype=like.dtype, device=like.device)
    transformer.set_input_embeddings(table)
    weights = {**model.text.state_dict(), "text_projection.weight": torch.eye(sizes.width)}
    transformer.load_state_dict(weights)
    transformer.requires_grad_(False)
    return clip


def load_vae(model: LatentDiffusion) -> VAE:
    sizes = model.vae.config
    networks = {
        "double_z": True,
        "z_channels": sizes.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": sizes.channels,
        "ch_mult": list(sizes.channel_mult),
        "num_res_blocks": sizes.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    config = {"params": {"ddconfig": networks, "embed_dim": sizes.latent_channels}}
    return VAE(sd=model.vae.state_dict(), config=config)
