"""Pictures come in batches of one size, each encoded once, and what cannot be read is counted and left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldznet_core import InputError, load_backbone
from ldznet_core.data.base import Example
from ldznet_core.data.damage import Damage
from ldznet_core.evaluation import batches as module
from ldznet_core.evaluation.batches import First, batches


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


def example(phrase: str, picture: str = "", seed: int = 0, size: tuple[int, int] = (64, 64)) -> Example:
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)
    return Example(phrase, np.ones(size, bool), image, picture=picture)


EXAMPLES = [example("cat", "0"), example("apple", "0"), example("red apple", "1", seed=1), example("cat", seed=2)]


@pytest.fixture
def encoded(backbone, monkeypatch) -> list[int]:
    """Numbers of pictures, one entry each time the VAE encodes."""
    counts, encode = [], backbone.encode

    def spy(image):
        counts.append(len(image))
        return encode(image)

    monkeypatch.setattr(backbone, "encode", spy)
    return counts


def test_examples_of_one_picture_in_a_row_share_its_latent(backbone, encoded):
    (batch,) = batches(EXAMPLES, backbone)
    assert batch.rows == [0, 0, 1, 2] and [e.phrase for e in batch.examples] == ["cat", "apple", "red apple", "cat"]
    image = torch.from_numpy(EXAMPLES[2].image)[None] / 255
    assert torch.allclose(batch.z[1:2], backbone.encode(image), atol=1e-5)
    assert encoded == [3, 1] and len(batch.z) == 3  # encoded once, and once more by this test


def test_nothing_is_encoded_before_a_predictor_asks(backbone, encoded):
    list(batches(EXAMPLES, backbone))
    assert not encoded


def test_latents_that_examples_bring_are_taken(backbone, encoded):
    latent = torch.full((4, 8, 8), 2.0)
    (batch,) = batches([replace(EXAMPLES[0], image=None, latent=latent)], backbone)
    assert torch.equal(batch.z, latent[None]) and not encoded


def test_a_batch_ends_where_the_size_changes_or_it_is_full(monkeypatch):
    monkeypatch.setattr(module, "PICTURES", 2)
    pictures = [example("cat", str(i), size=(64, size)) for i, size in enumerate((64, 64, 64, 72, 64))]
    assert [len(b.pictures) for b in batches(pictures)] == [2, 1, 1, 1]
    monkeypatch.setattr(module, "EXAMPLES", 3)
    several = [example("cat", picture) for picture in "00111122"]
    assert [len(b.examples) for b in batches(several)] == [2, 4, 2]
    assert not list(batches([]))


def test_pictures_are_brought_to_the_working_size_and_kept_at_their_own():
    pictures = [example("cat", "0", size=(40, 80)), example("apple", "1", size=(96, 32))]
    (batch,) = batches(pictures, size=lambda height, width: (64, 64))
    assert [e.image.shape for e in batch.examples] == [(64, 64, 3)] * 2
    assert [e.mask.shape for picture in batch.originals for e in picture] == [(40, 80), (96, 32)]


def test_examples_of_one_name_and_different_sizes_are_different_pictures():
    pictures = [example("cat", "0"), example("cat", "0", size=(64, 128))]
    assert [len(b.pictures) for b in batches(pictures)] == [1, 1]


class Damaged(list):
    """Examples, of which those that are a text cannot be read."""

    def __getitem__(self, index: int) -> Example:
        if isinstance(item := super().__getitem__(index), str):
            raise InputError(item)
        return item


def test_what_cannot_be_read_is_counted_and_left_out(caplog):
    damage = Damage()
    (batch,) = batches(Damaged([example("cat"), "a.png is cut off", example("dog")]), damage=damage)
    assert [e.phrase for e in batch.examples] == ["cat", "dog"]
    assert (damage.damaged, damage.read_count) == (1, 3)
    assert caplog.messages == ["skipped: a.png is cut off"]


def test_too_much_damage_is_an_error():
    with pytest.raises(InputError, match="2 of 3 items"):
        list(batches(Damaged([example("cat"), "a.png is cut off", "b.png is missing"]), damage=Damage()))


def test_the_first_examples_of_a_data_set():
    assert [First(EXAMPLES, 2)[i].phrase for i in range(len(First(EXAMPLES, 2)))] == ["cat", "apple"]
    assert len(First(EXAMPLES, 9)) == 4
