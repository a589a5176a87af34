"""A fingerprint tells models apart by what they compute with."""

import shutil
from dataclasses import replace

import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.fingerprint import fingerprint
from ldznet_core.networks.unet import UNet, UNetConfig


@pytest.fixture
def backbone(made):
    return load_backbone(made / "mini.safetensors")


def test_a_fingerprint_is_that_of_the_weights_not_of_the_file(made, tmp_path):
    shutil.copy(made / "mini.safetensors", tmp_path / "other.safetensors")
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    copy, original = (load_backbone(file) for file in (tmp_path / "other.safetensors", made / "mini.safetensors"))
    assert fingerprint(copy) == fingerprint(original)


@pytest.mark.parametrize("part", ["vae", "text", "unet"])
def test_a_fingerprint_tells_any_changed_tensor(backbone, part):
    before = fingerprint(backbone)
    list(backbone.networks[part].parameters())[-1].data += 0.5
    assert fingerprint(backbone) != before


def test_a_fingerprint_tells_a_merged_lora_and_another_prediction(backbone):
    before = fingerprint(backbone)
    backbone.model.schedule = replace(backbone.schedule, prediction="v")
    other = fingerprint(backbone)
    weight = backbone.transformer(backbone.unet_config.taps[0]).transformer_blocks[0].attn2.to_q.weight
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((1, weight.shape[1]), (weight.shape[0], 1)))
    weight.data += 0.01 * up @ down
    assert len({before, other, fingerprint(backbone)}) == 3


def test_models_of_diffusers_have_fingerprints(made, tmp_path):
    pytest.importorskip("diffusers")
    from diffusers_models import save_model

    torch.manual_seed(0)
    sizes = UNetConfig(model_channels=32, channel_mult=(1, 1, 2, 2), num_heads=2, context_dim=32)
    backbone = load_backbone(save_model(tmp_path / "sd1", "sd1", UNet(sizes), made / "tokenizer"))
    before = fingerprint(backbone)
    assert before == fingerprint(load_backbone(tmp_path / "sd1"))
    backbone.texts[0].encoder.get_input_embeddings().weight.data += 0.5
    assert fingerprint(backbone) != before
