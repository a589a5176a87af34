"""The repository as a ComfyUI extension: how it is loaded, installed and described."""

import asyncio
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from engine import CHECKOUT, ROOT, load_pack, node_classes

IDS = {
    f"LDZNet{name}"
    for name in ("LoadMini", "LoadDecoder", "Segment", "Capture", "SegmentCaptured", "AttentionMask", "LabelMap",
                 "RefineMask", "MasksToSEGS", "ConditioningSetWords")
}


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("ldznet_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def custom_nodes(tmp_path):
    """Where the extension would lie in a ComfyUI folder."""
    here = tmp_path / "ComfyUI" / "custom_nodes" / "ldznet-masks"
    here.mkdir(parents=True)
    return here


def test_every_node_is_there_and_says_what_its_sockets_are(pack_nodes):
    assert set(pack_nodes) == IDS
    for node in pack_nodes.values():
        schema = node.define_schema()
        assert schema.category == "LD-ZNet" and schema.display_name and schema.description
        assert all(given.tooltip for given in schema.inputs)
        assert schema.outputs


@pytest.mark.skipif(not CHECKOUT, reason="COMFYUI_PATH is unset: ComfyUI's own loader is not at hand")
def test_comfyuis_own_loader_takes_it(engine):
    assert asyncio.run(engine.nodes.load_custom_node(str(ROOT), set(), module_parent="custom_nodes"))
    assert set(engine.nodes.NODE_CLASS_MAPPINGS) >= IDS


def test_what_the_registry_packs_is_enough_for_the_nodes(engine, tmp_path):
    """`.comfyignore` names files and folders by their paths from the root, and nothing else."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"/[\w.]+/?", line) for line in left_out)
    names = {line.strip("/") for line in left_out}
    assert {"tests", "benchmarks", "docs"} <= names
    for path in ROOT.iterdir():
        if path.name not in names:
            (tmp_path / path.name).symlink_to(path)
    assert set(node_classes(load_pack(tmp_path))) == IDS


def test_decoders_are_looked_for_where_the_user_says(engine, pack, pack_nodes, made, tmp_path, core):
    paths = engine.folder_paths
    extra = tmp_path / "elsewhere"
    extra.mkdir()
    (extra / "mine.safetensors").write_bytes((made / "znet.safetensors").read_bytes())
    (extra / "readme.txt").write_text("no decoder")
    before = paths.folder_names_and_paths["ldznet"]
    try:
        # extra_model_paths.yaml is read before extensions are loaded
        paths.folder_names_and_paths["ldznet"] = ([str(extra)], set())
        paths.filename_list_cache.clear()  # it is believed for half a second
        asyncio.run(pack.comfy_entrypoint())
        assert [Path(p) for p in paths.get_folder_paths("ldznet")] == [extra, Path(paths.models_dir) / "ldznet"]
        loader = pack_nodes["LDZNetLoadDecoder"]
        options = loader.define_schema().inputs[0].options
        bundled = [f"miniature: {kind} (bundled)" for kind in ("light", "ldznet", "znet")]
        assert options == ["mine.safetensors", *bundled]
        decoder = loader.execute("mine.safetensors").args[0].model
        assert decoder.kind == "znet"
        before_it_went = [p.clone() for p in decoder.parameters()]
        first = loader.fingerprint_inputs("mine.safetensors")
        (extra / "mine.safetensors").write_bytes(b"not a decoder any more")
        assert loader.fingerprint_inputs("mine.safetensors") != first
        assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), before_it_went, strict=True))
        with pytest.raises(core("errors").InputError, match="mine.safetensors is damaged or no safetensors file"):
            loader.execute("mine.safetensors")
    finally:
        paths.folder_names_and_paths["ldznet"] = before
        paths.filename_list_cache.clear()


def test_the_miniature_is_for_the_device_that_comfyui_chose(engine, mini):
    assert mini.model.load_device == engine.model_management.get_torch_device() == torch.device("cpu")


def test_it_asks_for_no_package_that_comfyui_does_not_bring():
    asked = {line.strip().lower() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    comfyui = {"torch", "numpy", "pillow", "safetensors", "einops", "transformers", "tqdm", "pyyaml", "scipy", "psutil"}
    assert {line for line in asked if line and not line.startswith("#")} <= comfyui


def test_nodes_import_only_what_comfyui_has_at_hand():
    theirs = {"comfy", "comfy_api", "folder_paths", "protocol"}
    allowed = {"torch", "numpy", "PIL", "safetensors", *theirs, *sys.stdlib_module_names}
    backbones = [*(ROOT / "ldznet_core" / "backbones").glob("comfy*.py")]
    assert backbones
    for file in [ROOT / "__init__.py", *(ROOT / "nodes").glob("*.py"), *backbones]:
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"\s*(?:from|import) (\w+)", line):
                assert found[1] in allowed, f"{file.name}: {line}"


def test_only_backbones_know_comfyui():
    theirs = re.compile(r"^\s*(from|import) (comfy|folder_paths|nodes)\b", re.M)
    for file in (ROOT / "ldznet_core").rglob("*.py"):
        if not file.name.startswith("comfy"):
            assert not theirs.search(file.read_text(encoding="utf-8")), file.name


def test_installing_makes_the_folder_and_may_be_repeated(install, custom_nodes, capsys, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for _ in range(2):
        assert install.main(custom_nodes) == 0
    folder = custom_nodes.parents[1] / "models" / "ldznet"
    assert folder.is_dir() and str(folder) in capsys.readouterr().out


def test_installing_in_a_webui_makes_the_folder_there(install, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    here = tmp_path / "webui" / "extensions" / "ldznet-masks"
    here.mkdir(parents=True)
    assert install.main(here) == 0
    assert (tmp_path / "webui" / "models" / "ldznet").is_dir() and "the tab Words to masks" in capsys.readouterr().out


def test_installing_says_when_the_weights_are_not_whole(install, custom_nodes, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    (tmp_path / "checksums.json").write_text(json.dumps({"a.safetensors": "00", "b.safetensors": "00"}))
    (tmp_path / "a.safetensors").write_bytes(b"half a fi")
    assert install.main(custom_nodes, tmp_path) == 1
    assert "a.safetensors, b.safetensors did not arrive whole" in capsys.readouterr().out


def test_installing_elsewhere_than_in_comfyui_makes_nothing(install, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert install.main(tmp_path / "somewhere" / "ldznet-masks") == 0
    assert not (tmp_path / "models").exists() and "no models/ldznet was made" in capsys.readouterr().out


def test_the_checksums_are_those_of_the_bundled_weights(install):
    listed = json.loads((install.WEIGHTS / "checksums.json").read_text())
    assert set(listed) == {path.name for path in install.WEIGHTS.glob("*.safetensors")} and install.damaged() == []


def test_every_workflow_has_a_picture_and_uses_nodes_that_exist():
    for file in sorted((ROOT / "example_workflows").glob("*.json")):
        workflow = json.loads(file.read_text(encoding="utf-8"))
        ours = {node["type"] for node in workflow["nodes"] if node["type"].startswith("LDZNet")}
        assert ours and ours <= IDS
        assert file.with_suffix(".jpg").is_file(), f"{file.name} has no picture of its name"
        assert file.with_suffix(".jpg").stat().st_size < 150_000


def test_the_registry_gets_what_it_wants():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^name = "(?!.*comfyui)[a-z][a-z-]+"$', text, re.M | re.I)
    assert re.search(r'^version = "\d+\.\d+\.\d+"$', text, re.M) and "[project.urls]" in text
    for key in ("PublisherId", "DisplayName", "requires-comfyui"):
        assert f"{key} =" in text.split("[tool.comfy]")[1]
