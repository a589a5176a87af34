"""A Stable Diffusion model in diffusers' layout, a folder a part, on diffusers' and transformers' own classes.

Reads SD 1.x, 2.x and SDXL from this machine alone, float32, safetensors only. `read_unet_config`, `prediction` and
`parameters` read a folder's words and file heads, and need neither package.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.diffusers_folder import SCHEDULER, WORKS, parts, prediction, read_json, read_unet_config, weights
from ..checkpoints.diffusers_names import ldm_name
from ..checkpoints.tokenizer import LENGTH
from ..errors import InputError, first_line
from ..networks.schedule import Schedule, noise_like
from ..networks.unet import UNet, UNetConfig, native_side
from .recording import Text
from .sampling import Sampling

# ---- what a folder says of itself ----------------------------------------------------------------


# ---- the backbone --------------------------------------------------------------------------------


def load(folder: Path, device: str = "cpu", dtype: str = "float32") -> "DiffusersBackbone":
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
    return DiffusersBackbone(unet, vae, texts, Schedule(noise, predicted), sizes, folder.resolve().name, device)


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


class DiffusersBackbone(Sampling):
    """diffusers' UNet and VAE and one text encoder (two for SDXL) as a backbone.

    Latents are scaled, as the UNet reads them.
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
        for network in self.networks.values():
            network.to(self.device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        encoders = {f"text {number}": text.encoder for number, text in enumerate(self.texts, start=1)}
        return {"vae": self.vae, **encoders, "unet": self.unet}

    @property
    def scale(self) -> float:
        return self.vae.config.scaling_factor

    @property
    def prediction(self) -> str:
        return self.schedule.prediction

    @property
    def native_area(self) -> int:
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

    def encode_texts(self, texts: Sequence[str]) -> Text:
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

    def ldm_unet(self) -> UNet:
        """The same UNet under LDM's names; it shares the weights."""
        weights = self.unet.state_dict()
        attention = frozenset(name.partition(".attentions.")[0] for name in weights if ".attentions." in name)
        with torch.device("meta"):
            unet = UNet(self.unet_config)
        blocks = self.unet_config.num_res_blocks
        unet.load_state_dict({ldm_name(k, blocks, attention): v for k, v in weights.items()}, assign=True)
        return unet

    def predict(self, z_t: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return self.unet(z_t, timesteps, text.context, added_cond_kwargs=self.added(text, z_t)).sample

    def added(self, text: Text, z: Tensor) -> dict[str, Tensor] | None:
        """What SDXL is told besides the context: the pooled text, and that the image is whole and of its own size."""
        if text.pooled is None:
            return None
        height, width = (side * 8 for side in z.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width]).to(text.pooled)
        return {"text_embeds": text.pooled, "time_ids": size.expand(len(z), -1)}
