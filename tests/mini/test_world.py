"""The miniature world on tiny procedural sprites: no pack, no network."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from ldznet_core.errors import InputError
from ldznet_core.mini.art import npm_pack
from ldznet_core.mini.pack import FORMAT, dominant_colour, noun_of
from ldznet_core.mini.sprites import Background, Pack, Sprite, load_pack, nouns
from ldznet_core.mini.words import article, caption, clash, plural, vocabulary_words
from ldznet_core.mini.world import COLOUR_RGB, Scene, Thing, _choose, compose, visible_masks


def square(noun, colour=None, rgb=(200, 30, 30), side=16, split="train", style="noto"):
    rgba = np.zeros((side, side, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = rgb, 255
    return Sprite(noun, noun, style, split, "object", colour, rgba)


def texture(word, rgb=(10, 200, 10)):
    return Background(word, "train", np.full((40, 50, 3), rgb, np.uint8))


def thing(sprite, left, top, right, bottom, size=20):
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return Thing(sprite, mask, (left, top, right, bottom))


def scene(*things, size=20):
    return Scene(np.zeros((size, size, 3), np.uint8), "", things, "photo")


def test_visible_masks_are_exact_for_overlap():
    alphas = np.array(
        [
            [[1, 1, 1, 0], [1, 1, 1, 0], [0.5, 0.6, 0, 0]],
            [[0, 0, 1, 1], [0, 0.4, 0.6, 1], [0, 0.1, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0.5], [0, 0.1, 0, 0]],
        ],
        np.float32,
    )
    expected = np.array(
        [
            [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],  # 0.6 * 0.9 * 0.9 < 0.5; exactly 0.5 is out
            [[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        bool,
    )
    np.testing.assert_array_equal(visible_masks(alphas), expected)


def test_mask_matches_the_pixels_drawn():
    rng = np.random.default_rng(3)
    for _ in range(20):
        sprites, backgrounds = [square("star", rgb=(250, 240, 0))], [texture("grass", (0, 0, 90))]
        s = compose(rng, sprites, backgrounds, size=32, counts=(1,))
        if s.background == "grass":
            yellow = s.image[..., 0] > 128
            assert (s.things[0].mask == yellow).mean() > 0.99  # soft edges may round either way
        left, top, right, bottom = s.things[0].box
        assert s.things[0].mask[top:bottom, left:right].sum() == s.things[0].mask.sum() > 0
        assert s.things[0].mask[top].any() and s.things[0].mask[:, right - 1].any()


def test_a_portrait_is_large_and_near_the_middle_and_two_things_are_as_ever():
    rng, sprites = np.random.default_rng(4), [square("cat"), square("dog")]
    for _ in range(30):
        left, top, right, bottom = compose(rng, sprites, [], size=64, counts=(1,), portraits=True).things[0].box
        assert 0.6 * 64 <= max(right - left, bottom - top) <= 64
        assert abs(left + right - 64) <= 24 and abs(top + bottom - 64) <= 24
    with_it, without = (
        compose(np.random.default_rng(5), sprites, [], size=64, counts=(0, 1), portraits=flag) for flag in (True, False)
    )
    np.testing.assert_array_equal(with_it.image, without.image)


def test_compose_is_deterministic_and_keeps_its_inputs():
    sprites = [square("cat"), square("dog"), square("apple", "red"), square("apple", "green", (30, 200, 30))]
    before = [s.rgba.copy() for s in sprites]
    backgrounds = [texture("grass"), texture("photo")]

    def run(seed):
        rng = np.random.default_rng(seed)
        return [compose(rng, sprites, backgrounds, size=48) for _ in range(30)]

    for a, b in zip(run(7), run(7), strict=True):
        assert a.caption == b.caption and a.background == b.background
        np.testing.assert_array_equal(a.image, b.image)
        for x, y in zip(a.things, b.things, strict=True):
            assert x.sprite is y.sprite and x.box == y.box
            np.testing.assert_array_equal(x.mask, y.mask)
    assert [s.caption for s in run(7)] != [s.caption for s in run(8)]
    for sprite, old in zip(sprites, before, strict=True):
        np.testing.assert_array_equal(sprite.rgba, old)


def test_scenes_hold_what_the_caption_and_the_vocabulary_say():
    sprites = [square("cat"), square("dog"), square("butterfly"), square("bus", "red"), square("bus", "blue")]
    known = set(vocabulary_words(("cat", "dog", "butterfly", "bus")))
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(300):
        s = compose(rng, sprites, [texture("brick"), texture("photo")], size=40)
        sizes.append(len(s.things))
        texts = [s.caption] + [phrase for phrase, _ in s.phrases()]
        assert {word for t in texts for word in t.replace(",", "").split()} <= known
        for t in s.things:
            assert t.sprite.noun in s.caption or plural(t.sprite.noun) in s.caption
            assert t.mask.any()
        assert s.background in (*COLOUR_RGB, "brick", "photo")
        assert s.image.shape == (40, 40, 3) and s.image.dtype == np.uint8
    assert 60 < sizes.count(1) < 120 and 100 < sizes.count(2) < 170


def test_nouns_are_balanced_whatever_the_number_of_sprites():
    sprites = [square("cat") for _ in range(50)] + [square("bus")]
    rng = np.random.default_rng(1)
    drawn = [compose(rng, sprites, [], size=24, counts=(1,)).things[0].sprite.noun for _ in range(400)]
    assert 150 < drawn.count("bus") < 250


class Fixed:
    """A generator whose random() is a constant: 0 keeps colours and drops the background, 0.3 keeps both."""

    def __init__(self, value):
        self.value = value

    def random(self, n=None):
        return self.value if n is None else np.full(n, self.value)


@pytest.mark.parametrize(
    ("value", "sprites", "background", "expected"),
    [
        (0.3, [square("apple", "red"), square("cat")], "grass", "a red apple and a cat on grass"),
        (
            0.9,
            [square("apple", "red"), square("owl")],
            "orange",
            "an apple and an owl on an orange background",
        ),
        (
            0.3,
            [square("cat"), square("bus"), square("key")],
            "blue",
            "a cat, a bus and a key on a blue background",
        ),
        (0.3, [square("cat")], "photo", "a cat in a photo"),
        (0.0, [square("car", "orange")], "photo", "an orange car"),
        (0.3, [square("bus", "red"), square("bus", "red")], "wood", "two red buses on wood"),
        (0.3, [square("cat", "red"), square("cat"), square("grapes")], "wood", "two cats and grapes on wood"),
    ],
)
def test_caption_grammar(value, sprites, background, expected):
    assert caption(Fixed(value), sprites, background) == expected


def test_articles_and_plurals():
    assert [article(w) for w in ("unicorn", "owl", "ewe", "octopus")] == [
        "a unicorn",
        "an owl",
        "a ewe",
        "an octopus",
    ]
    assert [plural(w) for w in ("butterfly", "bus", "fish", "key", "knife", "mouse", "tomato")] == [
        "butterflies",
        "buses",
        "fish",
        "keys",
        "knives",
        "mice",
        "tomatoes",
    ]


def test_repeated_noun_has_the_union_mask():
    a, b = thing(square("cat"), 1, 1, 5, 5), thing(square("cat"), 12, 12, 18, 19)
    found = dict(scene(a, b).phrases())
    np.testing.assert_array_equal(found["cat"], a.mask | b.mask)
    np.testing.assert_array_equal(found["the cat on the left"], a.mask)
    np.testing.assert_array_equal(found["the cat at the bottom"], b.mask)


def test_ambiguous_phrases_are_left_out():
    red, plain = thing(square("apple", "red"), 1, 8, 5, 12), thing(square("apple"), 14, 8, 18, 12)
    assert {p for p, _ in scene(red, plain).phrases()} == {
        "apple",
        "the apple on the left",
        "the apple on the right",
    }
    green = thing(square("apple", "green"), 3, 8, 8, 12)
    found = dict(scene(red, green).phrases())
    np.testing.assert_array_equal(found["red apple"], red.mask)
    np.testing.assert_array_equal(found["green apple"], green.mask)
    assert not any(p.startswith("the ") for p in found)  # both on the left, none higher
    assert [p for p, _ in scene(red).phrases()] == ["apple", "red apple"]  # one thing has no position


def test_clashing_nouns_never_share_a_scene():
    assert clash("tree", "palm tree") and clash("owl", "bird") and not clash("apple", "pineapple")
    by_noun = {n: [square(n)] for n in ("tree", "palm tree", "christmas tree")}
    rng = np.random.default_rng(0)
    assert all(len(_choose(rng, by_noun, 3)) == 1 for _ in range(20))


def write_pack(path, sprites, backgrounds=()):
    index = {"format": FORMAT, "sprites": [], "backgrounds": []}
    with zipfile.ZipFile(path, "w") as archive:
        for i, s in enumerate(sprites):
            row = {k: getattr(s, k) for k in ("noun", "concept", "style", "split", "group", "colour")}
            index["sprites"].append({"file": f"{i}.webp", **row})
            buffer = io.BytesIO()
            Image.fromarray(s.rgba).save(buffer, "WEBP", lossless=True, exact=True)
            archive.writestr(f"{i}.webp", buffer.getvalue())
        for i, b in enumerate(backgrounds):
            index["backgrounds"].append({"file": f"{i}.jpg", "word": b.word, "split": b.split})
            buffer = io.BytesIO()
            Image.fromarray(b.rgb).save(buffer, "JPEG")
            archive.writestr(f"{i}.jpg", buffer.getvalue())
        archive.writestr("index.json", json.dumps(index))


def test_load_pack_reads_selects_and_orders(tmp_path):
    sprites = [
        square("zebra"),
        square("poodle", split="zero_shot"),
        square("bus"),
        square("cat", style="openmoji"),
    ]
    write_pack(tmp_path / "p.zip", sprites, [texture("grass")])
    pack = load_pack(tmp_path / "p.zip")
    assert isinstance(pack, Pack) and len(pack.sprites) == 4 and pack.backgrounds[0].word == "grass"
    np.testing.assert_array_equal(pack.sprites[0].rgba, sprites[0].rgba)
    assert [s.noun for s in pack.select(nouns=("cat", "bus"), styles=("noto",))] == ["bus"]
    assert [s.noun for s in pack.select(splits=("zero_shot",))] == ["poodle"]
    assert nouns(pack, 3) == ("cat", "bus", "zebra")
    with pytest.raises(InputError, match="4 nouns asked for"):
        nouns(pack, 4)


def test_missing_damaged_and_wrong_packs_are_refused(tmp_path):
    with pytest.raises(InputError, match="no pack at .*ldznet mini build pack"):
        load_pack(tmp_path / "none.zip")
    path = tmp_path / "p.zip"
    write_pack(path, [square("cat", side=64)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole pack .*ldznet mini build pack"):
        load_pack(path)
    middle = bytearray(whole)
    middle[45] ^= 0xFF  # inside the first image: the checksum of the zip catches it
    path.write_bytes(bytes(middle))
    with pytest.raises(InputError, match="not a whole pack .*ldznet mini build pack"):
        load_pack(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("index.json", json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="format 'other'"):
        load_pack(path)


def test_compose_refuses_nothing_to_draw():
    with pytest.raises(InputError, match="no sprites"):
        compose(np.random.default_rng(0), (), ())


def test_impossible_scale_is_refused_and_large_sprites_fit():
    sprites = [square("cat"), square("dog"), square("bus")]
    with pytest.raises(InputError, match="do not fit"):
        compose(np.random.default_rng(0), sprites, (), size=32, counts=(0, 0, 1), scale=(1, 1))
    for seed in range(20):
        assert compose(np.random.default_rng(seed), sprites, (), size=32, counts=(1,), scale=(1, 1)).things


def test_names_and_colours_of_the_pack():
    assert noun_of("green apple") == ("apple", "green")
    assert noun_of("cat face") == ("cat", None) and noun_of("jack-o-lantern") == ("pumpkin", None)
    assert noun_of("woman’s boot") == ("woman's boot", None)
    assert dominant_colour(square("x", rgb=(220, 30, 30)).rgba) == "red"
    assert dominant_colour(square("x", rgb=(40, 90, 210)).rgba) == "blue"
    assert dominant_colour(square("x", rgb=(120, 120, 120)).rgba) is None
    half = square("x", rgb=(220, 30, 30)).rgba.copy()
    half[:8, :, :3] = (40, 90, 210)
    assert dominant_colour(half) is None


def test_a_failing_fetch_says_which_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="noto@1.2.9.*'npm' is not installed"):
        npm_pack("@iconify-json/noto@1.2.9", tmp_path, lambda text: None)
