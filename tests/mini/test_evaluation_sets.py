"""The miniature's evaluation examples, and queries captured while its scenes are generated anew."""

import numpy as np
import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.recording import record
from ldznet_core.data.base import Example
from ldznet_core.evaluation.batches import batches
from ldznet_core.evaluation.predictors import Undecoded
from ldznet_core.mini import evaluation
from ldznet_core.mini.evaluation import redrawn
from ldznet_core.mini.sprites import Sprite
from ldznet_core.mini.world import Scene, Thing
from ldznet_core.segment.methods import decoder_free


def thing(noun: str, left: int, right: int) -> Thing:
    mask = np.zeros((4, 4), bool)
    mask[:, left:right] = True
    sprite = Sprite(noun, noun, "style", "train", "", None, np.zeros((1, 1, 4), np.uint8))
    return Thing(sprite, mask, (left, 0, right, 4))


def scene(*things: Thing) -> Scene:
    return Scene(np.zeros((4, 4, 3), np.uint8), "a caption", things, "")


def test_one_example_a_noun_with_all_its_things():
    cat, bus = evaluation.examples([scene(thing("cat", 0, 1), thing("bus", 1, 2), thing("cat", 3, 4))])
    assert (cat.phrase, bus.phrase, cat.picture, bus.picture, cat.caption) == ("cat", "bus", "0", "0", "a caption")
    assert cat.mask[0].tolist() == [True, False, False, True]


def test_scenes_are_also_asked_for_what_they_lack_and_for_the_same_every_time(monkeypatch):
    cat, bus = thing("cat", 0, 1), thing("bus", 1, 2)
    asked = [(e.phrase, e.picture, bool(e.mask.any())) for e in evaluation.examples(
        [scene(cat), scene(cat, bus), scene(bus)], ["cat", "bus"]
    )]
    assert asked == [
        ("cat", "0", True), ("bus", "0", False), ("cat", "1", True), ("bus", "1", True), ("bus", "2", True),
        ("cat", "2", False),
    ]
    nouns = ["cat", *"abcdefgh"]
    first, again = ([e.phrase for e in evaluation.examples([scene(cat)] * 9, nouns)] for _ in range(2))
    assert first == again and len(set(first)) > 3
    monkeypatch.setattr(evaluation, "ABSENT_SCENES", 2)
    assert len(evaluation.examples([scene(cat)] * 9, nouns)) == 11


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module")
def batch(backbone):
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    mask = np.ones((64, 64), bool)
    asked = [("a cat", "cat", 0), ("a cat", "apple", 0), ("a red apple", "cat", 1)]
    (batch,) = batches([Example(p, mask, images[i], caption=c, picture=str(i)) for c, p, i in asked], backbone)
    return batch


def test_captured_queries_go_to_their_own_picture(backbone, batch):
    answers = Undecoded(capture=redrawn)(backbone, batch)
    for i, (asked, row) in enumerate(zip(batch.examples, batch.rows, strict=True)):
        z = batch.z[[row]]
        found = decoder_free(backbone).predict_latent(z, [asked.phrase], captured=redrawn(backbone, z, [asked.caption]))
        # Five guided steps amplify rounding. The mean stays small; that of another phrase or picture is above 0.01.
        assert (answers.masks[i] - found.masks[0, 0]).abs().mean() < 2e-3


def test_queries_are_captured_from_the_captions_half_of_five_steps(backbone, batch, monkeypatch):
    outputs, guided = [], backbone.guided

    def spy(z_t, timesteps, context, *rest):
        with record({"q": backbone.transformer("input_blocks.1").transformer_blocks[0].attn2.to_q}) as one:
            result = guided(z_t, timesteps, context, *rest)
        outputs.append((int(timesteps[0]), one["q"]))
        return result

    monkeypatch.setattr(backbone, "guided", spy)
    queries = redrawn(backbone, batch.z, batch.captions)
    assert [t for t, _ in outputs] == [200, 150, 100, 50, 0]
    assert len(queries) == 2 and queries.size == (8, 8)
    mean = torch.stack([q[2:] for _, q in outputs]).mean(0)  # rows 0 and 1 are those of the empty text
    assert torch.allclose(queries.cross[0], mean, atol=1e-5)
