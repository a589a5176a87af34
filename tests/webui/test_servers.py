"""Real WebUIs on the CPU, by their API: masks of pictures while they are drawn, inpainting, and masks on request."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request

import hosts
import numpy as np
import pytest
import torch
from drawing import DRAW, TITLE, Drawn, draw, overlap, segmented
from PIL import Image
from studio import PARK, park

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.segment.methods import decoder_free

LIGHT = "miniature: light (bundled)"
PHRASES = "panda | pumpkin | ladybug"


@pytest.fixture
def unchanged(webui):
    """The picture that is drawn where nothing of ours is asked."""
    return draw(webui).pictures[0]


def refused(webui, **values) -> str:
    """The sentence with which a request for masks is refused."""
    request = urllib.request.Request(
        f"{webui.url}/ldznet/segment", json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=120)
    assert error.value.code == 422
    return json.loads(error.value.read())["error"]


@pytest.mark.parametrize("method", ["attention", "light", "ldznet"])
def test_masks_are_those_of_our_own_backbone(webui, method):
    name = method if method == "attention" else f"miniature: {method} (bundled)"
    picture = hosts.encoded(Image.open(PARK).convert("RGB"))
    answer = webui.post("/probe/soft", image=picture, phrases=PHRASES, method=name)
    found = torch.frombuffer(bytearray(base64.b64decode(answer["masks"])), dtype=torch.float32).view(answer["shape"])
    own = load_backbone("mini")
    segmenter = decoder_free(own) if method == "attention" else Segmenter(own, load_decoder("mini", method))
    expected = segmenter(park(), PHRASES.split(" | "))[0]
    assert (found - expected).abs().max() < 1e-4


def test_pictures_stay_the_same_and_masks_cost_no_call_of_the_unet(webui, unchanged):
    webui.post("/probe/count")
    assert np.array_equal(draw(webui).pictures[0], unchanged)
    alone = webui.post("/probe/counted")
    before = webui.post("/probe/count")
    with_masks = draw(webui, "pumpkin")
    both = webui.post("/probe/counted")
    assert np.array_equal(with_masks.pictures[0], unchanged) and len(with_masks.pictures) == 3
    # One pass more over noise, which attention is compared with: of two small latents, whatever is drawn.
    assert both["calls"] == alone["calls"] + 1
    assert before["hooks"] == both["hooks"] == alone["hooks"]
    segmented(webui, unchanged)
    assert np.array_equal(draw(webui).pictures[0], unchanged)


def test_a_decoder_costs_no_call_at_all(webui):
    draw(webui)
    webui.post("/probe/count")
    draw(webui)
    alone = webui.post("/probe/counted")
    webui.post("/probe/count")
    drawn = draw(webui, "pumpkin", "masks only", LIGHT)
    assert webui.post("/probe/counted")["calls"] == alone["calls"] and drawn.report[0]["found"] == [True]


def test_masks_are_where_a_pass_of_its_own_sees_the_thing(webui):
    drawn = draw(webui, "pumpkin | guitar", "masks only", LIGHT)  # which tells well what is not there
    assert drawn.report[0]["phrases"] == ["pumpkin", "guitar"] and drawn.report[0]["found"] == [True, False]
    assert drawn.note == "not found in the picture: guitar"
    assert overlap(drawn.mask, segmented(webui, drawn.pictures[0])) > 0.7


@pytest.mark.parametrize(
    "values",
    [{"cfg_scale": 1}, {"prompt": "a pumpkin on a blue background AND a ball"}, {"prompt": "a pumpkin, " * 30}],
    ids=["cfg 1", "AND", "long prompt"],
)
def test_odd_prompts(webui, values):
    drawn = draw(webui, "pumpkin", **values)
    assert len(drawn.pictures) == 3 and overlap(drawn.mask, segmented(webui, drawn.pictures[0])) > 0.6


def test_a_batch_has_masks_of_each_picture(webui):
    drawn = draw(webui, "pumpkin", batch_size=2, n_iter=2)
    pictures, first = drawn.first, drawn.first
    singles = drawn.pictures[pictures - 4 : pictures]  # a grid may come before them
    assert len(drawn.report) == 4 and len(drawn.pictures) == pictures + 8
    for number, picture in enumerate(singles):
        mask = drawn.pictures[first + 2 * number][..., 0] > 127
        assert overlap(mask, segmented(webui, picture)) > 0.5


def test_hires_fix_has_masks_of_the_large_picture(webui):
    plain = [one["name"] for one in webui.get("/sdapi/v1/upscalers") if not one["model_path"]]  # None may be all
    larger = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": plain[-1], "denoising_strength": 0.6}
    if webui.kind != "a1111":  # their API leaves it out, and then fails
        larger["hr_additional_modules"] = ["Use same choices"]
    drawn = draw(webui, "pumpkin", **larger)
    assert drawn.pictures[0].shape == drawn.pictures[drawn.first].shape == (256, 256, 3)
    assert overlap(drawn.mask, segmented(webui, drawn.pictures[0])) > 0.5


def test_each_phrase_is_inpainted_with_a_prompt_of_its_own(webui, unchanged):
    drawn = draw(webui, "pumpkin", "inpaint each phrase", "attention", 0.5, True, 4, 0, False, "a ladybug", 0.9)
    changed = np.abs(drawn.pictures[0].astype(int) - unchanged).max(-1)
    assert drawn.report[0]["found"] == [True] and changed[drawn.mask].mean() > 5 * changed[~drawn.mask].mean()
    assert np.array_equal(draw(webui).pictures[0], unchanged)


def repaint(webui, phrase: str) -> Drawn:
    picture = Image.open(PARK).convert("RGB").resize((128, 128))
    values = {**DRAW, "prompt": "a ladybug", "denoising_strength": 0.9, "inpainting_fill": 1}
    values["inpaint_full_res"] = False
    args = [True, phrase, "repaint where the words are", "attention", 0.5, True, 0, 2]
    scripts = {TITLE: {"args": args}}
    picture = hosts.encoded(picture)
    return Drawn(webui.post("/sdapi/v1/img2img", init_images=[picture], **values, alwayson_scripts=scripts))


def test_img2img_repaints_where_the_words_are(webui):
    drawn = repaint(webui, "panda")
    before = np.asarray(Image.open(PARK).convert("RGB").resize((128, 128)), dtype=int)
    changed = np.abs(drawn.pictures[0] - before).max(-1)
    assert changed[drawn.mask].mean() > 20 and np.median(changed[~drawn.mask]) == 0


def test_nothing_is_repainted_where_no_word_makes_sense(webui):
    drawn = repaint(webui, "   ")
    assert drawn.note.startswith("no phrase was given") and not drawn.report


@pytest.mark.parametrize(
    ("args", "note"),
    [
        ([""], "no phrase was given: say what to find"),
        (["pumpkin", "all of it"], "no action 'all of it': choose one of masks only, inpaint each phrase"),
        (["pumpkin", "masks only", "gone.safetensors"], "no decoder 'gone.safetensors' in "),
        (["pumpkin", "masks only", "attention", 7], "threshold must be a number from 0 to 1, got 7"),
        (["pumpkin", "repaint where the words are"], "'repaint where the words are' needs a picture: use it in"),
    ],
)
def test_what_makes_no_sense_is_said_and_the_picture_is_drawn(webui, args, note):
    drawn = draw(webui, *args)
    assert drawn.note.startswith(note)
    assert len(drawn.pictures) == (0 if "repaint where the words are" in args else 1)


def interrupted(webui, moment, *args, **values) -> Drawn:
    """What comes of a generation that is interrupted once `moment` is true of the WebUI's state."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(draw(webui, *args, **values)))
    thread.start()
    until = time.monotonic() + 300
    while not moment(webui.get("/sdapi/v1/progress")["state"]):
        assert time.monotonic() < until and thread.is_alive(), "the moment never came"
        time.sleep(0.05)
    webui.post("/sdapi/v1/interrupt")
    thread.join(300)
    return answers[0]


