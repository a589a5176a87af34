"""The WebUI that we run in: its loaded checkpoint, its queue, its memory, its folder of decoders."""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ldznet_core.backbones.step_recorder import Wanted
from ldznet_core.backbones.webui import WebUIBackbone
from ldznet_core.backbones.webui_capture import A1111Rows, Capture, Rows, forge_rows
from ldznet_core.decoders.base import Decoder
from ldznet_core.decoders.files import load_decoder
from ldznet_core.errors import InputError
from ldznet_core.imaging import chips

FOLDER = "ldznet"
BUNDLED = {f"miniature: {kind} (bundled)": kind for kind in ("light", "ldznet", "znet")}
NO_MODEL = "no checkpoint is loaded: choose one at the top of the page and wait until it is there"
OLDER = "masks cannot be made in Forge Classic and reForge: use AUTOMATIC1111's WebUI, Forge or Forge Neo"
Result = TypeVar("Result")

# The rows of AUTOMATIC1111's sampler that is running under our eyes: its callback has no other way to find them.
_watched: list[A1111Rows] = []


def there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def is_forge() -> bool:
    """Whether this is Forge or Forge Neo, whose networks live in a package of their own."""
    return there("modules_forge") and there("backend")


def backbone() -> WebUIBackbone:
    """The loaded checkpoint. Raises InputError where there is none, and in WebUIs that keep it in another way."""
    from modules import shared

    if is_forge():
        from ldznet_core.backbones.webui_forge import ForgeBackbone

        if not hasattr(shared.sd_model, "forge_objects"):
            raise InputError(NO_MODEL)
        return ForgeBackbone(shared.sd_model)
    if there("modules_forge"):
        raise InputError(OLDER)
    from ldznet_core.backbones.webui_a1111 import A1111Backbone

    if shared.sd_model is None:
        raise InputError(NO_MODEL)
    return A1111Backbone(shared.sd_model)


def load_checkpoint() -> None:
    """Load the checkpoint that is chosen, which Forge puts off until the next picture. Never in the middle of one."""
    if not is_forge():
        return
    from modules import sd_models

    if sd_models.model_data.forge_loading_parameters.get("checkpoint_info") is None:
        raise InputError(NO_MODEL)
    sd_models.forge_model_reload()


def watch(backbone: WebUIBackbone, owner: object, wanted: Wanted | None, queries: bool) -> Capture:
    """A capture of the sampling that is about to begin for `owner`."""
    rows: Rows = forge_rows if is_forge() else A1111Rows()
    _watched[:] = [] if is_forge() else [rows]
    return Capture(backbone.network, backbone.unet_config, rows, wanted, queries, owner)


def bring_font() -> None:
    """AUTOMATIC1111's WebUI pins a Pillow without a font that scales, and brings a font file of its own."""
    from modules import paths_internal

    chips.older_font = getattr(paths_internal, "roboto_ttf_file", chips.older_font)


def on_cfg_denoiser(params) -> None:
    """AUTOMATIC1111 begins a step of its sampler."""
    for rows in _watched:
        rows.begin_step(params)


def unwatch() -> None:
    """The sampling has ended."""
    _watched.clear()


def exclusive(work: Callable[[], Result]) -> Result:
    """The result of `work` where the WebUI runs its models: after all that is queued, with the chosen checkpoint
    loaded, and in Forge on the main thread. Raises what it raises, and InputError where there is no checkpoint."""
    from modules.call_queue import queue_lock

    results: list[Result] = []
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            load_checkpoint()
            results.append(work())
        except Exception as error:  # it is raised below, on the thread of the caller
            errors.append(error)

    with queue_lock:
        if is_forge():
            from modules_forge import main_thread

            main_thread.run_and_wait_result(attempt)
        else:
            attempt()
    if errors:
        raise errors[0]
    return results[0]


def free_memory() -> None:
    """Give back what a pass of ours has left in the memory of the device."""
    if is_forge():
        from backend import memory_management

        memory_management.soft_empty_cache()
        return
    from modules import devices, lowvram, shared

    if shared.sd_model is not None and lowvram.is_enabled(shared.sd_model):
        lowvram.send_everything_to_cpu()
    devices.torch_gc()


def decoders_folder() -> Path:
    """models/ldznet, in the data folder of the WebUI."""
    from modules import paths

    return Path(paths.models_path) / FOLDER


def decoder_names() -> list[str]:
    """The decoder files in models/ldznet, and the bundled ones, which fit the miniature only."""
    folder = decoders_folder()
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".ckpt")]
    return [*(path.relative_to(folder).as_posix() for path in files), *BUNDLED]


def decoder(name: str) -> Decoder:
    """The decoder of that name, kept until another is asked for or its file changes. Raises InputError where there is
    none."""
    if name in BUNDLED:
        return _load("mini", BUNDLED[name], 0)
    if name not in decoder_names():
        raise InputError(f"no decoder {name!r} in {decoders_folder()}: put its file there, or choose another method")
    path = decoders_folder() / name
    return _load(str(path), None, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _load(path: str, kind: str | None, changed: int) -> Decoder:
    return load_decoder(path) if kind is None else load_decoder(path, kind)
