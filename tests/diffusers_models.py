"""Small random models of SD 1.x, SD 2.x and SDXL as diffusers' folders."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldznet_core.checkpoints.tokenizer import LENGTH, ClipTokenizer
from ldznet_core.networks.unet import UNet, UNetConfig

FOUR = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "sample_size": 8,
    "cross_attention_dim": 32,
}
LINEAR = {"use_linear_projection": True, "attention_head_dim": (2, 2, 4, 4)}  # heads of 16 channels, as SD 2.x's of 64
UNETS = {
    "sd1": {**FOUR, "attention_head_dim": 2},
    "sd2": {**FOUR, **LINEAR},
    "sdxl": {
        **FOUR,
        **LINEAR,
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "attention_head_dim": (2, 2, 4),
        "transformer_layers_per_block": (1, 2, 3),
        "cross_attention_dim": 32 + 48,  # of both text encoders
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,  # pooled text and six numbers
    },
}
VAE = {
    "block_out_channels": (32,) * 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
}
PREDICTIONS = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}
SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def block_types(config: UNetConfig) -> dict[str, tuple[str, ...]]:
    """What diffusers calls the levels of a UNet of our config, with and without attention."""
    attends = [level in config.attention_levels for level in range(len(config.channel_mult))]
    return {
        "down_block_types": tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
    }


def save(folder, unet, vae, encoders, tokenizer, prediction) -> None:
    """The parts as diffusers' pipelines save them."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(**BETAS, prediction_type=prediction).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
    for encoder, number in zip(encoders, ("", "_2"), strict=False):
        encoder.save_pretrained(folder / f"text_encoder{number}")
        shutil.copytree(tokenizer, folder / f"tokenizer{number}")
        index[f"text_encoder{number}"] = ["transformers", type(encoder).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def text_sizes(tokenizer, width, layers=2, heads=2, projection=24, **more) -> CLIPTextConfig:
    words = ClipTokenizer.from_folder(tokenizer)
    tokens = {"bos_token_id": words.start, "eos_token_id": words.end, "pad_token_id": words.end}
    return CLIPTextConfig(
        vocab_size=len(words.vocabulary), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=LENGTH, projection_dim=projection, **tokens, **more,
    )  # fmt: skip


def theirs_of(unet: UNet, sizes: dict) -> UNet2DConditionModel:
    """diffusers' UNet with the weights of ours, by diffusers' own map of names."""
    theirs = UNet2DConditionModel(**sizes).eval()
    named = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    theirs.load_state_dict(convert.convert_ldm_unet_checkpoint(named, theirs.config))
    return theirs


def save_model(folder: Path, family: str, unet: UNet, tokenizer: Path) -> Path:
    """A folder with the weights of our UNet in it and random other parts."""
    torch.manual_seed(0)
    encoders = [CLIPTextModel(text_sizes(tokenizer, 32))]
    if family == "sdxl":
        encoders.append(CLIPTextModelWithProjection(text_sizes(tokenizer, 48, hidden_act="gelu")))
    vae = AutoencoderKL(**VAE, scaling_factor=SCALES[family])
    save(folder, theirs_of(unet, UNETS[family]), vae, encoders, tokenizer, PREDICTIONS[family])
    return folder
