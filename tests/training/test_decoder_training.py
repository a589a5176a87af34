"""Training a decoder: any data set of examples serves, and ignored pixels teach nothing."""

import math

import numpy as np
import pytest
import torch

from ldznet_core import load_backbone, load_decoder
from ldznet_core.data.base import Example
from ldznet_core.decoders.files import DecoderInfo
from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.training.decoder import train_decoder
from ldznet_core.training.loop import Plan
from ldznet_core.training.losses import mask_loss
from ldznet_core.training.task import Settings


def test_the_loss_is_cross_entropy_and_half_a_soft_dice():
    logits = torch.zeros(1, 1, 2, 2)
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert mask_loss(logits, target).item() == pytest.approx(math.log(2) + 0.5 * (1 - 3 / 5))


def test_ignored_pixels_do_not_count():
    target = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    ignore = torch.tensor([[[[False, False], [True, True]]]])
    right = torch.tensor([[[[9.0, -9.0], [9.0, -9.0]]]])
    wrong = torch.tensor([[[[9.0, -9.0], [-9.0, 9.0]]]])
    assert mask_loss(wrong, target, ignore) == mask_loss(right, target, ignore)
    assert mask_loss(right, target, ignore).item() == pytest.approx(
        mask_loss(right[:, :, :1], target[:, :, :1]).item(), abs=1e-6
    )
    assert mask_loss(wrong, target, torch.ones_like(ignore)).item() == 0


@pytest.mark.parametrize("kind", ["ldznet", "znet", "rgbnet", "light"])
def test_a_decoder_trains_on_pictures_and_phrases_alone(made, tmp_path, kind):
    backbone = load_backbone(made / "mini.safetensors")
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    dataset = [Example("cat", mask, image), Example("apple", ~mask, image, ignore=mask)]
    if kind == "light":
        decoder = LightDecoder(light_config(backbone.unet_config, 128, width=16))
    else:
        decoder = MaskDecoder(DecoderConfig(kind, backbone.unet_config, grid=8)).init_from(backbone.model.unet)
    info = DecoderInfo("mini", "eps", training={"data": "two examples"})
    path, plan = tmp_path / "d.safetensors", Plan(1e-3, steps=2)
    train_decoder(decoder, backbone, dataset, path, plan, info, Settings(2, 2), seed=3)
    training = load_decoder(path).info.training
    assert (training["data"], training["steps"], training["samples"], training["seed"]) == ("two examples", 2, 4, 3)
