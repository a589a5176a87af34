"""SEGS of this pack in the real nodes of ComfyUI Impact Pack.

IMPACT_PATH names a checkout of it. The python that runs ComfyUI needs its requirements.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from client import TEMPLATES, node, to_api
from PIL import Image

IMPACT = os.environ.get("IMPACT_PATH")
pytestmark = pytest.mark.skipif(
    not IMPACT, reason="NO IMPACT PACK TESTED: set IMPACT_PATH to a checkout of ComfyUI-Impact-Pack to run these tests"
)
LOADED = {"load": node("LDZNetLoadMini"), "park": node("LoadImage", image="park.png")}
FOUND = {
    **LOADED,
    "segment": node(
        "LDZNetSegment", model=("load", 0), clip=("load", 1), vae=("load", 2), decoder=("load", 3), image=("park", 0),
        text="panda | fish | pumpkin", timestep=-1, seed=0, threshold=0.5, samples=1,
    ),
    "masks": node("MaskToImage", mask=("segment", 0)),
    "shown": node("PreviewImage", images=("masks", 0)),
}


@pytest.fixture
def impact(serve, tmp_path_factory):
    """A server that has loaded Impact Pack beside this pack."""
    paths = tmp_path_factory.getbasetemp() / "impact.yaml"
    paths.write_text(f"impact:\n  custom_nodes: {Path(IMPACT).resolve().parent}\n")
    server = serve("--extra-model-paths-config", str(paths))
    listed = server.json("/object_info")
    assert listed["LDZNetMasksToSEGS"]["output"] == listed["ImpactSEGSLabelFilter"]["output"][:1] == ["SEGS"]
    return server


def to_segs(**inputs) -> dict:
    inputs = {"masks": ("segment", 0), "text": "panda | fish | pumpkin", "threshold": 0.5, "crop_factor": 2.0} | inputs
    return node("LDZNetMasksToSEGS", **inputs)


def preview(segs: tuple, image: tuple) -> dict:
    return node("SEGSPreview", segs=segs, alpha_mode=True, min_alpha=0.2, fallback_image_opt=image)


def as_picture(name: str, mask: tuple) -> dict:
    """Nodes that show a MASK under that name."""
    return {f"{name} grey": node("MaskToImage", mask=mask), name: node("PreviewImage", images=(f"{name} grey", 0))}


@pytest.mark.parametrize("inputs", [{}, {"image": ("park", 0)}], ids=["without image", "with image"])
def test_filters_pickers_and_previews_take_them(impact, inputs):
    graph = {
        **FOUND,
        "segs": to_segs(**inputs),
        "only": node("ImpactSEGSLabelFilter", segs=("segs", 0), preset="all", labels="pumpkin"),
        "surest": node("ImpactSEGSOrderedFilter", segs=("segs", 0), target="confidence", order=True, take_start=0,
                       take_count=1),
        "half": node("ImpactSEGSRangeFilter", segs=("segs", 0), target="confidence(0-100)", mode=True, min_value=50,
                     max_value=100),
        "picked": node("ImpactSEGSPicker", picks="2", segs=("segs", 0), fallback_image_opt=("park", 0)),
        "grown": node("ImpactDilateMaskInSEGS", segs=("half", 0), dilation=2),
        "merged": node("ImpactSEGSMerge", segs=("segs", 0)),
        "preview": preview(("segs", 0), ("park", 0)),
        "merged preview": preview(("merged", 0), ("park", 0)),
    }
    for name in ("segs", "only", "surest", "half", "picked", "grown"):
        graph |= {f"{name} mask": node("SegsToCombinedMask", segs=(name, 0))}
        graph |= as_picture(f"{name} shown", (f"{name} mask", 0))
    run = impact.run(graph)
    panda, fish, pumpkin = (picture[..., 0].astype(int) for picture in impact.pictures(run, "shown"))
    assert not fish.any() and panda.any() and pumpkin.any()
    shown = {name: impact.pictures(run, f"{name} shown")[0][..., 0].astype(int) for name in ("segs", "only", "picked")}
    for name, expected in {"segs": np.maximum(panda, pumpkin), "only": pumpkin, "picked": pumpkin}.items():
        outside = expected < 128  # Impact Pack joins masks in 8 bits; what lies outside every crop is gone
        assert np.abs(shown[name] - expected)[~outside].max() <= 2, name
    assert len(impact.pictures(run, "preview")) == 2  # no segment of the fish
    assert len(impact.pictures(run, "merged preview")) == 1


def test_a_detailer_draws_each_phrase_anew_and_nothing_else(impact):
    graph = {
        **FOUND,
        "segs": to_segs(image=("park", 0)),
        "positive": node("CLIPTextEncode", clip=("load", 1), text="a red heart"),
        "negative": node("CLIPTextEncode", clip=("load", 1), text=""),
        "detailer": node(
            "DetailerForEach", image=("park", 0), segs=("segs", 0),
            model=("load", 0), clip=("load", 1), vae=("load", 2), guide_size=128,
            guide_size_for=False, max_size=128, seed=0, steps=4, cfg=3.0, sampler_name="euler",
            scheduler="normal", positive=("positive", 0), negative=("negative", 0), denoise=0.9, feather=0,
            noise_mask=True, force_inpaint=True, wildcard="[LAB]\n[panda] a sunflower", cycle=1, noise_mask_feather=0,
        ),
        "drawn": node("PreviewImage", images=("detailer", 0)),
    }
    run = impact.run(graph)
    masks = np.stack([picture[..., 0] for picture in impact.pictures(run, "shown")])
    before = np.asarray(Image.open(Path(__file__).parents[2] / "docs/pictures/park.png").convert("RGB")).astype(int)
    changed = np.abs(impact.pictures(run, "drawn")[0].astype(int) - before).max(-1)
    assert changed.shape == masks.shape[1:]
    inside, outside = masks.max(0) > 200, masks.max(0) == 0
    assert (changed[inside] > 16).mean() > 0.3 and changed[outside].max() <= 1


def test_a_batch_goes_through_a_detailer_as_lists(impact):
    """Its detailers refuse batches of images and take lists: SEGS come as one, an image each."""
    graph = {
        **FOUND,
        "two": node("RepeatImageBatch", image=("park", 0), amount=2),
        "masks of two": node("RepeatImageBatch", image=("masks", 0), amount=2),
        "as masks": node("ImageToMask", image=("masks of two", 0), channel="red"),
        "segs": to_segs(masks=("as masks", 0), image=("two", 0)),
        "images": node("ImpactImageBatchToImageList", image=("two", 0)),
        "preview": preview(("segs", 0), ("images", 0)),
    }
    assert len(impact.pictures(impact.run(graph), "preview")) == 4


def test_the_template_details_every_phrase_on_the_miniature(impact):
    (path,) = (path for path in TEMPLATES if path.stem == "impact_pack_detail_every_phrase")
    graph = to_api(json.loads(path.read_text(encoding="utf-8")), impact.json("/object_info"))
    for n in graph.values():
        if n["class_type"] == "CheckpointLoaderSimple":
            n |= node("LDZNetLoadMini")
        if n["class_type"] == "PrimitiveStringMultiline":
            n |= node("PrimitiveStringMultiline", value="panda\npumpkin")
        smaller = {
            "image": "park.png", "width": 128, "height": 128, "presence": 0.0, "steps": 4, "guide_size": 128.0,
            "max_size": 128.0, "noise_mask_feather": 0,  # versions of 2024 cannot feather in newer ComfyUIs
        }
        n["inputs"] |= {k: v for k, v in smaller.items() if k in n["inputs"] and not isinstance(n["inputs"][k], list)}
    run = impact.run(graph)
    (saver,) = (id for id, n in graph.items() if n["class_type"] == "SaveImage")
    assert impact.pictures(run, saver)[0].shape == (128, 128, 3)
    assert impact.new_log().count("Detailer: segment upscale") == 2
