"""A Stable Diffusion model in diffusers' layout, a folder a part, on diffusers' and transformers' own classes.

Reads SD 1.x, 2.x and SDXL from this machine alone, float32, safetensors only. `read_unet_config`, `prediction` and
`parameters` read a folder's words and file heads, and need neither package.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..features import Text
from ..networks.unet import UNet, UNetConfig, native_side
from ..schedule import Schedule, noise_like
from ..tokenizer import LENGTH
from .base import TorchHost

WORKS = "LD-ZNet reads Stable Diffusion 1.x, 2.x and SDXL"
SCHEDULER = "scheduler/scheduler_config.json"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}  # diffusers' names and ours


# ---- what a folder says of itself ----------------------------------------------------------------


def read_json(path: Path) -> dict:
    """Raises InputError where there is no such file or it holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        reason = "it holds no JSON object"
    except FileNotFoundError:
        reason = "there is no such file"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise InputError(f"{path} cannot be read ({reason}): get the folder again") from None


def parts(folder: Path) -> tuple[str, ...]:
    """The parts of the model that a mask needs. Raises InputError where the folder is no Stable Diffusion."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers folder: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name", "pipeline of no name")
    if "UNet2DConditionModel" not in (index.get("unet") or ()):
        raise InputError(f"{folder} is a {pipeline}, which has no such UNet: {WORKS}")
    texts = [name for name in ("text_encoder", "text_encoder_2") if name in index]
    for name in texts or ["text_encoder"]:  # entries of parts that were left out are pairs of null
        if "CLIPText" not in str(index.get(name)):
            raise InputError(f"{folder} is a {pipeline} without the {name} of a whole model: {WORKS}")
    return ("unet", "vae", *texts)


def read_unet_config(folder: Path) -> UNetConfig:
    """The UNet's sizes. Raises InputError for one that is arranged otherwise than those of Stable Diffusion."""
    config = read_json(folder / "unet" / "config.json")
    try:
        sizes = unet_config(config)
        with torch.device("meta"):
            expected = sum(p.numel() for p in UNet(sizes).parameters())
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        raise InputError(f"the UNet of {folder} is not described as any that can be read ({error}): {WORKS}") from None
    # Pruned and other relatives share all that their description says with the real ones, but not their size.
    if (found := parameters(folder, "unet")) != expected:
        raise InputError(f"the UNet of {folder} has {found:,} parameters instead of {expected:,}: {WORKS}")
    if sizes.in_channels != sizes.out_channels:
        raise InputError(
            f"the UNet of {folder} reads {sizes.in_channels} channels, as those for inpainting, upscaling or editing "
            "do: use the model that it was made from"
        )
    return sizes


def unet_config(config: Mapping) -> UNetConfig:
    """Sizes of the UNet of which this is diffusers' description. Raises KeyError, TypeError or ValueError."""
    widths, linear = config["block_out_channels"], config.get("use_linear_projection", False)

    def each(value) -> list[int]:
        return [value] * len(widths) if isinstance(value, int) else list(value)

    kinds = enumerate(config["down_block_types"])
    levels = tuple(level for level, kind in kinds if kind == "CrossAttnDownBlock2D")
    heads = each(config.get("attention_head_dim", 8))  # called dim, but it is their number
    depths = each(config.get("transformer_layers_per_block", 1))
    numbers, sizes = {heads[i] for i in levels}, {widths[i] // heads[i] for i in levels}
    if len(sizes if linear else numbers) != 1:
        raise ValueError(f"heads {heads} in blocks of {list(widths)} channels")
    even = len({depths[i] for i in levels}) == 1
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        attention_levels=levels,
        num_heads=8 if linear else numbers.pop(),
        head_channels=sizes.pop() if linear else 0,
        context_dim=config["cross_attention_dim"],
        transformer_depth=depths[levels[-1]] if even else tuple(d * (i in levels) for i, d in enumerate(depths)),
        use_linear=linear,
        vector_channels=config.get("projection_class_embeddings_input_dim") or 0,
    )


def prediction(folder: Path) -> str:
    """What the UNet predicts: "eps" or "v"."""
    said = read_json(folder / SCHEDULER).get("prediction_type", "epsilon")
    if said not in PREDICTIONS:
        raise InputError(f"the model in {folder} predicts {said!r}: {WORKS}, which predict {' or '.join(PREDICTIONS)}")
    return PREDICTIONS[said]


