"""Scenes to choose settings on, which no set of `ldznet evaluate` holds: their backgrounds are kept for validation."""

from pathlib import Path

from ldznet_core.mini.bank import Recipe, draw
from ldznet_core.mini.decoders import Phrases
from ldznet_core.mini.evaluation import COUNTS, Question, questions
from ldznet_core.mini.world import Scene


def scenes(host, pack: Path, count: int, seed: int, sprites: str = "train") -> list[Scene]:
    """Scenes of two and three sprites of a split, composed at the host's size from its nouns."""
    about = host.model.about
    return draw(pack, Recipe(about["size"], len(about["nouns"]), None, (sprites,), ("val",), COUNTS), seed, count)


def validation(
    host, pack: Path, count: int, seed: int = 4242, sprites: str = "train"
) -> tuple[Phrases, list[Question]]:
    """Such scenes, encoded, and a question for every noun in them."""
    chosen = scenes(host, pack, count, seed, sprites)
    return Phrases.of(chosen, host.model), questions(chosen)
