"""The folder that people bring: pictures, and masks by names or by a list."""

import logging

import numpy as np
import pytest
from data_fixtures import write_grey, write_lines, write_picture
from PIL import Image

from ldznet_core.data.damage import Damage
from ldznet_core.data.folder import folder, read_mask
from ldznet_core.errors import InputError

LEFT = [[255, 0, 0, 0], [255, 0, 0, 0]]
LEFT_MASK = [[True, False, False, False], [True, False, False, False]]


def ints(mask):
    return mask.astype(int).tolist()


def test_masks_are_found_by_their_names(tmp_path):
    write_picture(tmp_path / "images/b.jpg", 4, 2)
    write_picture(tmp_path / "images/a.png", 4, 2)
    write_grey(tmp_path / "masks/a/red-car.png", LEFT)
    write_grey(tmp_path / "masks/a/a t-shirt.png", [[0] * 4] * 2)
    write_grey(tmp_path / "masks/b__wheel.png", [[0, 128, 255, 255], [0, 0, 0, 0]])
    (tmp_path / "masks/.DS_Store").write_bytes(b"not a picture")
    data = folder(tmp_path, "all")
    assert [(e.phrase, e.picture) for e in data] == [
        ("a t-shirt", str(tmp_path / "images/a.png")),
        ("red car", str(tmp_path / "images/a.png")),
        ("wheel", str(tmp_path / "images/b.jpg")),
    ]
    assert ints(data[1].mask) == [[1, 0, 0, 0], [1, 0, 0, 0]] and data[1].ignore is None
    assert not data[0].mask.any()
    assert ints(data[2].mask) == [[0, 0, 1, 1], [0, 0, 0, 0]] and ints(data[2].ignore) == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert data[2].image.shape == (2, 4, 3) and data[2].image.dtype == np.uint8


def test_a_list_gives_masks_polygons_absent_phrases_captions_and_splits(tmp_path):
    write_picture(tmp_path / "a.png", 4, 2)
    write_grey(tmp_path / "m.png", LEFT)
    write_lines(
        tmp_path / "masks.jsonl",
        {"image": "a.png", "phrase": "cat", "mask": "m.png", "caption": "a cat", "split": "train"},
        {"image": "a.png", "phrase": "dog", "split": "val"},
        {"image": "a.png", "phrase": "cup", "polygons": [[[2, 0], [9, 0], [9, 2], [2, 2]]]},
        "",
    )
    train, val, test = (folder(tmp_path, split) for split in ("train", "val", "test"))
    assert [e.phrase for e in train] == ["cat", "cup"] and train[0].caption == "a cat"
    assert ints(train[0].mask) == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert ints(train[1].mask) == [[0, 0, 1, 1], [0, 0, 1, 1]]  # what lies outside is cut off
    assert [e.phrase for e in val] == [e.phrase for e in test] == ["dog"] and not val[0].mask.any()


@pytest.mark.parametrize("count, held_out", [(1, 1), (5, 1), (20, 2)])
def test_without_splits_a_few_pictures_are_held_out_by_name(tmp_path, count, held_out):
    for number in range(count):
        write_picture(tmp_path / f"images/{number}.png", 4, 2)
        write_grey(tmp_path / f"masks/{number}/cat.png", LEFT)
        write_grey(tmp_path / f"masks/{number}/dog.png", LEFT)
    train, val = folder(tmp_path, "train"), folder(tmp_path, "val")
    names = {e.picture for e in val}
    assert len(names) == held_out and len(val) == 2 * held_out
    assert len(train) == max(2 * (count - held_out), 2)
    assert count == 1 or not names & {e.picture for e in train}


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "row 2 is not what was expected"),
        ("[]", "row 2: expected {"),
        ({"image": "a.png"}, "is not what was expected (KeyError: 'phrase')"),
        ({"image": "a.png", "phrase": " "}, "\"phrase\" must be a text of one line, not ' '"),
        ({"image": "a.png", "phrase": "x", "masks": "m.png"}, "there is no mask, but a key 'masks'"),
        (
            {"image": "a.png", "phrase": "x", "split": "valid"},
            "\"split\" is 'valid'; it must be one of train, val, test",
        ),
        ({"image": "a.png", "phrase": "x", "polygons": [[1, 2]]}, "fewer than three corners"),
        ({"image": "a.png", "phrase": "x", "polygons": "cat"}, "not a list of x, y pairs"),
        ({"image": "a.png", "phrase": "x", "mask": 3}, '"mask" must be a text of one line, not 3'),
    ],
)
def test_a_damaged_row_is_told_and_skipped(tmp_path, caplog, row, message):
    write_picture(tmp_path / "a.png", 4, 2)
    write_lines(tmp_path / "masks.jsonl", {"image": "a.png", "phrase": "cat"}, row)
    data = folder(tmp_path, "all")
    assert len(data) == 1 and data.damaged == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert message in line and str(tmp_path / "masks.jsonl") in line and "\n" not in line


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "lost.png", "phrase": "x"}, "lost.png: there is no such file"),
        ({"image": "text.png", "phrase": "x"}, "text.png: this is not a picture"),
        ({"image": "cut.jpg", "phrase": "x"}, "cut.jpg: the picture is damaged or cut short"),
        ({"image": "a.png", "phrase": "x", "mask": "lost.png"}, "lost.png: there is no such mask"),
        ({"image": "a.png", "phrase": "x", "mask": "text.png"}, "text.png cannot be read as a mask"),
        ({"image": "a.png", "phrase": "x", "mask": "small.png"}, "small.png has 2x1 pixels, but its picture has 4x2"),
        ({"image": "a.png", "phrase": "x", "polygons": [[5, 0, 9, 0, 9, 1]]}, "lies outside its picture of 4x2 pixels"),
    ],
)
def test_a_damaged_item_names_its_file(tmp_path, row, message):
    write_picture(tmp_path / "a.png", 4, 2)
    write_picture(tmp_path / "cut.jpg", 64, 64)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])
    (tmp_path / "text.png").write_text("hello")
    write_grey(tmp_path / "small.png", [[0, 255]])
    write_lines(tmp_path / "masks.jsonl", row)
    with pytest.raises(InputError) as error:
        folder(tmp_path, "all")[0]
    assert message in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_laid_out_in_another_way_is_told_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match="looked for masks.jsonl, annotations.jsonl, masks/NAME/PHRASE.png"):
        folder(tmp_path)
    write_lines(tmp_path / "masks.jsonl")
    with pytest.raises(InputError, match="masks.jsonl is empty"):
        folder(tmp_path)


