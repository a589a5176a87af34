"""Which backbone a model gets, and what is refused in one sentence: all of it without diffusers."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldznet_core import InputError, cli, load_backbone
from ldznet_core.backbones import diffusers
from ldznet_core.backbones.torch_ldm import LDMBackbone
from ldznet_core.checkpoints import diffusers_folder
from ldznet_core.checkpoints.tokenizer import CLIP, ClipTokenizer, find_folder
from ldznet_core.commands import info
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.unet import SD2, SDXL, UNet, UNetConfig

# How diffusers describes the three, as far as their descriptions differ from its defaults.
FOUR = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
}
THREE = {
    **FOUR,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
}
DESCRIBED = {
    "sd1": {**FOUR, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd2": {**FOUR, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        **THREE, "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 10], "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
SIZES = {"sd1": UNetConfig(), "sd2": SD2, "sdxl": SDXL}


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """No vocabulary of this machine is found by chance."""
    for name in ("LDZNET_TOKENIZER", "COMFYUI_PATH"):
        monkeypatch.delenv(name, raising=False)
    try:
        from huggingface_hub import constants
    except ImportError:
        return
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def refused(model) -> str:
    with pytest.raises(InputError) as error:
        load_backbone(model)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- single files ----


def test_files_and_the_miniature_get_the_backbone_that_needs_nothing_else(made):
    assert isinstance(load_backbone("mini"), LDMBackbone) and load_backbone().name == "mini"
    assert load_backbone(made / "mini.safetensors").name == load_backbone(str(made / "mini.safetensors")).name == "test"


def test_single_files_that_cannot_be_read(made, tmp_path):
    assert "no model file" in refused(tmp_path / "gone.safetensors")
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, pickled)
    assert "pickled" in refused(pickled) and ".safetensors" in refused(pickled)
    (tmp_path / "words.safetensors").write_text("a cat")
    assert "damaged" in refused(tmp_path / "words.safetensors")
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "no Stable Diffusion" in refused(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "name, family",
    [
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.bias", "Stable Diffusion 2.x"),
        ("conditioner.embedders.1.model.ln_final.bias", "SDXL"),
    ],
)
def test_single_files_of_other_families_are_told_where_to_go(tmp_path, name, family):
    save_file({name: torch.zeros(2)}, tmp_path / "big.safetensors")
    sentence = refused(tmp_path / "big.safetensors")
    assert family in sentence and "diffusers folder" in sentence and "ComfyUI" in sentence


# ---- vocabularies ----


@pytest.fixture
def alone(made, tmp_path):
    """The random checkpoint without its vocabulary."""
    (tmp_path / "models").mkdir()
    return shutil.copy(made / "mini.safetensors", tmp_path / "models" / "model.safetensors")


def vocabulary(made, folder):
    return shutil.copytree(made / "tokenizer", folder)


def test_the_nearest_vocabulary_is_taken(made, alone, tmp_path, monkeypatch):
    sentence = refused(alone)
    assert str(tmp_path / "models" / "tokenizer") in sentence and "LDZNET_TOKENIZER" in sentence and CLIP in sentence

    hub = pytest.importorskip("huggingface_hub")
    assert hub  # its cache: a folder a commit, and the commit's name in a file
    cache = tmp_path / "cache" / f"models--{CLIP.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    vocabulary(made, cache / "snapshots" / ("0" * 40))
    assert find_folder(alone) == cache / "snapshots" / ("0" * 40)

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "comfyui"))
    comfy = vocabulary(made, tmp_path / "comfyui" / "comfy" / "sd1_tokenizer")
    assert find_folder(alone) == comfy
    monkeypatch.setenv("LDZNET_TOKENIZER", str(tmp_path / "mine"))
    assert find_folder(alone) == comfy  # nothing is in the folder yet
    assert find_folder(alone) != vocabulary(made, tmp_path / "mine") == find_folder(alone)
    beside = vocabulary(made, tmp_path / "models" / "tokenizer")
    assert find_folder(alone) == beside
    ours, there = (load_backbone(file).embed(["cat"]).context for file in (alone, made / "mini.safetensors"))
    assert torch.equal(ours, there)


def test_a_vocabulary_of_another_model_is_refused(made, alone, tmp_path, monkeypatch):
    tokenizer = ClipTokenizer.from_folder(made / "tokenizer")
    tokenizer.vocabulary["dog</w>"] = len(tokenizer.vocabulary)
    tokenizer.save(tmp_path / "mine")
    monkeypatch.setenv("LDZNET_TOKENIZER", str(tmp_path / "mine"))
    assert f"{len(tokenizer.vocabulary)}" in refused(alone)
    (tmp_path / "mine" / "vocab.json").write_text("{")
    assert "damaged" in refused(alone)


# ---- diffusers folders ----


def write(path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


SMALL = {**FOUR, "block_out_channels": [32, 32, 64, 64], "attention_head_dim": 2, "cross_attention_dim": 32}


@pytest.fixture
def folder(tmp_path):
    """What is read of a diffusers folder before anything of diffusers is needed, in the smallest numbers."""
    folder = tmp_path / "small"
    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    index = {"_class_name": "StableDiffusionPipeline", **{part: ["some", kind] for part, kind in classes.items()}}
    write(folder / "model_index.json", index)
    write(folder / "unet" / "config.json", SMALL)
    write(folder / "scheduler" / "scheduler_config.json", {"beta_schedule": "scaled_linear"})
    unet = UNet(diffusers_folder.unet_config(SMALL))
    save_file(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part).mkdir()
        save_file({"weight": torch.zeros(3)}, folder / part / f"{stem}.fp16.safetensors")
    return folder


@pytest.mark.parametrize("family", SIZES)
def test_descriptions_of_the_real_families(family):
    assert diffusers_folder.unet_config(DESCRIBED[family]) == SIZES[family]
    assert info.name_family(SIZES[family], "said") == family


@pytest.mark.parametrize(
    "sizes, expected",
    [
        (UNetConfig(), ["down_blocks.2.1", "mid_block.0", "up_blocks.1.0", "up_blocks.1.1", "up_blocks.1.2"]),
        (SDXL, ["down_blocks.2.1", "mid_block.0", "up_blocks.0.0", "up_blocks.0.1", "up_blocks.0.2"]),
        (replace(UNetConfig(), num_res_blocks=1), ["down_blocks.2.0", "mid_block.0", "up_blocks.1.0", "up_blocks.1.1"]),
    ],
)
def test_where_diffusers_keeps_what_is_tapped(sizes, expected):
    places = [diffusers.place(tap, sizes.num_res_blocks).replace(".attentions", "") for tap in sizes.taps]
    assert places == expected


def test_without_diffusers_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install diffusers transformers" in refused(folder)


def edit(path, **changes) -> None:
    write(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.parametrize(
    "file, changes, reason",
    [
        ("model_index.json", {"_class_name": "FluxPipeline", "unet": None}, "FluxPipeline"),
        ("model_index.json", {"unet": ["diffusers", "UNetMotionModel"]}, "no such UNet"),
        ("model_index.json", {"text_encoder": [None, None]}, "text_encoder"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "different families"),
        ("unet/config.json", {"cross_attention_dim": 64}, "parameters"),
        ("unet/config.json", {"layers_per_block": 1}, "parameters"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 4}, "not described"),
        ("unet/config.json", {"transformer_layers_per_block": [[1, 1]] * 4}, "not described"),
        ("unet/config.json", {"attention_head_dim": [1, 2, 4, 4]}, "heads"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_folders_of_other_models(folder, file, changes, reason):
    edit(folder / file, **changes)
    assert reason in refused(folder)


def test_an_inpainting_unet(folder):
    edit(folder / "unet" / "config.json", in_channels=9)
    unet = UNet(replace(diffusers_folder.unet_config(SMALL), in_channels=9))
    save_file(unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert "9 channels" in refused(folder)


def test_folders_that_are_not_whole(folder, tmp_path):
    assert "model_index.json" in refused(tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:99])
    assert "damaged" in refused(folder)
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "pickled" in refused(folder)
    for file in ("scheduler/scheduler_config.json", "unet/config.json", "model_index.json"):
        weights.write_bytes(whole)
        (folder / file).write_text("[")
        assert file in refused(folder)


def test_weights_in_several_files_or_half_precision(folder):
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    count = diffusers_folder.parameters(folder, "unet")
    tensors = list(load_file(whole).items())
    for number, some in enumerate((tensors[::2], tensors[1::2]), start=1):
        save_file(dict(some), whole.with_stem(f"{whole.stem}-0000{number}-of-00002"))
    whole.unlink()
    assert diffusers_folder.parameters(folder, "unet") == count and diffusers_folder.weights(folder, "unet")[1] is None
    assert diffusers_folder.weights(folder, "vae")[1] == "fp16"


# ---- the command line ----


def test_info_of_a_folder(folder, capsys):
    assert cli.main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "model" and facts["prediction"] == "eps" and len(facts["taps"]) == 5
    assert set(facts["parts"]) == {"unet", "vae", "text_encoder"} and facts["parts"]["vae"] == 3
    assert facts["parameters"] == sum(facts["parts"].values()) and facts["bytes"] > 4 * facts["parts"]["unet"]
    assert cli.main(["info", str(folder / "unet")]) == 2


def test_info_says_what_fits(capsys):
    assert cli.main(["info", "mini", "--json"]) == 0
    model, *decoders = map(json.loads, capsys.readouterr().out.splitlines())
    assert model["family"] == "miniature" and model["fits"].startswith("decoders for the bundled miniature")
    assert all(d["family"] == "miniature" and "context width 96" in d["fits"] for d in decoders)


@pytest.mark.parametrize(
    "family, fits",
    [
        ("sd1", "SD 1.x checkpoints (context width 768, prediction v)"),
        ("sd2", "SD 2.x checkpoints (context width 1024, prediction v)"),
        ("sdxl", "SDXL checkpoints (context width 2048, prediction v)"),
    ],
)
def test_info_of_decoders_of_the_real_families(family, fits, tmp_path, capsys):
    parts = {"config": DecoderConfig("ldznet", SIZES[family]).as_dict(), "info": {"prediction": "v"}, "taps": ["a"]}
    about = {name: json.dumps(value) for name, value in parts.items()}
    save_file({"weight": torch.zeros(2)}, tmp_path / "decoder.safetensors", {"kind": "ldznet", **about})
    assert cli.main(["info", str(tmp_path / "decoder.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["fits"]) == (family, fits)


def test_info_of_the_authors_checkpoint(tmp_path, capsys):
    few = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (0, 1)}
    sizes = UNetConfig(model_channels=32, context_dim=16, **few)
    decoder = MaskDecoder(DecoderConfig("ldznet", sizes, grid=8))
    tensors = {f"model.diffusion_model.{name}": value.detach() for name, value in decoder.named_parameters()}
    torch.save({"state_dict": tensors}, tmp_path / "authors.ckpt")
    assert cli.main(["info", str(tmp_path / "authors.ckpt"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "ldznet" and facts["family"] == "sd1" and facts["fits"].startswith("SD 1.x")
    assert facts["parameters"] == sum(p.numel() for p in decoder.parameters()) and facts["taps"] == list(decoder.taps)
