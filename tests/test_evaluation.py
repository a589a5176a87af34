"""Evaluation: what is asked, how answers are judged, and that every predictor answers what it was asked."""

import numpy as np
import pytest
import torch

from ldznet_core import load_host
from ldznet_core.features import overhear
from ldznet_core.mini import evaluation
from ldznet_core.mini.decoders import Phrases
from ldznet_core.mini.predictors import Answers, Decoded, Undecoded, redrawn
from ldznet_core.mini.world import Scene, Sprite, Thing
from ldznet_core.refine import refine
from ldznet_core.training_free import TrainingFree
from ldznet_core.weights import load_decoder


def thing(noun: str, left: int, right: int) -> Thing:
    mask = np.zeros((4, 4), bool)
    mask[:, left:right] = True
    sprite = Sprite(noun, noun, "style", "train", "", None, np.zeros((1, 1, 4), np.uint8))
    return Thing(sprite, mask, (left, 0, right, 4))


def scene(*things: Thing) -> Scene:
    return Scene(np.zeros((4, 4, 3), np.uint8), "", things, "")


# ---- questions and scores ----


def test_one_question_a_noun_with_all_its_things():
    cat, bus = evaluation.questions([scene(thing("cat", 0, 1), thing("bus", 1, 2), thing("cat", 3, 4))])
    assert (cat.noun, bus.noun) == ("cat", "bus")
    assert cat.mask[0].tolist() == [True, False, False, True]
    assert bus.others[0].tolist() == [True, True, False, True]


def test_marking_everything_scores_what_the_others_leave():
    baseline = evaluation.mark_everything(evaluation.questions([scene(thing("cat", 0, 1), thing("bus", 1, 4))]))
    assert baseline.scores.miou == pytest.approx((4 / 17 + 12 / 17) / 2)  # the protocol's +1 in each denominator
    assert baseline.false_area == 1


def judged(presence: torch.Tensor | None) -> evaluation.Result:
    """One phrase that is there, found exactly, and two that are not: half and a quarter of the picture marked."""
    masks = torch.zeros(3, 4, 4)
    masks[0, :, 0] = masks[1, :2] = masks[2, 0] = 1
    return evaluation.judge(Answers(masks, presence, 0.1), evaluation.questions([scene(thing("cat", 0, 1))]))


def test_what_is_marked_for_absent_phrases_is_told_with_and_without_the_gate():
    result = judged(torch.tensor([0.0, 1.9, 2.1]))
    assert result.false_area == pytest.approx(3 / 8) and result.gated_area == pytest.approx(1 / 8)
    assert result.scores.miou == pytest.approx(4 / 5) and result.scores.samples == 1  # no gate on what is there
    assert judged(None).gated_area is None


def test_where_nothing_is_absent_no_area_is_told():
    asked = evaluation.questions([scene(thing("cat", 0, 1))])
    result = evaluation.judge(Answers(torch.ones(1, 4, 4), torch.ones(1), 0.1), asked)
    assert result.false_area is None and result.gated_area is None
    row = evaluation.Row("set", "method", "", (result,)).as_dict()
    assert row["false_area"] is None and row["miou"] == {"mean": pytest.approx(4 / 17), "std": 0.0}


def test_absent_nouns_are_absent_and_the_same_every_time():
    present = [frozenset(["cat"]), frozenset(["cat", "bus"]), frozenset()]
    data = Phrases(np.zeros((3, 4, 4, 3), np.uint8), torch.zeros(3, 4, 1, 1), [""] * 3, [[]] * 3, present)
    asked = evaluation.absent(data, ["cat", "bus"])
    assert [i for i, _ in asked] == [0, 2] and asked[0][1] == "bus"
    assert asked == evaluation.absent(data, ["cat", "bus"])


# ---- predictors ----

ASKED = [(1, "cat"), (0, "apple"), (1, "red apple"), (0, "cat")]


@pytest.fixture(scope="module")
def host(made):
    return load_host(made / "mini.safetensors")


@pytest.fixture(scope="module")
def data() -> Phrases:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Phrases(images, z, ["a cat", "a red apple"], [[], []], [frozenset(), frozenset()])


@pytest.mark.parametrize("kind", ["rgbnet", "znet", "ldznet"])
def test_a_decoder_answers_each_pair(made, host, data, kind):
    predict = Decoded(load_decoder(made / f"{kind}.safetensors"))
    answers = predict(host, data, ASKED)
    assert answers.masks.shape == (4, 64, 64) and answers.presence is None
    for i, pair in enumerate(ASKED):
        assert torch.allclose(answers.masks[i], predict(host, data, [pair]).masks[0], atol=0.03)  # bfloat16


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_all_phrases_of_a_scene_are_answered_at_once_in_the_order_asked(host, data, method):
    answers = Undecoded(method)(host, data, ASKED)
    for i, (scene, phrase) in enumerate(ASKED):
        found = TrainingFree(host, method).latent(data.z[scene : scene + 1], [phrase])
        assert torch.allclose(answers.masks[i], found.masks[0, 0], atol=1e-3)
        if method == "attention":
            assert answers.presence[i] == pytest.approx(found.presence[0, 0].item(), abs=1e-3)
    assert (answers.presence is None) == (method == "noise")
    assert answers.reach == found.reach


def test_queries_of_other_passes_are_given_to_their_own_scene(host, data):
    answers = Undecoded(listen=redrawn)(host, data, ASKED)
    for i, (scene, phrase) in enumerate(ASKED):
        found = TrainingFree(host).latent(data.z[[scene]], [phrase], queries=redrawn(host, data, [scene]))
        assert torch.allclose(answers.masks[i], found.masks[0, 0], atol=1e-3)


def test_drawing_anew_listens_to_the_captions_half_of_five_steps(host, data, monkeypatch):
    heard, guided = [], host.guided

    def spy(z_t, timesteps, context, taps=()):
        with overhear({"q": host.transformer("input_blocks.1").transformer_blocks[0].attn2.to_q}) as one:
            result = guided(z_t, timesteps, context, taps)
        heard.append((int(timesteps[0]), one["q"]))
        return result

    monkeypatch.setattr(host, "guided", spy)
    queries = redrawn(host, data, [1, 0])
    assert [t for t, _ in heard] == [200, 150, 100, 50, 0]
    assert len(queries) == 2 and queries.size == (8, 8)
    mean = torch.stack([q[2:] for _, q in heard]).mean(0)  # rows 0 and 1 are those of the empty text
    assert torch.allclose(queries.cross[0], mean, atol=1e-5)


def test_refined_answers_follow_the_picture_of_their_scene(host, data):
    answers = Answers(torch.rand(2, 64, 64), None, 0.08)
    fine = answers.refined(data, [(1, "cat"), (0, "cat")])
    for mask, given, scene in zip(fine.masks, answers.masks, (1, 0), strict=True):
        assert torch.equal(mask, refine(given[None], torch.from_numpy(data.images[scene]) / 255, 0.08)[0])


def test_decoders_of_one_kind_are_seeds_of_one_method(made):
    files = [made / f"{kind}.safetensors" for kind in ("ldznet", "znet", "ldznet")]
    znet, phrase, empty = evaluation.by_kind(files, texts=("phrase", "empty"))
    assert [(m.name, m.text, len(m.predictors)) for m in (znet, phrase, empty)] == [
        ("znet", "", 1), ("ldznet", "phrase", 2), ("ldznet", "empty", 2),
    ]
    assert not evaluation.by_kind(files, ("rgbnet",))
