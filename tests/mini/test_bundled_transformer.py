"""The bundled miniature transformer, by what it draws and finds."""

import json

import pytest
import torch
from studio import PARK, centre, park

from ldznet_core import cli, load_backbone
from ldznet_core.mini.drawing import generate
from ldznet_core.segment.base import PRESENT
from ldznet_core.segment.methods import decoder_free

RED, GREEN, BLUE = range(3)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("mini-dit")


def test_its_attention_finds_things_where_they_are_and_misses_what_is_not_there(backbone):
    found = decoder_free(backbone, "attention").predict(park(), ["panda", "pumpkin", "ladybug", "guitar"])
    panda, pumpkin, ladybug, guitar = found.present(PRESENT)[0]
    assert centre(panda)[0] > 0.5 and centre(panda)[1] < 0.5
    assert centre(pumpkin)[0] < 0.5 < centre(pumpkin)[1]
    assert min(centre(ladybug)) > 0.5
    assert guitar.amax() == 0


@pytest.mark.parametrize("caption, channel", [
    ("a lemon on a red background", RED), ("a panda on a green background", GREEN),
    ("a strawberry on a blue background", BLUE),
])  # fmt: skip
def test_it_draws_the_ground_that_the_caption_says(backbone, caption, channel):
    picture = torch.from_numpy(next(iter(generate(backbone, [caption], 128, seed=0)))).float()
    edge = torch.cat([picture[:8].flatten(0, 1), picture[-8:].flatten(0, 1)])
    assert edge.mean(0).argmax() == channel


def test_the_command_line_reads_its_attention_where_no_method_is_chosen(tmp_path, capsys):
    assert cli.main(["segment", str(PARK), "--model", "mini-dit", "--text", "panda", "--out", str(tmp_path)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["phrases"]
    assert found["presence"] > PRESENT and 0.02 < found["coverage"] < 0.5
    asked = ["generate", "a pumpkin on a blue background", "--model", "mini-dit", "--text", "pumpkin"]
    assert cli.main([*asked, "--out", str(tmp_path)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["phrases"]
    assert 0.02 < found["coverage"] < 0.8
