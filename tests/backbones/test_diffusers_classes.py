"""diffusers (where installed): its classes and converters hold the bundled checkpoint, which is an ordinary one."""

import pytest
import torch

from ldznet_core import load_backbone

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from diffusers.loaders import single_file_utils as convert  # noqa: E402
from diffusers_models import block_types  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return load_backbone("mini").model


@torch.inference_mode()
def test_the_unet_predicts_the_same(model):
    sizes = {
        "block_out_channels": tuple(model.unet.config.model_channels * m for m in model.unet.config.channel_mult),
        **block_types(model.unet.config),
        "cross_attention_dim": model.unet.config.context_dim,
        "attention_head_dim": model.unet.config.num_heads,  # what diffusers calls it
        "layers_per_block": 2,
    }
    theirs = UNet2DConditionModel(**sizes).eval()
    named = {f"model.diffusion_model.{k}": v for k, v in model.unet.state_dict().items()}
    none = {"class_embed_type": None, "addition_embed_type": None}
    theirs.load_state_dict(convert.convert_ldm_unet_checkpoint(named, {**sizes, **none}))
    z, t = torch.randn(2, 4, 16, 16), torch.tensor([400, 10])
    context = torch.randn(2, 77, model.unet.config.context_dim)
    assert torch.allclose(theirs(z, t, context).sample, model.unet(z, t, context), atol=1e-4)


@torch.inference_mode()
def test_the_autoencoder_encodes_and_decodes_the_same(model):
    sizes = {
        "block_out_channels": (64,) * 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 0,
    }
    theirs = AutoencoderKL(**sizes).eval()
    named = {f"first_stage_model.{k}": v for k, v in model.vae.state_dict().items()}
    theirs.load_state_dict(convert.convert_ldm_vae_checkpoint(named, sizes))
    image, z = torch.rand(1, 3, 128, 128) * 2 - 1, torch.randn(1, 4, 16, 16)
    assert torch.allclose(theirs.encode(image).latent_dist.mean, model.vae.encode(image), atol=1e-4)
    assert torch.allclose(theirs.decode(z).sample, model.vae.decode(z), atol=1e-4)
