"""Training on caches computes what training without them computes, to half precision."""

import numpy as np
import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.recording import tapped
from ldznet_core.data.base import Example
from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.training.cache import LatentCache
from ldznet_core.training.features import Draws, FeatureCache
from ldznet_core.training.task import DecoderTask, Sample, Settings

SETTINGS = Settings(batch=2, at_once=2, conditions={"phrase": 0.5, "empty": 0.5})


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module", params=["ldznet", "light"])
def decoder(request, backbone):
    torch.manual_seed(0)
    if request.param == "light":
        return LightDecoder(light_config(backbone.unet_config, 64, 16)).eval()
    return MaskDecoder(DecoderConfig("ldznet", backbone.unet_config, grid=8)).init_from(backbone.model.unet).eval()


@pytest.fixture(scope="module")
def dataset():
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    return [Example("cat", mask, images[0], picture="0"), Example("apple", ~mask, images[1], picture="1")]


def test_losses_on_cached_latents_are_those_on_pictures(backbone, decoder, dataset, tmp_path):
    cache = LatentCache(tmp_path, backbone, dataset, 64)
    losses = [DecoderTask(decoder, backbone, dataset, SETTINGS, cache=c).loss(0, 0).item() for c in (None, cache)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_logits_on_cached_features_are_those_on_the_same_draw(backbone, decoder, dataset, tmp_path, float32):
    latents = LatentCache(tmp_path / "latents", backbone, dataset, 64)
    draws = Draws({"phrase": 1}, count=1, templates=("a {}",))
    modules = {tap: tapped(backbone.transformer, tap) for tap in decoder.taps}
    cache = FeatureCache(tmp_path / "features", latents, modules, draws)
    drawn = [draws(example.picture, 0) for example in dataset]
    assert drawn[0].timestep != drawn[1].timestep
    plain = [
        Sample(example, example.phrase, f"a {example.phrase}", draw.timestep, draw.seed)
        for example, draw in zip(dataset, drawn, strict=True)
    ]
    cached = [Sample(cache[i], e.phrase, "", 0, noise=0, index=i) for i, e in enumerate(dataset)]
    with torch.no_grad():
        expected = DecoderTask(decoder, backbone, dataset, SETTINGS).predict(plain)[0]
        logits = DecoderTask(decoder, backbone, dataset, SETTINGS, cache=cache).predict(cached)[0]
    assert torch.allclose(logits, expected, atol=0.01 * expected.abs().max().item())