def weights(folder: Path, part: str) -> tuple[list[Path], str | None]:
    """The files of a part's weights and their variant, such as fp16 where only that is there."""
    for variant in (None, "fp16", "bf16", "non_ema"):
        dot = f".{variant}" if variant else ""
        for stem in ("diffusion_pytorch_model", "model"):
            files = sorted(
                {*(folder / part).glob(f"{stem}{dot}.safetensors"), *(folder / part).glob(f"{stem}{dot}-*.safetensors")}
            )
            if files:
                return files, variant
    raise InputError(
        f"{folder / part} has no .safetensors weights, and pickled ones are not read: "
        "get the model in safetensors, or save it again with diffusers"
    )


def parameters(folder: Path, part: str) -> int:
    """How many numbers a part's files hold. Reads their heads only."""
    total = 0
    for file in weights(folder, part)[0]:
        try:
            with safe_open(file, "pt") as f:
                total += sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())
        except Exception as error:
            raise InputError(f"{file} is damaged or no safetensors file ({error}): get it again") from None
    return total


# ---- the host ------------------------------------------------------------------------------------


def load(folder: Path, device: str = "cpu", dtype: str = "float32") -> "DiffusersHost":
    """The model in a folder with `model_index.json`. Nothing is asked of any network.

    Raises InputError where it is damaged, of a family that cannot be read, or diffusers is not installed.
    """
    names, sizes, predicted = parts(folder), read_unet_config(folder), prediction(folder)
    if (len(names) == 4) != (sizes.vector_channels > 0):
        raise InputError(f"the UNet and the text encoders of {folder} are of different families: {WORKS}")
    try:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection
    except ImportError as error:
        reason = f"a diffusers folder needs two packages ({first_line(error)})"
        raise InputError(f"{reason}: pip install diffusers transformers") from None
    kinds = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection)
    with quiet():
        types = (getattr(torch, dtype), torch.float32, *[getattr(torch, dtype)] * 2)  # SDXL's VAE overflows in 16 bits
        unet, vae, *encoders = (load_part(folder, *one) for one in zip(names, kinds, types, strict=False))
        texts = [TextPart(load_tokenizer(folder, *pair), pair[1]) for pair in zip(names[2:], encoders, strict=True)]
        # Whatever the folder samples with, the words for its noise are those of this scheduler.
        noise = DDPMScheduler.from_config(read_json(folder / SCHEDULER)).alphas_cumprod
    return DiffusersHost(unet, vae, texts, Schedule(noise, predicted), sizes, folder.resolve().name, device)


def load_tokenizer(folder: Path, part: str, encoder: nn.Module):
    """The tokenizer of a text encoder. Raises InputError where its files are not those of this encoder: without any,
    the package would make do with an empty vocabulary."""
    from transformers import CLIPTokenizer

    path = folder / part.replace("text_encoder", "tokenizer")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): get it again") from None
    if len(tokenizer) != encoder.config.vocab_size:
        raise InputError(
            f"{path} has {len(tokenizer)} tokens, but {part} knows {encoder.config.vocab_size}: get both again"
        )
    return tokenizer


