"""The few names of WebUIs that our backbones touch, over a small model of our own: what unit tests run on.

Real ones are started by `tests/webui`.
"""

import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import torch
from seeded import seed_weights
from torch import nn

from ldznet_core.checkpoints.ldm import read
from ldznet_core.checkpoints.tokenizer import ClipTokenizer
from ldznet_core.networks.unet import UNet


def load(folder):
    return read(folder / "mini.safetensors", ClipTokenizer.from_folder(folder / "tokenizer"))


class Encoder(nn.Module):
    """Stable Diffusion's VAE as WebUIs have it: `encode` goes on to draw from the global generator."""

    def __init__(self, vae):
        super().__init__()
        self.vae, self.quant_conv = vae, vae.quant_conv

    def encode(self, x):
        mean, _ = self.quant_conv(self.vae.encoder(x)).chunk(2, dim=1)
        return mean + torch.randn_like(mean)

    def process_in(self, latent):
        return latent * self.vae.SCALE


class Texts:
    """A text encoder that reads escapes as WebUIs do, and skips its last layer where told to."""

    def __init__(self, model, skip):
        self.model, self.skip, self.clip_skip, self.minimal_clip_skip = model, skip, 2, 1

    def plain(self, text):
        for bracket in "()[]\\":
            text = text.replace("\\" + bracket, bracket)
        return text

    def __call__(self, texts):
        context = self.model.text(torch.tensor([self.model.tokenizer.encode(self.plain(text)) for text in texts]))
        return context if self.skip() == 1 else context * 0.5

    def process_texts(self, texts):
        tokens = [self.model.tokenizer.encode(self.plain(text)) for text in texts]
        end = self.model.tokenizer.encode("")[1]
        return None, max(row.index(end) - 1 for row in tokens)


def checkpoint_info():
    return SimpleNamespace(name_for_extra="test", metadata={"ldznet": {"size": 64}})


def package(patch, name: str, **members) -> ModuleType:
    """A module of that name for as long as the patch lasts."""
    module = ModuleType(name)
    vars(module).update(members)
    patch.setitem(sys.modules, name, module)
    parent, _, own = name.rpartition(".")
    if parent:
        patch.setattr(sys.modules[parent], own, module, raising=False)
    return module


def as_sdxl(model):
    """The same model with a UNet that takes SDXL's vector, too."""
    config = replace(model.unet.config, vector_channels=8)
    return replace(model, unet=seed_weights(UNet(config), 0))


def with_vector(texts):
    """What encodes texts for SDXL: also a vector, whose first number says which text it is of."""

    def encode(prompts):
        context = texts(prompts)
        return {"crossattn": context, "vector": context[:, 1, :8]}

    return encode


def a1111(patch, folder, sdxl: bool = False):
    """`sd_model` of AUTOMATIC1111's WebUI, and its modules."""
    model = as_sdxl(load(folder)) if sdxl else load(folder)
    options = SimpleNamespace(data={"CLIP_stop_at_last_layers": 2}, emphasis="Original")
    package(patch, "modules")
    package(patch, "modules.shared", opts=options, sd_model=None)
    package(
        patch, "modules.devices", device=torch.device("cpu"), dtype_vae=torch.float32, autocast=nullcontext,
        torch_gc=lambda: None,
    )  # fmt: skip
    texts = Texts(model, lambda: options.data["CLIP_stop_at_last_layers"])

    def apply_model(x, t, conditioning):
        if sdxl:
            return model.unet(x, timesteps=t, context=conditioning["crossattn"], vector=conditioning["vector"])
        return model.unet(x, t, conditioning["c_crossattn"][0])

    sd_model = SimpleNamespace(
        model=SimpleNamespace(diffusion_model=model.unet), first_stage_model=Encoder(model.vae),
        cond_stage_model=texts, get_learned_conditioning=with_vector(texts) if sdxl else texts,
        apply_model=apply_model, parameterization="eps",
        alphas_cumprod=model.schedule.alphas_cumprod, scale_factor=model.vae.SCALE,
        sd_checkpoint_info=checkpoint_info(),
    )  # fmt: skip
    sys.modules["modules.shared"].sd_model = sd_model
    return sd_model


class Predictor:
    """Forge's noise schedule."""

    prediction_type = "epsilon"

    def __init__(self, alphas):
        self.sigmas = ((1 - alphas) / alphas).sqrt()

    def sigma(self, timestep):
        return self.sigmas[timestep.long()]

    def timestep(self, sigma):
        return (sigma[:, None] - self.sigmas).abs().argmin(1)


class ForgeUNet(nn.Module):
    """A UNet that takes what Forge hands to it."""

    def __init__(self, unet):
        super().__init__()
        self.input_blocks, self.middle_block = unet.input_blocks, unet.middle_block
        self.output_blocks, self.time_embed, self.out = unet.output_blocks, unet.time_embed, unet.out
        if hasattr(unet, "label_emb"):
            self.label_emb = unet.label_emb
        self.run = (unet,)  # not a part by that name

    def forward(self, x, timesteps, context, control=None, transformer_options=None, y=None):
        return self.run[0](x, timesteps.long(), context, vector=y)


class KModel:
    computation_dtype = torch.float32

    def __init__(self, unet, predictor):
        self.diffusion_model, self.predictor = ForgeUNet(unet), predictor

    def apply_model(self, x, sigma, c_crossattn, transformer_options, **vector):
        scale = sigma.view(-1, 1, 1, 1)
        timesteps = self.predictor.timestep(sigma).float()
        eps = self.diffusion_model(
            x / (scale**2 + 1).sqrt(), timesteps, context=c_crossattn, transformer_options=transformer_options,
            **vector,
        )  # fmt: skip
        return x - eps * scale


def forge(patch, folder, sdxl: bool = False):
    """`sd_model` of Forge, and its modules."""
    model = as_sdxl(load(folder)) if sdxl else load(folder)
    package(patch, "modules")
    package(patch, "modules.shared", opts=SimpleNamespace(emphasis="Original"), sd_model=None)
    package(patch, "backend")
    package(
        patch, "backend.memory_management", load_models_gpu=lambda models, memory_required=0: None,
        get_torch_device=lambda: torch.device("cpu"), soft_empty_cache=lambda: None,
    )  # fmt: skip
    unet = SimpleNamespace(
        model=KModel(model.unet, Predictor(model.schedule.alphas_cumprod)), memory_required=lambda shape: 0
    )
    vae = SimpleNamespace(
        first_stage_model=Encoder(model.vae), patcher=None, vae_dtype=torch.float32, device=torch.device("cpu"),
        memory_used_encode=lambda shape, dtype: 0,
    )  # fmt: skip
    engine = Texts(model, lambda: engine.clip_skip)
    names = ["text_processing_engine_l", "text_processing_engine_g"] if sdxl else ["text_processing_engine"]
    sd_model = SimpleNamespace(
        forge_objects=SimpleNamespace(unet=unet, vae=vae), **dict.fromkeys(names, engine),
        get_learned_conditioning=with_vector(engine) if sdxl else engine, sd_checkpoint_info=checkpoint_info(),
    )  # fmt: skip
    sys.modules["modules.shared"].sd_model = sd_model
    return sd_model


@contextmanager
def backbone_of(kind: str, folder, sdxl: bool = False):
    """A backbone of ours over such a model."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        if kind == "a1111":
            from ldznet_core.backbones.webui_a1111 import A1111Backbone

            yield A1111Backbone(a1111(patch, folder, sdxl))
        else:
            from ldznet_core.backbones.webui_forge import ForgeBackbone

            yield ForgeBackbone(forge(patch, folder, sdxl))
