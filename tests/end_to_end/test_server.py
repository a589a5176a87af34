"""What a ComfyUI server offers of this pack, and the example workflows from POST to saved pictures."""

import json
from pathlib import Path

import pytest
import torch
from client import EXAMPLES, PACK, TEMPLATES, Server, node, to_api
from test_caching import picture

from ldznet_core.checkpoints import ldm, tokenizer
from ldznet_core.decoders.files import DecoderInfo, write_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.schedule import Schedule
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig

NODES = {
    "LDZNetLoadMini", "LDZNetLoadDecoder", "LDZNetSegment", "LDZNetCapture", "LDZNetSegmentCaptured", "LDZNetLabelMap",
    "LDZNetRefineMask", "LDZNetAttentionMask", "LDZNetMasksToSEGS", "LDZNetConditioningSetWords",
}
OTHERS = {"regions_by_words"}  # test_regions.py runs it
MINIATURE = [p for p in EXAMPLES if "CheckpointLoaderSimple" not in p.read_text() and p.stem not in OTHERS]
SD15 = [p for p in EXAMPLES if p not in MINIATURE and p.stem not in OTHERS]
# Width and height of the pictures that a workflow saves, by their prefix; those of SD 1.5 made smaller.
SIZES = {
    "miniature_generate_mask_inpaint_composite": {
        "LD-ZNet/drawn": (256, 256), "LD-ZNet/inpainted": (256, 256), "LD-ZNet/composite": (256, 256)
    },
    "several_phrases_label_map": {"LD-ZNet/labels": (512, 256 + 37), "LD-ZNet/overlay": (512, 256)},
    "1_mask_by_words": {},
    "any_checkpoint_words_to_mask_no_decoder": {"LD-ZNet/inpainted": (128, 128)},
    "flux_words_to_mask_and_inpaint": {"LD-ZNet/inpainted": (128, 128)},
    "sd15_image_to_mask_to_inpaint": {"LD-ZNet/inpainted": (128, 128)},
    "sd15_mask_while_sampling_detail": {"LD-ZNet/detailed": (192, 192)},
}
LOADED = {"load": node("LDZNetLoadMini"), "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1)}


def graph_of(path: Path, server: Server) -> dict:
    return to_api(json.loads(path.read_text(encoding="utf-8")), server.json("/object_info"))


def check_pictures(server: Server, graph: dict, run, name: str) -> None:
    """The workflow saved its pictures, in their sizes and with something on them; our nodes showed theirs."""
    sizes = SIZES[name]
    savers = {n["inputs"]["filename_prefix"]: id for id, n in graph.items() if n["class_type"] == "SaveImage"}
    assert savers.keys() == sizes.keys()
    for prefix, (width, height) in sizes.items():
        (saved,) = server.pictures(run, savers[prefix])
        assert saved.shape == (height, width, 3), prefix
        assert saved.std() > 1, prefix
    ours = [id for id, n in graph.items() if n["class_type"].startswith(("LDZNetSegment", "LDZNetAttention"))]
    assert ours
    for id in ours:
        overlay, *masks = server.pictures(run, id)
        assert overlay.std() > 1 and masks and all(mask.std() > 1 for mask in masks)


def is_link(node: dict, field: str) -> bool:
    return isinstance(node["inputs"][field], list)


def segment(**inputs) -> dict:
    """A prompt with one Segment on the miniature: text "cat" and nothing to look at, unless given."""
    defaults = {
        "model": ("load", 0), "clip": ("load", 1), "decoder": ("load", 3), "text": "cat",
        "timestep": 400, "seed": 0, "threshold": 0.5,
    }
    return {**LOADED, "segment": node("LDZNetSegment", **{**defaults, **inputs})}


def attention(text: str = "cat", **inputs) -> dict:
    """A Segment without Decoder that keeps every mask."""
    settings = {"method": "attention", "timestep": -1, "seed": 0, "threshold": 0.5, "spread": "auto", "presence": 0.0}
    return node("LDZNetAttentionMask", clip=("load", 1), text=text, **settings, **inputs)


def test_all_nodes_are_listed_with_a_tooltip_on_every_input(server):
    listed = {name: d for name, d in server.json("/object_info").items() if d["python_module"].endswith(PACK)}
    assert listed.keys() == NODES
    for name, definition in listed.items():
        assert definition["description"], name
        for group in ("required", "optional"):
            for field, (_, options) in definition["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{field}"


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_node_has_a_help_page(server, name):
    page = server.get(f"/extensions/{PACK}/docs/{name}.md").decode()
    assert page.startswith("#") and len(page) > 200


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_nodes_are_translated(server, language):
    told, listed = server.json("/i18n")[language]["nodeDefs"], server.json("/object_info")
    for name in NODES:
        assert told[name]["display_name"], name
        fields = {f for group in ("required", "optional") for f in listed[name]["input"].get(group, {})}
        assert told[name].get("inputs", {}).keys() == fields, name


def test_example_workflows_are_templates(server):
    names = {path.stem for path in TEMPLATES}
    assert names and set(server.json("/workflow_templates")[PACK]) == names
    for path in TEMPLATES:
        served = server.get(f"/api/workflow_templates/{PACK}/{path.name}")
        assert json.loads(served) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MINIATURE, ids=lambda path: path.stem)
def test_example_workflow_runs_on_the_miniature(server, path):
    graph = graph_of(path, server)
    run = server.run(graph)
    print(f"{path.stem}: {run.seconds:.1f} s from POST to saved pictures")
    check_pictures(server, graph, run, path.stem)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"text": " \n| ", "latent": ("empty", 0)}, "no phrase was given: say what to find"),
        ({}, "there is no image to segment: connect an image or a latent"),
        ({"image": ("picture", 0)}, "an image needs the VAE"),
        ({"latent": ("wide", 0)}, "the latent is of shape [1, 16, 16, 16]"),
        ({"latent": ("wide", 0), "image": ("picture", 0), "vae": ("load", 2)}, "the latent is of shape"),
    ],
)
def test_a_wrong_input_is_explained(server, inputs, message):
    others = {
        "picture": node("LoadImage", image="park.png"),
        "wide": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
    }
    assert message in server.fails({**segment(**inputs), **others})


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"latent": ("empty", 0)}, "connect a model, or a capture with its latent"),
        ({"model": ("load", 0)}, "connect an image or a latent"),
        ({"capture": ("capture", 1), "image": ("park", 0)}, "connect the LATENT of its sampler"),
        ({"model": ("load", 0), "image": ("park", 0)}, "an image needs the VAE"),
    ],
)
def test_what_a_node_without_decoder_lacks_is_explained(server, inputs, message):
    others = {"park": node("LoadImage", image="park.png"), "capture": node("LDZNetCapture", model=("load", 0))}
    assert message in server.fails({**LOADED, **others, "found": attention(**inputs)})


