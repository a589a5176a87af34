"""The tokenizer splits text as CLIP's does, and a learned vocabulary holds its words whole."""

import pytest

from ldznet_core.checkpoints.tokenizer import LENGTH, ClipTokenizer, learn, spell

TOKENIZER = learn(["a", "cat", "red", "apple", "on", "grass"])


def words(text: str) -> list[str]:
    names = {i: entry for entry, i in TOKENIZER.vocabulary.items()}
    ids = TOKENIZER.encode(text)
    return [names[i] for i in ids[1 : ids.index(TOKENIZER.end)]]


def test_known_words_are_one_token_each():
    assert words("a red apple on grass") == ["a</w>", "red</w>", "apple</w>", "on</w>", "grass</w>"]


def test_case_and_blanks_do_not_matter_and_punctuation_stands_alone():
    assert words("  A  CAT, ") == ["a</w>", "cat</w>", ",</w>"]


def test_every_text_becomes_77_ids_with_one_start_and_padding():
    for text in ("", "cat", "cat " * 500, "ein süßes Kätzchen 猫"):
        ids = TOKENIZER.encode(text)
        assert len(ids) == LENGTH
        assert ids[0] == TOKENIZER.start and ids[-1] == TOKENIZER.end
        assert all(0 <= i < len(TOKENIZER.vocabulary) for i in ids)


def test_unknown_words_are_spelled():
    assert "".join(words("zebra")) == "zebra</w>"
    assert spell("é") == ("Ã", "©</w>")


def test_a_saved_vocabulary_reads_back(tmp_path):
    TOKENIZER.save(tmp_path)
    again = ClipTokenizer.from_folder(tmp_path)
    assert again.encode("a red zebra") == TOKENIZER.encode("a red zebra")


def test_transformers_reads_the_same_files_and_agrees(tmp_path):
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ("a red apple on grass", "two cats, one zebra!", "it's 42 cats"):
        ids = TOKENIZER.encode(text)
        assert theirs(text)["input_ids"] == ids[: ids.index(TOKENIZER.end) + 1]
