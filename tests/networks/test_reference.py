"""Our networks against what the authors' own compute at reduced size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from seeded import seed_weights, seeded

from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.schedule import Schedule
from ldznet_core.networks.unet import UNet, UNetConfig

REFERENCE = Path(__file__).parents[1] / "data" / "official_small.safetensors"
TOLERANCE = 1e-4  # of the largest absolute reference value


@pytest.fixture(scope="module")
def reference():
    with safe_open(REFERENCE, "pt") as f:
        meta = f.metadata()
        return meta, {k: f.get_tensor(k) for k in f.keys()}


@pytest.fixture(scope="module")
def networks(reference):
    meta, _ = reference
    sizes = json.loads(meta["config"])
    config = replace(UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}))
    decoder = MaskDecoder(DecoderConfig("ldznet", config))
    return seed_weights(UNet(config), int(meta["sd_seed"])), seed_weights(decoder, int(meta["seg_seed"]))


def relative(actual, expected) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", [0, 1])
@torch.no_grad()
def test_the_authors_numbers(reference, networks, case):
    meta, data = reference
    unet, decoder = networks
    b, h, w, t = json.loads(meta["cases"])[case]
    seed = int(meta["input_seed"])
    z = 0.9 * seeded(f"z{case}", (b, 4, h, w), seed)
    noise, context = seeded(f"noise{case}", z.shape, seed), seeded(f"context{case}", (b, 77, 64), seed)
    timesteps = torch.full((b,), t)
    z_t = Schedule.stable_diffusion().add_noise(z, noise, timesteps)

    eps, features = unet(z_t, timesteps, context, taps=decoder.taps)
    early = unet.extract(z_t, timesteps, context, decoder.taps)
    logits = decoder(z, context, features)

    assert decoder.taps == (
        "input_blocks.8", "middle_block", "output_blocks.3", "output_blocks.4", "output_blocks.5"
    )
    assert all(torch.equal(a, b) for a, b in zip(early, features, strict=True))
    assert relative(eps, data[f"case{case}.eps"]) < TOLERANCE
    assert relative(features[-1], data[f"case{case}.feature.9"]) < TOLERANCE
    for i, feature in enumerate(features, start=5):
        mean_std = torch.stack([feature.mean(), feature.std()])
        assert relative(mean_std, data[f"case{case}.feature.{i}.mean_std"]) < 10 * TOLERANCE
    assert relative(logits[..., ::4, ::4], data[f"case{case}.logits_stride4"]) < TOLERANCE


def test_norms_have_the_authors_eps(networks):
    """Numbers do not catch a wrong eps reliably: look at it."""
    for network in networks:
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.GroupNorm):
                transformer_norm = name.endswith(".1.norm")
                assert module.eps == (1e-6 if transformer_norm else 1e-5), name
