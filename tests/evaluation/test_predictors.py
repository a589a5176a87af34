"""Every predictor answers each example, of its own picture, in the order of the data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldznet_core import InputError, load_backbone
from ldznet_core.data.base import Example
from ldznet_core.decoders.files import load_decoder
from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.evaluation.batches import Batch, batches
from ldznet_core.evaluation.predictors import Answers, Decoded, Undecoded, by_kind, everything
from ldznet_core.segment.guided_filter import refine
from ldznet_core.segment.methods import decoder_free


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


def example(phrase: str, picture: str = "", seed: int = 0, size: int = 64) -> Example:
    image = np.random.default_rng(seed).integers(0, 255, (size, size, 3)).astype(np.uint8)
    return Example(phrase, np.ones((size, size), bool), image, caption="a cat", picture=picture)


EXAMPLES = [example("cat", "0"), example("apple", "0"), example("red apple", "1", seed=1), example("cat", seed=2)]


@pytest.fixture(scope="module")
def batch(backbone) -> Batch:
    (batch,) = batches(EXAMPLES, backbone)
    return batch


def alone(*examples: Example, backbone=None) -> Batch:
    """A batch of one picture."""
    return Batch([list(examples)], [list(examples)], backbone)


# ---- predictors ----


@pytest.mark.parametrize("kind", ["rgbnet", "znet", "ldznet"])
def test_a_decoder_answers_each_example(made, backbone, batch, kind, float32):
    predict = Decoded(load_decoder(made / f"{kind}.safetensors"))
    answers = predict(backbone, batch)
    assert answers.masks.shape == (4, 64, 64) and answers.presence is None
    for i in range(4):
        (mask,) = predict(backbone, alone(batch.examples[i], backbone=backbone)).masks
        assert torch.allclose(answers.masks[i], mask, atol=0.03)  # norms over 2x2 positions enlarge rounding


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_a_method_without_decoder_answers_each_example(backbone, batch, method):
    answers = Undecoded(method)(backbone, batch)
    for i, asked in enumerate(batch.examples):
        found = decoder_free(backbone, method).predict_latent(batch.z[[batch.rows[i]]], [asked.phrase])
        assert torch.allclose(answers.masks[i], found.masks[0, 0], atol=1e-3)
        if method == "attention":
            assert answers.presence[i] == pytest.approx(found.presence[0, 0].item(), abs=1e-3)
    assert (answers.presence is None) == (method == "noise")
    assert answers.reach == found.reach


def test_a_light_decoder_answers_each_example_and_knows_presence(backbone, batch):
    torch.manual_seed(0)
    decoder = LightDecoder(light_config(backbone.unet_config, 64, 16)).eval()
    (method,) = by_kind([decoder])
    answers = method.predictors[0](backbone, batch)
    assert (method.name, method.text) == ("light", "empty")
    assert answers.masks.shape == (4, 64, 64) and answers.presence.shape == (4,)


def test_refined_answers_follow_their_own_pictures(batch):
    masks = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(0))
    fine = Answers(masks, None, 0.08).refined(batch)
    for before, after, asked in zip(masks, fine.masks, batch.examples, strict=True):
        assert torch.equal(after, refine(before[None], torch.from_numpy(asked.image) / 255, 0.08)[0])


def test_masks_are_not_refined_without_a_picture():
    bare = replace(EXAMPLES[0], image=None, latent=torch.zeros(4, 8, 8))
    with pytest.raises(InputError, match="'cat' has no image"):
        Answers(torch.rand(1, 64, 64), None, 0.08).refined(alone(bare))


def test_an_answer_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="mask that is not finite"):
        Answers(torch.full((1, 2, 2), float("nan")), None, 0.1)
    with pytest.raises(InputError, match="presence that is not finite"):
        Answers(torch.zeros(1, 2, 2), torch.tensor([float("inf")]), 0.1)


def test_decoders_of_one_kind_are_seeds_of_one_method(made):
    files = [made / f"{kind}.safetensors" for kind in ("ldznet", "znet", "ldznet")]
    znet, phrase, empty = by_kind(files, texts=("phrase", "empty"))
    assert [(m.name, m.text, len(m.predictors)) for m in (znet, phrase, empty)] == [
        ("znet", "", 1), ("ldznet", "phrase", 2), ("ldznet", "empty", 2),
    ]
    assert not by_kind(files, ("rgbnet",))


def test_features_are_extracted_under_what_the_decoder_was_trained_with(made):
    decoder = load_decoder(made / "ldznet.safetensors")
    decoder.info = replace(decoder.info, conditions=("caption", "empty"))
    (method,) = by_kind([decoder])
    assert method.text == "empty"


def test_a_decoder_is_asked_with_its_template(backbone, made, batch):
    decoder = load_decoder(made / "znet.safetensors")
    other = replace(decoder.info, templates=("{} and nothing else",))
    first = Decoded(decoder)(backbone, batch).masks
    decoder.info = other
    assert not torch.allclose(first, Decoded(decoder)(backbone, batch).masks)


def test_the_baseline_marks_all_that_a_picture_names():
    examples = [replace(EXAMPLES[0], mask=np.eye(64, dtype=bool)), replace(EXAMPLES[1], mask=~np.eye(64, dtype=bool))]
    answers = everything(None, alone(*examples))
    assert [float(mask.mean()) for mask in answers.masks] == [1, 1]
