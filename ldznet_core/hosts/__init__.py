"""One file a host: whoever owns the VAE, the text encoder and the UNet. A host encodes, embeds, extracts, captures.

`load_host` finds the one that a file or folder needs; nothing of any of them is imported before.
"""

from pathlib import Path

from ..errors import InputError
from ..weights import BUNDLED

# Text encoders that only diffusers and ComfyUI hold, by the names that their tensors begin with.
OTHER_TEXTS = {"conditioner.embedders.": "SDXL", "cond_stage_model.model.": "Stable Diffusion 2.x"}


def load_host(model: str | Path = "mini", device: str = "cpu", dtype: str = "float32"):
    """The host of 'mini', of a diffusers folder (SD 1.x, 2.x, SDXL), or of a .safetensors file of SD 1.x.

    `dtype` is that of the weights; with one of 16 bits, run under `torch.autocast` of the same.
    Raises InputError, in one line that says what to do, for anything else and where a part is missing or damaged.
    """
    path = BUNDLED / "mini.safetensors" if str(model) == "mini" else Path(model)
    if path.is_dir():
        from .diffusers import load

        return load(path, device, dtype)
    return load_checkpoint(path, device, dtype)


def load_checkpoint(path: Path, device: str, dtype: str):
    """An `LDMHost` of a single file, with CLIP's vocabulary from wherever it is on this machine."""
    import torch

    from ..ldm import read
    from ..tokenizer import ClipTokenizer, find_folder
    from .ldm import LDMHost

    check_checkpoint(path)
    folder = find_folder(path)
    try:
        tokenizer = ClipTokenizer.from_folder(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the vocabulary in {folder}, needed by {path}, is damaged ({error}): get it again") from None
    model = read(path, tokenizer, getattr(torch, dtype))
    theirs, ours = model.text.config.vocabulary, len(tokenizer.vocabulary)
    if theirs != ours:
        raise InputError(f"{path} knows {theirs} tokens, but the vocabulary in {folder} has {ours}: give it its own")
    return LDMHost(model, device)


def check_checkpoint(path: Path) -> None:
    """Raises InputError for a file that no host of ours reads, before anything large is read of it."""
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