@pytest.fixture
def unharmed(webui, unchanged):
    """After the test there are as many hooks as before, and pictures are as ever."""
    before = webui.post("/probe/count")["hooks"]
    webui.post("/probe/counted")
    yield
    assert webui.post("/probe/count")["hooks"] == before
    webui.post("/probe/counted")
    assert np.array_equal(draw(webui).pictures[0], unchanged)


def test_an_interrupt_in_the_middle_of_a_picture_ends_it_without_masks(webui, unharmed):
    drawn = interrupted(webui, lambda state: state["sampling_step"] >= 3, "pumpkin", steps=150)
    assert len(drawn.pictures) == 1 and not drawn.report and not drawn.note


def test_an_interrupt_in_the_middle_of_inpainting_keeps_the_masks(webui, unharmed):
    args = ["pumpkin | ball", "inpaint each phrase", "attention", 0.2, True, 4, 0, False, "a ladybug\na ladybug", 1]

    def inside(state: dict) -> bool:
        return state["job_count"] > 1 and 2 <= state["sampling_step"] < 30

    drawn = interrupted(webui, inside, *args, steps=40, prompt="a pumpkin and a ball on a blue background")
    assert len(drawn.pictures) == 4 and drawn.report[0]["found"][0] and not drawn.note


def test_what_was_asked_is_written_into_the_picture(webui):
    drawn = draw(webui, "pumpkin\nred apple", "masks only", "attention", 0.45)
    text = drawn.info["infotexts"][0]
    assert "LD-ZNet phrases: pumpkin | red apple" in text and "LD-ZNet threshold: 0.45" in text
    assert "LD-ZNet" not in draw(webui).info["infotexts"][0]


