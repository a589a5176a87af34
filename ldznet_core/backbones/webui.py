"""What the backbones of the WebUIs share: a UNet under LDM's names inside a program that owns the model.

`webui_a1111.py` is for AUTOMATIC1111's, `webui_forge.py` for Forge and Forge Neo. Modules of a WebUI are imported
inside functions, when a backbone is made: importing this package loads none of them.
"""

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..checkpoints.ldm import unet_config
from ..checkpoints.tokenizer import LENGTH
from ..errors import InputError
from ..networks.schedule import noise_like
from ..networks.unet import UNetConfig, native_side
from .base import BaseBackbone
from .recording import Text, record

_sizes: WeakKeyDictionary[nn.Module, UNetConfig] = WeakKeyDictionary()


def read_unet_config(network: nn.Module, family: str) -> UNetConfig:
    """The sizes of a UNet, from the shapes of its tensors. Raises InputError for other architectures."""
    if network not in _sizes:
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        try:
            heads = transformer(network, "middle_block").transformer_blocks[0].attn1.heads
            _sizes[network] = unet_config(shapes, {"num_heads": heads})
        except (AttributeError, KeyError, IndexError, StopIteration, ZeroDivisionError, ValueError):
            raise InputError(
                f"the loaded checkpoint is a {family}, which has no such UNet: masks from words need a checkpoint of "
                "Stable Diffusion 1.x, 2.x or SDXL that is not for inpainting"
            ) from None
    return _sizes[network]


def transformer(network: nn.Module, block: str) -> nn.Module:
    """The spatial transformer of a block of a UNet."""
    return next(layer for layer in network.get_submodule(block).children() if hasattr(layer, "transformer_blocks"))


def literal(text: str) -> str:
    """A text in which brackets are letters and no word is a command: a phrase has no weights. CLIP reads lower case in
    any case, and the WebUIs know their command BREAK by its capitals."""
    for bracket in "\\()[]":
        text = text.replace(bracket, "\\" + bracket)
    return text.lower()


class WebUIBackbone(BaseBackbone):
    """The checkpoint that a WebUI has loaded, `sd_model` in its words. Latents are scaled, as the UNet reads them.

    A subclass gives `network` (the UNet), `prediction`, `device`, `vae_pass`, `scaled`, `conditioning`,
    `count_tokens`, `predict` (what the UNet is run by), `denoise` and `project`.
    """

    capabilities = frozenset(("features", "queries", "denoise"))

    def __init__(self, sd_model):
        self.sd_model = sd_model

    @property
    def network(self) -> nn.Module:
        """The UNet, under LDM's names."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        checkpoint = getattr(self.sd_model, "sd_checkpoint_info", None)
        return getattr(checkpoint, "name_for_extra", None) or "the loaded checkpoint"

    @cached_property
    def unet_config(self) -> UNetConfig:
        return read_unet_config(self.network, type(self.sd_model).__name__)

    @property
    def channels(self) -> int:
        return self.unet_config.out_channels

    @property
    def native_area(self) -> int:
        """Area in pixels of the pictures that the model was trained to draw: what its file says, if it says so."""
        metadata = getattr(getattr(self.sd_model, "sd_checkpoint_info", None), "metadata", None) or {}
        about = metadata.get("ldznet") if isinstance(metadata, dict) else None
        side = about.get("size") if isinstance(about, dict) else None
        return (side or native_side(self.unet_config, self.prediction)) ** 2

    def transformer(self, block: str) -> nn.Module:
        """The spatial transformer of a block."""
        return transformer(self.network, block)

    def ready(self, decoder: nn.Module, z: Tensor) -> nn.Module:
        """The decoder on the device of the UNet. Who made this backbone moves it away again."""
        return decoder.to(self.device)

    @torch.inference_mode()
    def encode(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Images [B, H, W, 3] in 0..1, sides multiples of 8, to scaled latents [B, C, H/8, W/8]: the posterior's mean
        or, with a seed, a sample of it."""
        vae, run = self.vae_pass(image.permute(0, 3, 1, 2) * 2 - 1)
        # The WebUIs' own encoding would go on to draw a sample, from the generator that pictures are drawn with.
        with record({"moments": vae.quant_conv}, stop=True) as outputs:
            run()
        mean, log_variance = outputs["moments"].float().chunk(2, dim=1)
        if seed is not None:
            mean = mean + (log_variance.clamp(-30, 20) / 2).exp() * noise_like(mean, seed)
        return self.scaled(mean)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Text:
        """Texts to contexts [B, 77, D] and, for SDXL, `pooled` [B, 2816]: the pooled texts with the sizes that the
        WebUI adds. What goes past 77 tokens is cut."""
        from modules import shared

        escaped = [text.lower() if getattr(shared.opts, "emphasis", "") == "None" else literal(text) for text in texts]
        contexts, pools = [], []
        for text in escaped:  # one at a time: a long one would lengthen the others
            context, pooled = self.conditioning(text)
            contexts.append(context[:, :LENGTH])
            pools.append(pooled)
        lengths = tuple(min(self.count_tokens(text), LENGTH - 2) for text in escaped)
        return Text(torch.cat(contexts), torch.cat(pools) if self.unet_config.vector_channels else None, lengths)

    @torch.inference_mode()
    def observe(
        self, z: Tensor, text: Text, modules: dict[str, nn.Module], *, timestep: int, seed: int = 0
    ) -> dict[str, Tensor]:
        """What parts of the UNet put out for `z` noised to `timestep`, in one pass that ends at the last of them."""
        with record(modules, stop=True) as outputs:
            self.predict(z, text, timestep, seed)
        self.check_finite(outputs.values(), timestep)
        return outputs


def parts(conditioning) -> tuple[Tensor, Tensor | None]:
    """What a WebUI encodes of a text: its context [B, N, D] and, of SDXL, its vector [B, E]."""
    if isinstance(conditioning, dict):
        return conditioning["crossattn"], conditioning["vector"]
    return conditioning, None
