"""Imports run downward: each wing of the core knows only the wings below it."""

import ast
from pathlib import Path

import pytest

import ldznet_core

CORE = Path(__file__).parents[1] / "ldznet_core"
# Lowest first; wings on one line do not know each other.
LEVELS = (
    ("errors",),
    ("networks", "imaging"),
    ("checkpoints", "data"),
    ("decoders", "backbones"),
    ("segment",),
    ("training", "evaluation"),
    ("mini",),
    ("commands",),
    ("cli",),
)
LEVEL = {wing: number for number, wings in enumerate(LEVELS) for wing in wings}
MODULES = sorted(CORE.rglob("*.py"))


def wing_of(module: Path) -> str:
    return module.relative_to(CORE).with_suffix("").parts[0]


def imported_wings(module: Path) -> set[str]:
    """The wings of the core that a module imports from, at its top or inside functions."""
    package = module.relative_to(CORE).parts[:-1]
    wings = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            path = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [part for part in path if part][:1] or [alias.name for alias in node.names]
            wings.update(names)
    return wings


def test_the_walk_sees_imports():
    assert {"errors", "imaging"} <= imported_wings(CORE / "commands" / "segment.py")
    assert all(wing in LEVEL for wing in map(wing_of, MODULES) if not wing.startswith("__"))


@pytest.mark.parametrize("module", [m for m in MODULES if not m.name.startswith("__main")], ids=lambda m: m.stem)
def test_no_module_imports_from_above_or_beside(module):
    wing = wing_of(module)
    if wing == "__init__":
        return
    wrong = [other for other in imported_wings(module) if other != wing and LEVEL[other] >= LEVEL[wing]]
    assert not wrong, f"{module.relative_to(CORE)} imports from {wrong}"


def test_only_evaluation_and_the_miniatures_build_import_scipy():
    """It is an extra: nodes and the commands that make masks run without it."""
    root = CORE.parent
    modules = [*MODULES, *(root / "nodes").rglob("*.py"), root / "__init__.py"]
    users = set()
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "scipy" for name in names):
                users.add(module.relative_to(root).parts[:2])
    assert users == {("ldznet_core", "evaluation"), ("ldznet_core", "mini")}


def test_every_public_name_is_there_and_the_old_one_means_the_new_one():
    found = {name: getattr(ldznet_core, name) for name in ldznet_core.__all__}
    assert found.keys() >= {"load_backbone", "load_host", "load_decoder", "Segmenter", "InputError"}
    assert found["load_host"] is found["load_backbone"]
    assert all(value.__name__ == name for name, value in found.items() if name != "load_host")