def test_phrases_are_an_axis_of_the_plot(webui):
    axis = webui.get("/probe/axes").index("[LD-ZNet] Phrases")
    nothing = webui.get("/probe/axes").index("Nothing")
    cells = [axis, "pumpkin,guitar", [], nothing, "", [], nothing, "", []]
    tail = [True, True, True, True, False, False, False, *[1] * (webui.kind == "neo"), 0, False]
    answer = webui.post(
        "/sdapi/v1/txt2img", **DRAW, script_name="x/y/z plot", script_args=[*cells, *tail],
        alwayson_scripts={TITLE: {"args": [True, "pumpkin"]}},
    )  # fmt: skip
    texts = [text for text in json.loads(answer["info"])["infotexts"] if "LD-ZNet phrases" in text]
    assert any("LD-ZNet phrases: guitar" in text for text in texts)


def test_masks_on_request(webui):
    picture = hosts.encoded(Image.open(PARK).convert("RGB"))
    asked = {"phrases": ["panda", "guitar"], "method": LIGHT, "invert": True, "feather": 3}
    answer = webui.post("/ldznet/segment", image=picture, **asked)
    panda, guitar = (np.asarray(hosts.decoded(one["mask"])) for one in answer["masks"])
    assert [one["found"] for one in answer["masks"]] == [True, False] and panda.shape == (256, 256)
    assert panda[0, 0] == 255 and panda.min() == 0 and guitar.max() == 0
    assert answer["note"] == "not found in the picture: guitar"
    assert webui.get("/ldznet/methods")[:2] == ["attention", "noise"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"phrases": "cat"}, "no image was given: send one as base64 under 'image'"),
        ({"phrases": "cat", "image": "!!"}, "'image' is no picture in base64"),
        ({"image": "x"}, "no phrase was given"),
        ({"phrases": "cat", "image": "x", "size": 3}, "no option 'size': those are feather, grow, image"),
        ({"phrases": "cat", "image": "x", "grow": "3"}, "grow must be a number from -128 to 128, got '3'"),
    ],
)
def test_requests_that_make_no_sense_are_refused_in_one_sentence(webui, values, sentence):
    assert refused(webui, **values).startswith(sentence)
