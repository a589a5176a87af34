"""Data as the command line names it, mixes and draws."""

from pathlib import Path

import numpy as np
import pytest
from data_fixtures import write_grey, write_picture

from ldznet_core.data.base import Mix, draw
from ldznet_core.data.spec import load_data, parse
from ldznet_core.errors import InputError


def masks(root, pictures):
    for number in range(pictures):
        write_picture(root / f"images/{number}.png", 4, 2)
        write_grey(root / f"masks/{number}/cat.png", [[255, 0, 0, 0]] * 2)
    return root


@pytest.mark.parametrize(
    "spec, folders, shares, options",
    [
        ("folder:/a", ["/a"], [None], [{}]),
        ("folder:/a=0.3, folder:/b", ["/a", "/b"], [0.3, None], [{}, {}]),
        ('folder:"/a, b=1?c"=2', ["/a, b=1?c"], [2.0], [{}]),
        (r"folder:C:\my masks\x=0.5", [r"C:\my masks\x"], [0.5], [{}]),
        ("folder:/a?split=val=0.3,aigi:/b", ["/a", "/b"], [0.3, None], [{"split": "val"}, {}]),
    ],
)
def test_specs_are_read(spec, folders, shares, options):
    parts = parse(spec)
    assert [part.root for part in parts] == [Path(f) for f in folders]
    assert [part.share for part in parts] == shares and [part.options for part in parts] == options


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "no data are named"),
        ("/my/masks", "cannot read the data '/my/masks': write KIND:FOLDER"),
        ("folder:/a,,folder:/b", "cannot read the data"),
        ("masks:/a", "'masks' in 'masks:/a' is no kind of data; kinds are folder"),
        ("folder:", "names no folder"),
        ("folder:/a=0", "the share '0' in 'folder:/a=0' is no number above 0"),
        ("folder:/a=nan", "is no number above 0"),
        ("folder:/a=b", "put a folder with = in its name in double quotes"),
        ("folder:/a?partition=unc", "'partition' in 'folder:/a.partition=unc' is no option of folder"),
    ],
)
def test_specs_that_cannot_be_read_are_told_how_to_write_them(spec, message):
    with pytest.raises(InputError, match=message):
        parse(spec)


def test_a_spec_is_loaded_with_shares_that_add_up(tmp_path):
    small, large = masks(tmp_path / "small", 5), masks(tmp_path / "large", 20)
    data = load_data(f"folder:{small},folder:{large}", "train")
    assert len(data) == 4 + 18 and data.shares == pytest.approx([4 / 22, 18 / 22])
    assert load_data(f"folder:{small}=0.3,folder:{large}", "train").shares == pytest.approx([0.3, 0.7])
    assert load_data(f"folder:{small}=2,folder:{large}=6", "train").shares == pytest.approx([0.25, 0.75])
    assert len(load_data(f"aigi:{small}", "test")) == 5
    assert len(load_data(f"folder:{small}?split=all", "train")) == 5


def test_data_that_are_not_there_are_refused(tmp_path):
    root = masks(tmp_path / "a", 5)
    with pytest.raises(InputError, match="there is no such folder"):
        load_data(f"folder:{tmp_path / 'b'}", "train")
    with pytest.raises(InputError, match="aigi is for evaluation; it has no data for train"):
        load_data(f"aigi:{root}", "train")
    with pytest.raises(InputError, match="the shares add up to 1, which leaves nothing for folder:"):
        load_data(f"folder:{root}=1,folder:{root}", "train")
    with pytest.raises(InputError, match="has no split 'valid'; it has train, val, test and all"):
        load_data(f"folder:{root}?split=valid", "train")
    with pytest.raises(InputError, match="the split must be one of train, val, test, not 'all'"):
        load_data(f"folder:{root}", "all")


def test_a_mix_is_its_parts_in_a_row_drawn_by_their_shares():
    mix = Mix(("ab", "c", "defg"), (0.5, 0.25, 0.25))
    assert [mix[i] for i in range(len(mix))] == list("abcdefg")
    with pytest.raises(IndexError):
        mix[7]
    drawn = draw(mix, np.random.default_rng(0), 4000)
    counts = np.bincount(drawn, minlength=7) / 4000
    assert counts == pytest.approx([0.25, 0.25, 0.25, *[0.0625] * 4], abs=0.03)
    assert drawn == draw(mix, np.random.default_rng(0), 4000)


def test_draws_from_one_set_are_uniform_and_none_come_from_nothing():
    drawn = draw("abcd", np.random.default_rng(0), 4000)
    assert np.bincount(drawn) / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    with pytest.raises(InputError, match="holds no examples"):
        draw("", np.random.default_rng(0), 1)