def test_a_mask_without_a_picture_is_counted(tmp_path, caplog):
    write_picture(tmp_path / "images/a.png", 4, 2)
    write_grey(tmp_path / "masks/a/cat.png", LEFT)
    write_grey(tmp_path / "masks/b/cat.png", LEFT)
    assert len(folder(tmp_path, "all")) == 1
    assert "images holds no b.png or .jpg" in caplog.text


def test_pictures_beside_their_masks_are_found_and_two_of_one_name_are_refused(tmp_path, caplog):
    for name in ("a.png", "b.png", "b.jpg"):
        write_picture(tmp_path / name, 4, 2)
    write_grey(tmp_path / "masks/a/cat.png", LEFT)
    write_grey(tmp_path / "masks/b/cat.png", LEFT)
    (example,) = folder(tmp_path, "all")
    assert example.picture == str(tmp_path / "a.png")
    assert "b.jpg and b.png; rename one with its masks" in caplog.text


def masks_of_every_mode():
    sixteen = Image.fromarray(np.array(LEFT, np.uint16) * 257)
    clear = Image.new("RGBA", (4, 2), (255, 255, 255, 0))  # white paint on a transparent ground
    clear.paste((255, 255, 255, 255), (0, 0, 1, 2))
    turned = Image.fromarray(np.array([[0, 0], [0, 0], [0, 0], [255, 255]], np.uint8))  # to be turned by its tag
    grey = Image.fromarray(np.array(LEFT, np.uint8))
    palette = Image.fromarray(np.array(LEFT, np.uint8) // 255).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    return {
        "grey": grey,
        "RGB": grey.convert("RGB"),
        "one bit": grey.convert("1"),
        "zeros and ones": Image.fromarray(np.array(LEFT, np.uint8) // 255),
        "palette": palette,
        "16 bit": sixteen,
        "transparent": clear,
        "turned": turned,
    }


@pytest.mark.parametrize("name", masks_of_every_mode())
def test_masks_of_every_mode_are_read(tmp_path, name):
    image, exif = masks_of_every_mode()[name], Image.Exif()
    if name == "turned":
        exif[274] = 6
    image.save(tmp_path / "m.png", exif=exif)
    mask, ignore = read_mask(tmp_path / "m.png", (2, 4))
    assert mask.tolist() == LEFT_MASK and ignore is None


def test_pictures_of_every_mode_are_rgb_and_upright(tmp_path):
    write_picture(tmp_path / "grey.jpg", 4, 2, "L")
    write_picture(tmp_path / "clear.png", 4, 2, "RGBA")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (2, 4)).save(tmp_path / "turned.jpg", exif=exif)
    names = ("grey.jpg", "clear.png", "turned.jpg")
    write_lines(tmp_path / "masks.jsonl", *({"image": name, "phrase": "x"} for name in names))
    assert [e.image.shape for e in folder(tmp_path, "all")] == [(2, 4, 3)] * 3


def a_folder_with_lost_pictures(root, sound, lost):
    write_picture(root / "a.png", 4, 2)
    rows = [{"image": "a.png", "phrase": f"sound {n}"} for n in range(sound)]
    write_lines(root / "masks.jsonl", *rows, *({"image": f"lost{n}.png", "phrase": "x"} for n in range(lost)))
    return folder(root, "all")


def test_damaged_items_are_skipped_told_once_and_counted(tmp_path, caplog):
    data, damage = a_folder_with_lost_pictures(tmp_path, 18, 2), Damage()
    for _ in range(2):
        examples = [damage.read(data, index) for index in range(len(data))]
        damage.check()
    assert sum(e is not None for e in examples) == 18
    assert (damage.read_count, damage.damaged) == (40, 4)
    lines = [record.getMessage() for record in caplog.records]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "lost0.png: there is no such file" in lines[0] and "lost1.png" in lines[1]


def test_more_than_one_damaged_item_in_ten_is_an_error_at_the_end_of_a_pass(tmp_path):
    data, damage = a_folder_with_lost_pictures(tmp_path, 17, 3), Damage("my masks")
    for index in range(len(data)):
        damage.read(data, index)
    with pytest.raises(InputError, match="3 of 20 items of my masks are damaged, more than one in ten.*lost2.png"):
        damage.check()


def test_a_data_set_that_is_mostly_damaged_stops_early(tmp_path):
    data, damage = a_folder_with_lost_pictures(tmp_path, 1, 100), Damage()
    with pytest.raises(InputError, match="19 of 20 items"):
        for index in range(len(data)):
            damage.read(data, index)


def test_one_lost_picture_of_a_small_set_is_no_error_but_the_only_one_is(tmp_path):
    data, damage = a_folder_with_lost_pictures(tmp_path, 4, 1), Damage()
    for index in range(len(data)):
        damage.read(data, index)
    damage.check()
    only = Damage()
    assert only.read(data, 4) is None
    with pytest.raises(InputError, match="nothing of the data set can be read: .*lost0.png"):
        only.check()