def test_a_drawing_gets_refined_masks_without_a_decoder(server):
    graph = {
        **picture(),
        "found": attention("pumpkin | sky", capture=("capture", 1), latent=("sampler", 0), image=("decode", 0)),
        "refined": node("LDZNetRefineMask", mask=("found", 0), image=("decode", 0), reach=("found", 3)),
        "grey": node("MaskToImage", mask=("refined", 0)),
        "masks": node("SaveImage", images=("grey", 0), filename_prefix="masks"),
    }
    server.new_log()
    run = server.run(graph)
    log = server.new_log()
    assert "presence: pumpkin " in log and "extra pass" not in log
    drawn, saved = server.pictures(run, "drawn")[0], server.pictures(run, "masks")
    assert [mask.shape for mask in saved] == [drawn.shape] * 2
    assert len(server.pictures(run, "found")) == 3 and len(server.pictures(run, "refined")) == 2
    inside = saved[0][..., 0] > 127
    warm = drawn[..., 0].astype(int) - drawn[..., 2]  # a pumpkin is not blue, its ground is
    assert 0.02 < inside.mean() < 0.6 and warm[inside].mean() > warm[~inside].mean() + 50


@pytest.mark.parametrize("name", ["1_mask_by_words", "any_checkpoint_words_to_mask_no_decoder"])
def test_examples_without_a_decoder_run_on_the_miniature_as_their_notes_say(server, name):
    (path,) = (path for path in EXAMPLES if path.stem == name)
    graph = graph_of(path, server)
    for n in graph.values():
        if n["class_type"] == "CheckpointLoaderSimple":
            n |= node("LDZNetLoadMini")
        given = {"image": "park.png", "width": 128, "height": 128, "text": "panda", "steps": 4}
        n["inputs"] |= {key: value for key, value in given.items() if key in n["inputs"] and not is_link(n, key)}
    check_pictures(server, graph, server.run(graph), path.stem)


def test_a_label_map_of_other_phrases_is_explained(server):
    graph = segment(latent=("empty", 0), text="cat | dog | panda")
    graph["labels"] = node("LDZNetLabelMap", masks=("segment", 0), text="cat | dog", threshold=0.5)
    assert "3 masks are not those of 2 phrases" in server.fails(graph)


@pytest.fixture(scope="module")
def sd15(base):
    """A checkpoint in SD 1.5's layout and a decoder for it, both of random weights; their file names.

    The UNet is narrower than SD 1.5's where ComfyUI does not look, so that it runs in seconds.
    """
    torch.manual_seed(0)
    unet = UNetConfig(channel_mult=(1, 1, 1, 1))
    model = ldm.LatentDiffusion(
        vae=Autoencoder(AutoencoderConfig()),
        text=ClipText(TextConfig()),
        unet=UNet(unet),
        tokenizer=tokenizer.learn(["cat"]),
        schedule=Schedule.stable_diffusion(),
        about={},
    )
    decoder = MaskDecoder(DecoderConfig("ldznet", unet, grid=16))
    with torch.no_grad():  # masks that go from almost 0 to almost 1
        decoder.out[2].weight *= 3
        decoder.final[-1].weight *= 3
    files = [base / "models/checkpoints/random.safetensors", base / "models/ldznet/random.safetensors"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
    ldm.write(model, files[0])
    write_decoder(decoder, DecoderInfo(family="sd15", prediction="eps", pixels=128 * 128), files[1])
    yield {"ckpt_name": files[0].name, "decoder_name": files[1].name}
    for file in files:
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("path", SD15, ids=lambda path: path.stem)
def test_example_workflow_runs_on_an_sd15_checkpoint(server, sd15, path):
    # Of random weights no phrase is present.
    smaller = {**sd15, "image": "park.png", "width": 128, "height": 128, "steps": 4, "presence": 0.0}
    graph = graph_of(path, server)
    for n in graph.values():
        n["inputs"] |= {key: value for key, value in smaller.items() if key in n["inputs"] and not is_link(n, key)}
    run = server.run(graph, timeout=600)
    print(f"{path.stem}: {run.seconds:.1f} s from POST to saved pictures")
    check_pictures(server, graph, run, path.stem)
    assert "extra pass" not in server.new_log()


@pytest.mark.slow
def test_a_decoder_for_another_model_is_refused_by_name(server, sd15):
    graph = segment(latent=("empty", 0), decoder=("decoder", 0))
    graph["decoder"] = node("LDZNetLoadDecoder", decoder_name=sd15["decoder_name"])
    assert "this ldznet decoder was trained for a model of context width 768" in server.fails(graph)
