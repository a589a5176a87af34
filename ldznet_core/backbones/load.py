"""Opens the backbone that a file or a folder needs. Only that one is imported."""

from pathlib import Path

from ..checkpoints.bundled import BUNDLED
from ..errors import InputError

# Text encoders that only diffusers and ComfyUI hold, by the names that their tensors begin with.
OTHER_TEXTS = {"conditioner.embedders.": "SDXL", "cond_stage_model.model.": "Stable Diffusion 2.x"}


TRANSFORMER = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"  # a tensor of SD 3 and its kin
NAMED = ("mini", "mini-dit")  # models of `BUNDLED` by the names that people give


def load_backbone(model: str | Path = "mini", device: str = "cpu", dtype: str = "float32"):
    """The backbone of 'mini' or 'mini-dit', of a diffusers folder (SD 1.x, 2.x, SDXL), or of a .safetensors file (SD
    1.x, a miniature transformer).

    `dtype` is that of the weights; with one of 16 bits, run under `torch.autocast` of the same.
    Raises InputError, in one line that says what to do, for anything else and where a part is missing or damaged.
    """
    path = BUNDLED / f"{model}.safetensors" if str(model) in NAMED else Path(model)
    if path.is_dir():
        from .diffusers import load

        return load(path, device, dtype)
    return load_checkpoint(path, device, dtype)


def load_checkpoint(path: Path, device: str, dtype: str):
    """The backbone of a single file."""
    import torch

    if TRANSFORMER in check_checkpoint(path):
        return load_transformer(path, device, dtype)
    from .torch_ldm import LDMBackbone

    return LDMBackbone(read_checkpoint(path, getattr(torch, dtype)), device)


def load_transformer(path: Path, device: str, dtype: str):
    """A `TransformerBackbone` of a file, with VAE and text encoder of the mini.safetensors beside it, or else of the
    bundled one."""
    import torch

    from ..checkpoints.mmdit import read, read_about
    from .torch_dit import TransformerBackbone

    read_about(path)  # refused before the rest is read
    beside = path.parent / "mini.safetensors"
    shared = beside if beside.is_file() else BUNDLED / "mini.safetensors"
    check_checkpoint(shared)
    model = read(path, read_checkpoint(shared, getattr(torch, dtype)), getattr(torch, dtype))
    return TransformerBackbone(model, device)


def read_checkpoint(path: Path, dtype):
    """The `LatentDiffusion` of a single file, with CLIP's vocabulary from wherever it is on this machine."""
    from ..checkpoints.ldm import read
    from ..checkpoints.tokenizer import ClipTokenizer, find_folder

    folder = find_folder(path)
    try:
        tokenizer = ClipTokenizer.from_folder(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the vocabulary in {folder}, needed by {path}, is damaged ({error}): get it again") from None
    model = read(path, tokenizer, dtype)
    theirs, ours = model.text.config.vocabulary, len(tokenizer.vocabulary)
    if theirs != ours:
        raise InputError(f"{path} knows {theirs} tokens, but the vocabulary in {folder} has {ours}: give it its own")
    return model


def check_checkpoint(path: Path) -> list[str]:
    """The names of a file's tensors. Raises InputError for one that no backbone here reads, before anything large is
    read of it."""
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"no model file {path}: give 'mini', a .safetensors checkpoint or a diffusers folder")
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(f"{path} is a pickled checkpoint: get the model as .safetensors or as a diffusers folder")
    try:
        with safe_open(path, "pt") as f:
            names = list(f.keys())
    except Exception as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}): get it again") from None
    for prefix, family in OTHER_TEXTS.items():
        if any(name.startswith(prefix) for name in names):
            raise InputError(
                f"{path} is a single file of {family}, whose text encoder is not read here: save it as a diffusers "
                "folder (diffusers: from_single_file, then save_pretrained), or use it in ComfyUI"
            )
    return names
