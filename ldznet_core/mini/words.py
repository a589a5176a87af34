"""What the miniature world is called: its nouns, which of them clash, and the grammar of captions.

Knows words only; scenes are in world.py.
"""

import re

from .pack import COLOURS

CPU_NOUNS = (
    "cat", "dog", "frog", "penguin", "panda", "turtle", "fish", "butterfly", "ladybug", "tree", "cactus", "sunflower",
    "mushroom", "apple", "banana", "lemon", "strawberry", "watermelon", "pizza", "doughnut", "pumpkin", "house",
    "bus", "car", "rocket", "balloon", "star", "heart", "bell", "crown", "guitar", "umbrella",
)
"""What the bundled miniature learns: simple shapes that most styles draw."""

TEXTURES = ("grass", "brick", "gravel", "leaves", "wood")

# Kinds and their members: a scene never holds both, so that "bird" cannot leave an owl unmarked.
KINDS = {
    "bird": {
        "owl",
        "dove",
        "eagle",
        "duck",
        "penguin",
        "chicken",
        "rooster",
        "turkey",
        "hatching chick",
        "baby chick",
    },
    "chicken": {"rooster", "hatching chick", "baby chick"},
    "dog": {"poodle", "wolf"},
    "cat": {"lion", "tiger", "leopard"},
    "fish": {"blowfish", "carp streamer", "shark"},
    "bug": {"ant", "honeybee", "ladybug", "cricket", "spider", "butterfly"},
    "ladybug": {"bug"},
    "mouse": {"rat", "hamster"},
    "monkey": {"gorilla"},
    "whale": {"dolphin"},
    "cow": {"ox", "water buffalo"},
    "pig": {"boar"},
    "goat": {"ram", "ewe"},
    "ram": {"ewe"},
    "crocodile": {"lizard"},
    "flower": {"sunflower", "rose", "tulip", "hibiscus", "blossom"},
    "blossom": {"hibiscus", "white flower", "rosette", "sunflower"},
    "rose": {"bouquet", "wilted flower"},
    "tree": {"pine decoration"},
    "lemon": {"tangerine"},
    "house": {"houses", "hotel", "school", "hospital", "bank"},
    "bus": {"trolleybus", "minibus"},
    "car": {"taxi", "ambulance"},
    "taxi": {"ambulance", "police car", "racing car"},
    "train": {"locomotive", "metro", "tram", "station", "monorail", "railway car", "tram car"},
    "boat": {"sailboat", "speedboat", "canoe", "ship", "ferry"},
    "ship": {"ferry", "motor boat", "sailboat", "speedboat"},
    "tent": {"circus tent"},
    "castle": {"japanese castle"},
    "bag": {"handbag", "purse", "clutch bag"},
    "handbag": {"purse", "clutch bag"},
    "shoe": {"running shoe", "man's shoe"},
    "pen": {"black nib", "pencil", "crayon"},
    "hat": {"top hat", "graduation cap"},
    "key": {"old key"},
    "telephone": {"telephone receiver"},
    "camera": {"video camera", "movie camera"},
    "sunglasses": {"glasses"},
    "bell": {"wind chime"},
}

# Nouns that take no article in a caption although they do not look like a plural.
_MASS = set(
    "bacon cooking popcorn spaghetti oden sushi dango sake custard fire confetti construction badminton "
    "bowling lipstick tennis".split()
) | {
    "curry rice",
    "cooked rice",
    "shaved ice",
    "ice cream",
    "green salad",
    "high voltage",
    "field hockey",
    "ice hockey",
    "ping pong",
    "fried shrimp",
    "french fries",
}
_VOWEL = re.compile(r"(?!(uni|ewe|euro|one\b|use))[aeiou]")


def clash(a: str, b: str) -> bool:
    """Whether one noun may be said of the other too, for example tree and palm tree."""
    words_a, words_b = a.replace("-", " ").split(), b.replace("-", " ").split()
    return words_a[-1] == words_b[-1] or a in KINDS.get(b, ()) or b in KINDS.get(a, ())


def takes_article(noun: str) -> bool:
    """False for plurals and mass nouns ("grapes", "popcorn")."""
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    return not plural and noun not in _MASS


def article(words: str) -> str:
    """The phrase with its indefinite article: "an apple", "a unicorn"."""
    return f"{'an' if _VOWEL.match(words) else 'a'} {words}"


def plural(noun: str) -> str:
    """The plural of a noun that takes an article: "cats", "buses", "butterflies", "fish"."""
    if noun.endswith(("fish", "sheep", "deer", "shrimp", "squid")):
        return noun
    if noun.endswith("mouse"):
        return noun[:-5] + "mice"
    if noun.endswith("leaf"):
        return noun[:-1] + "ves"
    if noun.endswith("knife"):
        return noun[:-2] + "ves"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "ch", "sh")) or noun in ("potato", "tomato"):
        return noun + "es"
    return noun + "s"


def caption(rng, chosen, background: str) -> str:
    """For example "a red apple and two cats on grass"; at times without colour words or background."""
    parts = []
    coloured = rng.random(len(chosen)) < 0.5
    for i, sprite in enumerate(chosen):
        same = [s for s in chosen if s.noun == sprite.noun]
        if same[0] is not sprite:
            continue
        colours = {s.colour for s in same}
        words = plural(sprite.noun) if len(same) > 1 else sprite.noun
        if coloured[i] and len(colours) == 1 and sprite.colour:
            words = f"{sprite.colour} {words}"
        if len(same) > 1:
            words = f"two {words}"
        elif takes_article(sprite.noun):
            words = article(words)
        parts.append(words)
    if not parts:
        if background in COLOURS:
            return f"{article(background)} background"
        return "a photo" if background == "photo" else background
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    if rng.random() < 0.1:
        return text
    if background in COLOURS:
        return f"{text} on {article(background)} background"
    return f"{text} in a photo" if background == "photo" else f"{text} on {background}"


def vocabulary_words(nouns) -> list[str]:
    """Every word that captions and phrases about these nouns can hold, sorted, without punctuation."""
    words = set("a an and two the on in at left right top bottom background photo".split())
    words.update(COLOURS, TEXTURES)
    for noun in nouns:
        words.update(noun.split())
        if takes_article(noun):
            words.update(plural(noun).split())
    return sorted(words)
