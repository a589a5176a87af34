"""Samples of a step, and what they share."""

import numpy as np
import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.data.base import Example
from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.training.task import DecoderTask, Settings


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture
def task(backbone):
    """Two pictures of three phrases each, of which two are asked at once."""
    rng, examples = np.random.default_rng(0), []
    for picture in ("first", "second"):
        image = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        examples += [
            Example(f"{picture} {noun}", rng.random((64, 64)) > 0.5, image, caption=picture, picture=picture)
            for noun in ("cat", "apple", "bus")
        ]
    torch.manual_seed(0)
    decoder = LightDecoder(light_config(backbone.unet_config, 128, width=16)).eval()
    settings = Settings(4, 4, conditions={"empty": 0.5, "caption": 0.5}, timesteps=(0, 500), phrases=2)
    return DecoderTask(decoder, backbone, examples, settings, seed=1)


def test_phrases_of_a_picture_share_its_noise(task):
    for step in range(5):
        first, second, third, fourth = task.samples(step, 0)
        for one, other in ((first, second), (third, fourth)):
            assert one.example.picture == other.example.picture and one.phrase != other.phrase
            assert (one.noise, one.timestep, one.text) == (other.noise, other.timestep, other.text)
        assert first.noise != third.noise


def test_phrases_of_a_picture_share_one_pass_and_get_what_they_would_alone(task, backbone, monkeypatch):
    rows, predict = [], backbone.predict
    monkeypatch.setattr(backbone, "predict", lambda z, *rest: rows.append(len(z)) or predict(z, *rest))
    samples = task.samples(0, 0)
    with torch.no_grad():
        together, alone = task.predict(samples, each=2), task.predict(samples)
    assert rows == [2, 4]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_an_absent_phrase_is_of_no_phrase_of_the_picture(task):
    task.settings = Settings(4, 4, conditions={"empty": 1.0}, timesteps=(0, 500), phrases=2, absent=0.9)
    absent = [s.example for step in range(5) for s in task.read(step, 0) if not s.example.mask.any()]
    assert absent and all(example.phrase.split()[0] != example.picture for example in absent)