def load_part(folder: Path, part: str, kind: type, dtype: torch.dtype) -> nn.Module:
    """One network. Raises InputError where its files lack anything: the packages would only warn, and
    fill in random numbers."""
    variant = weights(folder, part)[1]
    try:
        network, about = kind.from_pretrained(
            folder / part, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise InputError(f"{folder / part} cannot be read ({first_line(error)}): get it again") from None
    if missing := sorted(about["missing_keys"]):
        raise InputError(f"{folder / part} lacks {len(missing)} tensors, such as {missing[0]}: get it again")
    return network.to(dtype).eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """The packages' notes and progress bars are silent inside: what matters in them is checked and said here."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before, bar = [(log, log.get_verbosity()) for log in (ours, theirs)], theirs.is_progress_bar_enabled()
    try:
        for log, _ in before:
            log.set_verbosity(logging.CRITICAL)
        theirs.disable_progress_bar()
        yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)
        if bar:
            theirs.enable_progress_bar()


def place(tap: str, num_res_blocks: int) -> str:
    """Where diffusers keeps the spatial transformer of one of our blocks. Its names count levels and blocks in them;
    our numbers run through, in the encoder with one for each downsampling as well."""
    kind, _, number = tap.partition(".")
    if kind == "middle_block":
        return "mid_block.attentions.0"
    if kind == "input_blocks":  # number 0 is the first convolution
        level, layer = divmod(int(number) - 1, num_res_blocks + 1)
        return f"down_blocks.{level}.attentions.{layer}"
    level, layer = divmod(int(number), num_res_blocks + 1)
    return f"up_blocks.{level}.attentions.{layer}"


@dataclass(frozen=True)
class TextPart:
    """A tokenizer of transformers and the text encoder that reads its tokens."""

    tokenizer: object
    encoder: nn.Module


class DiffusersHost(TorchHost):
    """diffusers' UNet and VAE and one text encoder (two for SDXL) behind the methods that every host has.

    Latents are scaled, as the UNet reads them. It segments; drawing is diffusers' own business.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        texts: Sequence[TextPart],
        schedule: Schedule,
        sizes: UNetConfig,
        name: str = "the diffusers model",
        device: str = "cpu",
    ):
        self.unet, self.vae, self.texts = unet, vae, tuple(texts)
        self.schedule, self.unet_config, self.name = schedule, sizes, name
        self.device = torch.device(device)
        for network in (unet, vae, *(text.encoder for text in texts)):
            network.to(self.device)

    @property
    def prediction(self) -> str:
        return self.schedule.prediction

    @property
    def pixels(self) -> int:
        """Area of the pictures that the model was trained to draw."""
        side = self.unet.config.sample_size
        return (side * 8 if isinstance(side, int) else native_side(self.unet_config, self.prediction)) ** 2

    @torch.inference_mode()
    def encode(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Images [B, H, W, 3] in 0..1, sides multiples of 8, to scaled latents [B, 4, H/8, W/8]: the posterior's mean
        or, with a seed, a sample of it."""
        pixels = image.to(self.device, torch.float32).permute(0, 3, 1, 2) * 2 - 1
        with self.whole_precision():
            posterior = self.vae.encode(pixels).latent_dist
        z = posterior.mean
        if seed is not None:
            z = z + posterior.std * noise_like(z, seed)
        return z * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w] to images [B, 8h, 8w, 3] in 0..1."""
        z = z.to(self.device, torch.float32)
        with self.whole_precision():
            pixels = self.vae.decode(z / self.vae.config.scaling_factor).sample
        return (pixels.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    def whole_precision(self) -> torch.autocast:
        """The VAE computes in float32 whatever the rest does: that of SDXL overflows in half precision."""
        return torch.autocast(self.device.type, enabled=False)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Text:
        """Texts to contexts [B, 77, D] and, for SDXL, pooled texts; what goes past 77 tokens is cut."""
        two = len(self.texts) == 2
        contexts, pooled, lengths = [], None, ()
        for text in self.texts:
            options = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
            tokens = text.tokenizer(list(texts), **options)
            lengths = tuple((tokens.attention_mask.sum(1) - 2).tolist())  # without start and end
            out = text.encoder(tokens.input_ids.to(self.device), output_hidden_states=two)
            # SDXL reads the layer before the last of both, and pools the second one's last.
            contexts.append(out.hidden_states[-2] if two else out.last_hidden_state)
            pooled = getattr(out, "text_embeds", None) if two else None
        return Text(torch.cat(contexts, dim=-1), pooled, lengths)

    def tokens_cut(self, text: str) -> int:
        """How many tokens at the end of a text `embed` leaves out."""
        return max(0, len(self.texts[0].tokenizer(text, verbose=False).input_ids) - LENGTH)

    def transformer(self, block: str) -> nn.Module:
        """The spatial transformer of one of our blocks."""
        return self.unet.get_submodule(place(block, self.unet_config.num_res_blocks))

    def predict(self, z_t: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return self.unet(z_t, timesteps, text.context, added_cond_kwargs=self.added(text, z_t)).sample

    def added(self, text: Text, z: Tensor) -> dict[str, Tensor] | None:
        """What SDXL is told besides the context: the pooled text, and that the image is whole and of its own size."""
        if text.pooled is None:
            return None
        height, width = (side * 8 for side in z.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width]).to(text.pooled)
        return {"text_embeds": text.pooled, "time_ids": size.expand(len(z), -1)}
