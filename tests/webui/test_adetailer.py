"""Beside ADetailer: it draws first, and masks are of what it has drawn.

ADETAILER_PATH names a checkout of it that fits the WebUI; its Python needs `rich` and none of the detectors, for which
one stands in that always finds a box in the picture.
"""

import os
from pathlib import Path

import hosts
import numpy as np
import pytest
from drawing import TITLE, Drawn, draw, overlap, segmented

BOX = (8, 8, 72, 72)  # of the 128 by 128 pixels
STAND_IN = f"""
from modules import script_callbacks, scripts
from PIL import Image

def add_detector():
    module = next(d.module for d in scripts.scripts_data if d.script_class.__name__ == "AfterDetailerScript")

    def predict(model, image, **options):
        mask = Image.new("L", image.size)
        mask.paste(255, {BOX})
        return module.PredictOutput(bboxes=[list({BOX})], masks=[mask], confidences=[0.9], preview=image)

    module.ultralytics_predict = predict
    module.model_mapping["stand-in.pt"] = "stand-in"

script_callbacks.on_before_ui(add_detector)
"""
DETAIL = {
    "ad_model": "stand-in.pt", "ad_prompt": "a ladybug on a blue background", "ad_denoising_strength": 1.0,
    "ad_inpaint_only_masked": False, "ad_mask_blur": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def beside(kind, tmp_path_factory):
    """The same WebUI with this extension and ADetailer."""
    named = os.environ.get("ADETAILER_PATH")
    if not named:
        pytest.skip("NOT TESTED BESIDE ADETAILER: ADETAILER_PATH is unset")
    data = hosts.make_data(kind, tmp_path_factory.mktemp("beside"))
    (data / "extensions" / "adetailer").symlink_to(Path(named).resolve())
    scripts = data / "extensions" / "stand-in" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "stand_in.py").write_text(STAND_IN)
    with hosts.running(kind, data, "--ad-no-huggingface") as running:
        yield running


def detailed(webui, *args, detail: dict = DETAIL, **values) -> Drawn:
    scripts = {"ADetailer": {"args": [True, False, detail]}}
    if args:
        scripts[TITLE] = {"args": [True, *args]}
    return draw(webui, alwayson_scripts=scripts, **values)


def test_masks_are_of_what_it_has_drawn(beside):
    before, after = draw(beside).pictures[0], detailed(beside).pictures[0]
    changed = np.abs(after.astype(int) - before).max(-1) > 20
    left, top, right, bottom = BOX
    assert changed[top:bottom, left:right].mean() > 0.1 and changed[bottom + 8 :].mean() < 0.01
    drawn = detailed(beside, "ladybug")
    assert np.array_equal(drawn.pictures[0], after) and len(drawn.pictures) == 3 and not drawn.note
    assert overlap(drawn.mask, segmented(beside, after, "ladybug")) > 0.99


def test_where_it_finds_nothing_masks_come_from_the_sampling(beside):
    nothing = {**DETAIL, "ad_mask_min_ratio": 0.9}
    draw(beside)
    beside.post("/probe/count")
    draw(beside)
    alone = beside.post("/probe/counted")["calls"]
    beside.post("/probe/count")
    drawn = detailed(beside, "pumpkin", detail=nothing)
    assert beside.post("/probe/counted")["calls"] == alone + 1 and drawn.report[0]["found"] == [True]


def test_a_batch_of_batches_has_masks_of_each_picture(beside):
    before = beside.post("/probe/count")["hooks"]
    beside.post("/probe/counted")
    drawn = detailed(beside, "pumpkin | ladybug", batch_size=2, n_iter=2)
    assert len(drawn.report) == 4 and len(drawn.pictures) == drawn.first + 4 * 3
    assert beside.post("/probe/count")["hooks"] == before
    beside.post("/probe/counted")
