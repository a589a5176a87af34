"""Texts are encoded once: a folder of pictures is asked for the same phrases."""

import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.base import TEXTS_KEPT


@pytest.fixture
def encoded(made, monkeypatch):
    """A backbone, and the lists of texts that its encoder was given."""
    backbone, asked = load_backbone(made / "mini.safetensors"), []
    encode = backbone.encode_texts
    monkeypatch.setattr(backbone, "encode_texts", lambda texts: asked.append(list(texts)) or encode(texts))
    return backbone, asked


def test_the_same_texts_are_not_encoded_again(encoded):
    backbone, asked = encoded
    first, again = backbone.embed(["cat", "dog"]), backbone.embed(("cat", "dog"))
    assert asked == [["cat", "dog"]] and torch.equal(first.context, again.context)
    backbone.embed(["dog", "cat"])
    assert len(asked) == 2


def test_only_the_last_are_kept(encoded):
    backbone, asked = encoded
    for number in range(TEXTS_KEPT + 1):
        backbone.embed([f"thing {number}"])
    backbone.embed(["thing 0"])
    assert len(asked) == TEXTS_KEPT + 2
    backbone.embed([f"thing {TEXTS_KEPT}"])
    assert len(asked) == TEXTS_KEPT + 2


def test_another_precision_encodes_anew(encoded):
    backbone, asked = encoded
    backbone.embed(["cat"])
    with torch.autocast("cpu", torch.bfloat16):
        backbone.embed(["cat"])
    assert len(asked) == 2
