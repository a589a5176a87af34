"""Scenes to choose settings on, which no set of `ldznet evaluate` holds: their backgrounds are kept for validation."""

from pathlib import Path

from ldznet_core.data.base import Example
from ldznet_core.mini.bank import Recipe, compose_scenes
from ldznet_core.mini.evaluation import COUNTS, examples
from ldznet_core.mini.world import Scene


def scenes(backbone, pack: Path, count: int, seed: int = 4242, sprites: str = "train") -> list[Scene]:
    """Scenes of two and three sprites of a split, composed at the backbone's size from its nouns."""
    about = backbone.model.about
    recipe = Recipe(about["size"], len(about["nouns"]), None, (sprites,), ("val",), COUNTS)
    return compose_scenes(pack, recipe, seed, count)


def validation(backbone, pack: Path, count: int, seed: int = 4242, sprites: str = "train") -> list[Example]:
    """An example for every noun in such scenes, and some for nouns that are not there."""
    return examples(scenes(backbone, pack, count, seed, sprites), backbone.model.about["nouns"])
