"""A model too small to be of any use, written as the bundled one is: what most tests run on."""

import pytest
import torch

from ldznet_core import ldm, tokenizer
from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.decoder import DecoderConfig, MaskDecoder
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig
from ldznet_core.schedule import Schedule
from ldznet_core.weights import DecoderInfo, write_decoder

UNET = UNetConfig(model_channels=32, channel_mult=(1, 1, 2, 2), num_heads=2, context_dim=32)
INFO = DecoderInfo(family="test", prediction="eps", pixels=64 * 64, templates=("a photo of a {}.",))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder like that of the bundled weights, with a random model and random decoders in it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    words = tokenizer.learn("cat red apple".split())
    words.save(folder / "tokenizer")
    model = ldm.LatentDiffusion(
        vae=Autoencoder(AutoencoderConfig(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)),
        text=ClipText(TextConfig(vocabulary=len(words.vocabulary), width=32, layers=1, heads=2)),
        unet=UNet(UNET),
        tokenizer=words,
        schedule=Schedule.stable_diffusion(),
        about={"name": "test", "num_heads": 2, "text_heads": 2, "size": 64},
    )
    ldm.write(model, folder / "mini.safetensors")
    for kind in ("ldznet", "znet", "rgbnet"):
        decoder = MaskDecoder(DecoderConfig(kind, UNET, grid=8))
        with torch.no_grad():  # masks that go from almost 0 to almost 1
            decoder.out[2].weight *= 3
            decoder.final[-1].weight *= 3
            decoder.final[-1].bias -= 1
        write_decoder(decoder, INFO, folder / f"{kind}.safetensors")
    return folder
