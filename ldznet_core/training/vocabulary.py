"""What a checkpoint is asked to draw when it teaches its own decoder: nouns, and the sentences that they stand in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backbones.sampling import Sampling
from ..errors import InputError, why
from ..segment.phrases import split_phrases


@dataclass(frozen=True)
class Words:
    """`plain` asks for {thing} alone on {ground}, one of `grounds`; `places` are captions of grounds for scenes, which
    `on` joins to the things; `styles` are sentences around a caption."""

    plain: str
    grounds: tuple[str, ...]
    places: tuple[str, ...]
    on: str
    styles: tuple[str, ...]


COLOURS = "grey", "white", "blue", "green", "pink", "yellow", "purple", "red"
MINIATURE = Words(
    "{} on {} background", ("a grey", "a blue"), tuple(f"a {colour} background" for colour in COLOURS), "on {}", ("{}",)
)
ANY = Words(
    "{} alone, whole, on a plain {} background",
    ("light grey", "light blue"),
    (
        "a meadow", "a beach", "a street", "a wooden table", "a living room", "a forest", "snow", "a park", "a kitchen",
        "a desert", "a lake shore", "a garden", "a stone floor", "a city square", "a mountain valley", "a white wall",
    ),
    "in front of {}",
    ("a photo of {}", "a painting of {}", "a digital illustration of {}", "a cartoon drawing of {}"),
)  # fmt: skip
NOUNS = tuple(
    "cat, dog, horse, cow, sheep, pig, rabbit, fox, wolf, bear, panda, lion, tiger, elephant, giraffe, zebra, "
    "monkey, deer, squirrel, mouse, penguin, owl, eagle, parrot, duck, swan, chicken, flamingo, peacock, frog, "
    "turtle, snake, lizard, crocodile, dinosaur, dragon, fish, shark, whale, dolphin, octopus, crab, butterfly, "
    "bee, ladybug, spider, snail, man, woman, boy, girl, knight, astronaut, robot, snowman, teddy bear, doll, "
    "tree, palm tree, cactus, sunflower, rose, tulip, mushroom, pumpkin, apple, banana, orange, lemon, pear, "
    "strawberry, pineapple, watermelon, carrot, tomato, bread, cake, pizza, burger, doughnut, ice cream cone, "
    "egg, cheese, teapot, cup, bottle, wine glass, bowl, vase, lamp, candle, chair, armchair, sofa, table, bed, "
    "bookshelf, clock, mirror, umbrella, backpack, suitcase, hat, shoe, boot, dress, jacket, glasses, crown, "
    "ring, sword, shield, guitar, violin, piano, drum, trumpet, ball, kite, balloon, bicycle, motorcycle, car, "
    "bus, truck, tractor, train, airplane, helicopter, rocket, boat, sailing ship, house, castle, church, "
    "lighthouse, windmill, tent, bridge, bench, fountain, statue, camera, telephone, laptop, television, book, "
    "pencil, scissors, hammer, key, lantern, barrel, treasure chest".split(", ")
)
"""Things that are easily drawn alone."""


def words_of(backbone: Sampling) -> Words:
    """Sentences that a model understands: the miniature has few words."""
    return MINIATURE if getattr(backbone, "nouns", ()) else ANY


def nouns_of(backbone: Sampling, file: Path | None) -> tuple[str, ...]:
    """The nouns of a file, one a line; without one those that the model names, or `NOUNS`. Raises InputError where the
    file cannot be read or holds none."""
    if file is None:
        return getattr(backbone, "nouns", ()) or NOUNS
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as text ({why(error)}): give a file with a noun a line") from None
    if not text.strip():
        raise InputError(f"{file} is empty: write a noun a line")
    return tuple(dict.fromkeys(split_phrases(text)))


def article(noun: str) -> str:
    """A noun with its indefinite article; plurals have none."""
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return noun
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def listed(nouns: Sequence[str]) -> str:
    """ "a cat, a dog and an apple"."""
    each = [article(noun) for noun in nouns]
    return each[0] if len(each) == 1 else f"{', '.join(each[:-1])} and {each[-1]}"
