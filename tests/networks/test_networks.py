"""The networks are Stable Diffusion's: same names, same shapes, same sizes read back from a file."""

import json
from pathlib import Path

import pytest
import torch

from ldznet_core.checkpoints import ldm
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.layers import AttentionPool, SpatialTransformer
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig

NAMES = json.loads((Path(__file__).parents[1] / "data" / "official_names.json").read_text())
SMALL = UNetConfig(model_channels=32, context_dim=24, num_heads=2)
SD2 = UNetConfig(context_dim=1024, head_channels=64, use_linear=True)


def shapes(network) -> dict[str, list[int]]:
    return {k: list(v.shape) for k, v in network.state_dict().items()}


@pytest.mark.parametrize(
    ("part", "build"),
    [
        ("unet", lambda: UNet(UNetConfig())),
        ("decoder", lambda: MaskDecoder(DecoderConfig("ldznet", UNetConfig()))),
        ("vae", lambda: Autoencoder(AutoencoderConfig())),
        ("text", lambda: ClipText(TextConfig())),
    ],
)
def test_full_size_networks_have_the_official_names_and_shapes(part, build):
    with torch.device("meta"):
        assert shapes(build()) == NAMES[part]


@pytest.mark.parametrize("config", [UNetConfig(), SD2, SMALL, UNetConfig(model_channels=64, channel_mult=(1, 1, 2, 2))])
def test_unet_sizes_are_read_from_tensors(config):
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in UNet(config).state_dict().items()}
    assert ldm.unet_config(found, {"num_heads": config.num_heads}) == config


@pytest.mark.parametrize("config", [AutoencoderConfig(), AutoencoderConfig(64, (1, 1, 1, 1), 0)])
def test_vae_sizes_are_read_from_tensors(config):
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in Autoencoder(config).state_dict().items()}
    assert ldm.vae_config(found) == config


def test_transformers_are_the_blocks_that_have_one_in_the_order_of_a_pass():
    found = UNetConfig().transformers
    assert len(found) == 16 and found[5:10] == UNetConfig().taps  # the paper's blocks 6 to 10
    small_xl = UNetConfig(
        model_channels=32, channel_mult=(1, 2, 4), attention_levels=(1, 2), transformer_depth=(0, 1, 2), context_dim=8
    )
    for config in (SMALL, small_xl):
        modules = UNet(config).named_modules()
        there = [name.rpartition(".")[0] for name, module in modules if isinstance(module, SpatialTransformer)]
        assert list(config.transformers) == there


def test_sd2_taps_are_sd1_taps():
    assert SD2.taps == UNetConfig().taps


@torch.no_grad()
def test_an_early_exit_runs_nothing_past_the_last_tap():
    unet = UNet(SMALL).eval()
    visited = []
    for name, block in unet.blocks():
        block[0].register_forward_hook(lambda *_, name=name: visited.append(name))
    unet.extract(torch.zeros(1, 4, 8, 8), torch.tensor([400]), torch.zeros(1, 77, 24), SMALL.taps)
    assert visited[-1] == "output_blocks.5"
    assert not any(name in visited for name in ("output_blocks.6", "output_blocks.11"))


@torch.no_grad()
def test_folding_latent_statistics_changes_latents_but_not_pictures():
    torch.manual_seed(0)
    vae = Autoencoder(AutoencoderConfig(32, (1, 1), 1)).eval()
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    before, (_, log_variance) = vae.encode(image), vae.posterior(image)
    picture = vae.decode(before)
    mean, std = before.mean((0, 2, 3)), before.std((0, 2, 3))
    vae.normalise(mean, std)
    z = vae.encode(image) * vae.SCALE
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(vae.decode(vae.encode(image)), picture, atol=1e-4)
    expected = log_variance - 2 * (std * vae.SCALE).log()[:, None, None]
    assert torch.allclose(vae.posterior(image)[1], expected, atol=1e-4)


@torch.no_grad()
def test_position_table_is_taken_as_it_is_for_its_number_of_tokens():
    pool = AttentionPool(16, 4)
    assert torch.equal(pool.position(2, 8), pool.positional_embedding)  # 16 tokens, though not square
    assert pool.position(3, 5).shape == (16, 16)
    assert torch.equal(pool.position(3, 5)[:, 0], pool.positional_embedding[:, 0])  # the mean token's stays


def test_a_new_decoder_starts_as_the_host():
    torch.manual_seed(0)
    unet = UNet(SMALL)
    znet = MaskDecoder(DecoderConfig("znet", SMALL)).init_from(unet)
    ldznet = MaskDecoder(DecoderConfig("ldznet", SMALL, grid=8)).init_from(unet)
    for name, value in unet.state_dict().items():
        if not name.startswith("out.2"):
            assert torch.equal(znet.state_dict()[name], value)
    assert torch.equal(znet.out[2].weight, unet.out[2].weight[:1])
    ldznet.final.load_state_dict(znet.final.state_dict())
    z, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 24)
    features = unet.extract(z, torch.tensor([400]), context, ldznet.taps)
    assert torch.allclose(ldznet(z, context, features), znet(z, context), atol=1e-5)


def test_a_decoder_says_how_many_maps_it_needs():
    decoder = MaskDecoder(DecoderConfig("ldznet", SMALL, grid=8))
    with pytest.raises(ValueError, match="takes 5 feature maps"):
        decoder(torch.zeros(1, 4, 8, 8), torch.zeros(1, 77, 24), [])
