"""The same WebUI without this extension draws the same pictures, and one without a checkpoint says so."""

import hosts
import numpy as np
import pytest
from drawing import DRAW, TITLE, Drawn
from PIL import Image
from studio import PARK

LARGER = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "None", "denoising_strength": 0.6}
REPAINT = {"denoising_strength": 0.7, "inpainting_fill": 1, "inpaint_full_res": True, "inpaint_full_res_padding": 8}
# What is asked of txt2img or, where there is a picture, of img2img.
DRAWINGS = {
    "a batch": {"batch_size": 2},
    "noise in every step": {"sampler_name": "Euler a", "prompt": "a pumpkin AND a ball"},
    "hires fix": LARGER,
    "a part of a picture": REPAINT,
}


def draw(webui, name: str, *args) -> Drawn:
    values, route = {**DRAW, **DRAWINGS[name]}, "txt2img"
    if name == "hires fix" and webui.kind != "a1111":  # their API leaves it out, and then fails
        values["hr_additional_modules"] = ["Use same choices"]
    if name == "a part of a picture":
        route, picture = "img2img", Image.open(PARK).convert("RGB").resize((128, 128))
        mask = Image.new("L", picture.size)
        mask.paste(255, (20, 20, 80, 90))
        values |= {"init_images": [hosts.encoded(picture)], "mask": hosts.encoded(mask)}
    if args:
        values["alwayson_scripts"] = {TITLE: {"args": [True, *args]}}
    return Drawn(webui.post(f"/sdapi/v1/{route}", **values))


@pytest.fixture(scope="module")
def bare(kind, tmp_path_factory):
    """What the same WebUI draws where this extension was never installed."""
    data = hosts.make_data(kind, tmp_path_factory.mktemp("bare"), extension=False)
    with hosts.running(kind, data) as other:
        scripts = {one["name"] for one in other.get("/sdapi/v1/script-info")}
        assert TITLE.lower() not in scripts
        return {name: draw(other, name).pictures for name in DRAWINGS}


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("args", [(), ("pumpkin | panda",)], ids=["idle", "at work"])
def test_pictures_are_those_of_a_webui_without_this_extension(webui, bare, name, args):
    drawn, expected = draw(webui, name, *args), bare[name]
    assert (len(drawn.report) > 0) == bool(args) and np.ptp(expected[0]) > 50
    assert len(drawn.pictures) >= len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(drawn.pictures, expected, strict=False))


def test_without_a_checkpoint_one_sentence_says_so(empty):
    picture = hosts.encoded(Image.open(PARK).convert("RGB"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match='422 {"error":"no checkpoint is loaded: choose one at the top of '):
            empty.post("/ldznet/segment", image=picture, phrases="panda")
    assert empty.get("/ldznet/methods")[:2] == ["attention", "noise"]
