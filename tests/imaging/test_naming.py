"""Names that every disk takes, and no two alike."""

import os
from pathlib import Path

import pytest

from ldznet_core.imaging.naming import name_bytes, shorten, slug, unique_names, unique_slugs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red Apple", "red-apple"),
        ("  the dog's ../../etc  ", "the-dog-s-etc"),
        ("Äpfel 苹果", "äpfel-苹果"),
        ("बिल्ली", "बिल्ली"),
        ("…", "phrase"),
        ("", "phrase"),
        ("❤️", "phrase"),
        ("a" * 39 + " bc", "a" * 39),
        ("猫" * 50, "猫" * 40),
        ("𠀀" * 40, "𠀀" * 30),  # four bytes each
    ],
)
def test_slugs_are_safe_file_names(text, expected):
    assert slug(text) == expected


def test_equal_slugs_are_numbered():
    assert unique_slugs(["cat", "Cat!", "dog", "CAT"]) == ["cat", "cat-2", "dog", "cat-3"]
    assert unique_slugs(["cat", "cat", "cat 2"]) == ["cat", "cat-2", "cat-2-2"]
    assert unique_slugs(["overlay"]) == ["overlay-2"]


def test_names_are_cut_between_letters():
    assert shorten("abcdef", 4) == "abcd"
    assert shorten("aéé", 4) == "aé"
    assert shorten("猫猫猫", 7) == "猫猫"
    assert shorten("猫", 1) == "猫"


def test_long_names_are_cut_and_stay_different():
    assert unique_names(["photograph-one", "photograph-two", "c"], room=10) == ["photograph", "photogra-2", "c"]


def test_names_that_some_disks_take_for_one_are_numbered():
    assert unique_names(["A", "a", "é", "e\u0301", "ß", "SS"]) == ["A", "a-2", "é", "e\u0301-2", "ß", "SS-2"]
    assert unique_names(["a-2", "a", "a"]) == ["a-2", "a", "a-3"]


def test_the_longest_name_of_a_folder_can_be_written(tmp_path):
    room = name_bytes(tmp_path / "not" / "there" / "yet")
    assert 100 < room <= 255
    (tmp_path / ("a" * room)).touch()
    assert name_bytes(Path("masks")) == name_bytes(Path.cwd())
    if os.name != "nt":
        assert name_bytes(tmp_path / ("a" * 300)) <= 255
