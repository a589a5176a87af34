"""A temperature is found and folded into a decoder."""

import pytest
import torch

from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.mini.calibration import expected_error, fold_in, temperature
from ldznet_core.networks.unet import UNetConfig

UNET = UNetConfig(model_channels=32, channel_mult=(1, 1), attention_levels=(0,), num_heads=2, context_dim=8)


@pytest.mark.parametrize("given", [0.5, 1.0, 2.5])
def test_the_temperature_that_logits_were_scaled_by_is_found(given):
    torch.manual_seed(0)
    honest = 2 * torch.randn(40_000)
    truth = (torch.rand(40_000) < honest.sigmoid()).float()
    found = temperature(given * honest, truth)
    assert found == pytest.approx(given, rel=0.04)
    assert expected_error(given * honest / found, truth) < 0.01


def test_the_error_of_calibration_is_the_gap_between_what_is_said_and_what_is():
    sure = torch.full((4,), 20.0)
    assert expected_error(sure, torch.tensor([1.0, 1, 1, 1])) == pytest.approx(0, abs=1e-6)
    assert expected_error(sure, torch.tensor([1.0, 1, 0, 0])) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("kind", ["znet", "light"])
def test_logits_are_divided_by_the_temperature(kind):
    torch.manual_seed(0)
    light = kind == "light"
    decoder = LightDecoder(light_config(UNET, 128, 16)) if light else MaskDecoder(DecoderConfig(kind, UNET, 16))
    decoder.eval()
    z, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 8)
    features = None
    if light:
        grids = [16 // 2**source.level for source in decoder.config.sources]
        maps = [torch.randn(1, s.channels, g, g) for s, g in zip(decoder.config.sources, grids, strict=True)]
        attention = [torch.randn(1, 2 * s.heads, 16 // 2**s.level, 16 // 2**s.level) for s in decoder.attending]
        features = [*maps, *attention]
    with torch.no_grad():
        before = decoder(z, context, features)
        fold_in(decoder, 2.0)
        after = decoder(z, context, features)
    torch.testing.assert_close(after, before / 2)
    assert before.abs().max() > 0
