"""A model too small to be of any use, written as the bundled one is: what most tests run on."""

import importlib
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import engine as comfy_engine
import pytest
import torch
from studio import Studio
from terminal import bundle, picture

import ldznet_core.backbones.sampling
from ldznet_core.checkpoints import ldm, tokenizer
from ldznet_core.decoders.files import DecoderInfo, write_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.schedule import Schedule
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig

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


@pytest.fixture
def float32(monkeypatch):
    """A processor that does not compute in bfloat16, so that results are compared closely on any."""
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """An empty current folder, with the random model as the bundled one and a picture at hand."""
    bundle(monkeypatch, made)
    monkeypatch.setattr(ldznet_core.backbones.sampling, "STEPS", 5)  # its drawings are noise after any number of them
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    return tmp_path


@pytest.fixture
def as_comfyui_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def engine():
    """A real ComfyUI engine in this process, on the CPU."""
    started = comfy_engine.start()
    if started is None:
        pytest.skip("no ComfyUI engine: install it as the README says, or set COMFYUI_PATH")
    return started


@pytest.fixture(scope="session")
def pack(engine):
    """The extension, loaded as ComfyUI loads it."""
    return comfy_engine.load_pack()


@pytest.fixture(scope="session")
def pack_nodes(pack):
    """Its node classes by their ids."""
    return comfy_engine.node_classes(pack)


@pytest.fixture(scope="session")
def core(pack):
    """A module of the pack's own core: `core("backbones.comfy")`."""
    return lambda name: importlib.import_module(f"{pack.__name__}.ldznet_core.{name}")


@pytest.fixture(scope="session")
def mini(pack_nodes):
    """MODEL, CLIP, VAE and decoder of the bundled miniature, and what a test does with them."""
    with torch.inference_mode():
        return Studio(*pack_nodes["LDZNetLoadMini"].execute().args)
