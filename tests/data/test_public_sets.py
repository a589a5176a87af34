"""Every public data set in the format it is published in: counts, exact masks, absent phrases, and what is damaged."""

import json
import logging
import os
import pickle

import numpy as np
import pytest
from data_fixtures import (
    coco_image,
    flat,
    phrasecut_task,
    reference,
    square,
    write_coco_pictures,
    write_grey,
    write_instances,
    write_json,
    write_panoptic,
    write_phrasecut,
    write_picture,
)

from ldznet_core.data.damage import Damage
from ldznet_core.data.records import json_rows
from ldznet_core.data.spec import load_data
from ldznet_core.errors import InputError


def ints(mask):
    return None if mask is None else mask.astype(int).tolist()


def phrases(data):
    return [data[i].phrase for i in range(len(data))]


def refusal(data, index=0):
    with pytest.raises(InputError) as caught:
        data[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- PhraseCut ----

WINDOW = phrasecut_task(8, "black window", [square(0, 0)], [square(4, 2), square(4, 3, 1, 1)])


def test_phrasecut(tmp_path):
    """A picture of the wrong size is left out, phrases of one picture stand together, and points have no area."""
    tree = phrasecut_task(7, "tree", [square(1, 1, 3, 1)])
    dotted = phrasecut_task(8, "cup", [square(5, 3, 1, 1), [[0, 0]], [[0, 0], [5, 3]]])
    write_phrasecut(
        tmp_path,
        train=[WINDOW, tree, dotted, phrasecut_task(61530, "door", [square(0, 0)])],
        val=[tree],
        test=[dotted],
        miniv=[tree, tree],
    )
    train, val, test = (load_data(f"phrasecut:{tmp_path}", split) for split in ("train", "val", "test"))
    assert phrases(train) == ["black window", "cup", "tree"]
    assert train[0].picture == train[1].picture != train[2].picture
    assert ints(train[0].mask) == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert ints(train[1].mask) == [[0] * 6] * 3 + [[0, 0, 0, 0, 0, 1]]
    assert ints(train[2].mask) == [[0] * 6, [0, 1, 1, 1, 0, 0], [0] * 6, [0] * 6]
    assert train[2].image.shape == (4, 6, 3)  # of a grey picture
    assert (len(val), len(test)) == (1, 1)
    assert len(load_data(f"phrasecut:{tmp_path}?split=miniv", "val")) == 2


# ---- RefCOCO and its kin ----

CAT, DOG = [flat(square(0, 0))], {"size": [4, 6], "counts": [20, 4]}
CAT_MASK = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6, [0] * 6]
DOG_MASK = [[0, 0, 0, 0, 0, 1]] * 4


def write_refcoco(root, *refs, name="refs(unc).p"):
    images = [coco_image(1), coco_image(2)]
    write_instances(root, images, {10: (1, CAT), 11: (1, DOG), 20: (2, CAT)})
    write_coco_pictures(root.parent / "images/mscoco/images/train2014", *images)
    if name.endswith(".p"):
        (root / name).write_bytes(pickle.dumps(list(refs), protocol=2))
    else:
        write_json(root / name, list(refs))
    return root


@pytest.mark.parametrize("name", ["refs(unc).p", "refs(umd).json"])
def test_refcoco(tmp_path, name):
    root = write_refcoco(
        tmp_path / "refcoco",
        reference(1, 10, "train", "left cat", "the cat"),
        reference(2, 20, "train", "cat"),
        reference(1, 11, "train", "dog"),
        reference(1, 11, "val", "dog"),
        reference(1, 10, "testA", "cat"),
        reference(1, 11, "testB", "dog"),
        name=name,
    )
    train, val, test = (load_data(f"refcoco:{root}", split) for split in ("train", "val", "test"))
    assert phrases(train) == ["left cat", "the cat", "dog", "cat"]
    assert ints(train[0].mask) == ints(train[1].mask) == ints(train[3].mask) == CAT_MASK
    assert ints(train[2].mask) == DOG_MASK
    assert len({e.picture for e in map(train.__getitem__, range(3))}) == 1
    assert (len(val), len(test)) == (1, 2)
    assert phrases(load_data(f"refcoco:{root}?split=testB", "test")) == ["dog"]
    pictures = tmp_path / "images/mscoco/images/train2014"
    assert len(load_data(f"refcoco:{root}?partition={name[5:8]}&images={pictures}", "train")) == 4


def test_expressions_in_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = write_refcoco(tmp_path / "refcoco")
    (root / "refs(unc).p").unlink()
    rows = [reference(1, 10, "train", "cat"), reference(2, 20, "val", "cat")]
    parquet.write_table(arrow.Table.from_pylist(rows), root / "refs(unc).parquet")
    (example,) = load_data(f"refcoco:{root}", "train")
    assert ints(example.mask) == CAT_MASK


def test_grefcoco_has_expressions_of_several_things_and_of_none(tmp_path):
    root = write_refcoco(
        tmp_path / "grefcoco",
        reference(1, [10, 11], "train", "both animals", no_target=False),
        reference(1, [-1], "train", "a horse", no_target=True),
        name="grefs(unc).json",
    )
    both, nothing = load_data(f"refcoco:{root}", "train")
    assert ints(both.mask) == [[1, 1, 0, 0, 0, 1]] * 2 + [[0, 0, 0, 0, 0, 1]] * 2
    assert nothing.phrase == "a horse" and not nothing.mask.any()


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_a_pickle_that_calls_anything_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_refcoco(tmp_path / "refcoco", reference(1, 10, "train", "cat"))
    (root / "refs(unc).p").write_bytes(pickle.dumps([Hostile()]))
    with pytest.raises(InputError, match=r"refs\(unc\).p is no list of expressions \(it names .*system"):
        load_data(f"refcoco:{root}", "train")
    assert not (tmp_path / "hacked").exists()
    (root / "refs(unc).p").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # an empty list, noted at a far place
    with pytest.raises(InputError, match=r"refcoco:.*: there are no examples for train"):
        load_data(f"refcoco:{root}", "train")
    (root / "refs(unc).p").write_bytes(pickle.dumps([reference(1, 10, "train", "cat")])[:-30])
    with pytest.raises(InputError, match=r"refs\(unc\).p is no list of expressions"):
        load_data(f"refcoco:{root}", "train")


# ---- COCO ----

CATEGORIES = {1: ("person", 1), 2: ("wall-brick", 0), 3: ("wall-other-merged", 0), 4: ("tree-merged", 0)}


def test_coco_panoptic(tmp_path):
    """Segments of a category are united, crowds and void are ignored, a wall is of any kind."""
    ids = [[300, 300, 70000, 0], [5, 6, 6, 9]]
    segments = {300: (1, 0), 70000: (1, 0), 5: (2, 0), 6: (3, 0), 9: (1, 1)}
    write_panoptic(tmp_path, "train2017", CATEGORIES, (1, segments, ids), (2, {7: (4, 0)}, [[7, 7]]))
    data = load_data(f"coco-panoptic:{tmp_path}", "train")
    assert phrases(data) == ["person", "brick wall", "wall", "tree"]
    assert [ints(e.mask) for e in data] == [
        [[1, 1, 1, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [1, 0, 0, 0]],
        [[0, 0, 0, 0], [1, 1, 1, 0]],
        [[1, 1]],
    ]
    assert ints(data[0].ignore) == [[0, 0, 0, 1], [0, 0, 0, 1]] and data[3].ignore is None
    with pytest.raises(InputError, match="has no file panoptic_val2017.json or annotations/panoptic_val2017.json"):
        load_data(f"coco-panoptic:{tmp_path}", "val")


def write_stuff(root, **maps):
    (root / "annotations").mkdir(parents=True)
    (root / "labels.txt").write_text("0: unlabeled\n1: person\n2: traffic light\n3: wall-brick\n4: wall-other\n")
    for name, labels in maps.items():
        write_grey(root / f"annotations/val2017/{name.lstrip('m')}.png", labels)
        write_picture(root / f"images/val2017/{name.lstrip('m')}.jpg", len(labels[0]), len(labels))
    return root


def test_coco_stuff(tmp_path, monkeypatch):
    root = write_stuff(tmp_path, m01=[[0, 0, 255], [2, 3, 3]], m02=[[1, 1]])
    write_grey(root / "annotations/val2017/01_labelTrainIds.png", [[77]])  # other programs put theirs beside
    for _ in range(2):  # from the maps, then from the index
        data = load_data(f"coco-stuff:{root}", "val")
        assert phrases(data) == ["person", "brick wall", "wall", "traffic light"]
        assert [ints(e.mask) for e in data] == [
            [[1, 1, 0], [0, 0, 0]],
            [[0, 0, 0], [1, 0, 0]],
            [[0, 0, 0], [1, 1, 1]],
            [[1, 1]],
        ]
        assert ints(data[0].ignore) == [[0, 0, 1], [0, 0, 0]] and data[3].ignore is None
        monkeypatch.setattr("ldznet_core.data.label_maps._values", lambda path: pytest.fail("it was read before"))


def test_a_label_map_that_changed_is_read_again_and_a_broken_index_is_no_obstacle(tmp_path):
    root = write_stuff(tmp_path, m01=[[0, 0]], m02=[[1, 1]])
    assert phrases(load_data(f"coco-stuff:{root}", "val")) == ["person", "traffic light"]
    (root / "annotations/val2017/classes_in_pictures.json").write_text("[")
    assert phrases(load_data(f"coco-stuff:{root}", "val")) == ["person", "traffic light"]
    write_grey(root / "annotations/val2017/02.png", [[0, 1]])
    assert phrases(load_data(f"coco-stuff:{root}", "val")) == ["person", "person", "traffic light"]


def test_damaged_label_maps(tmp_path, caplog):
    maps = {f"m{n:02}": [[0, 0]] for n in range(20)}
    root = write_stuff(tmp_path, **maps)
    (root / "annotations/val2017/03.png").write_bytes(b"hello")
    write_grey(root / "annotations/val2017/05.png", [[0, 9]])
    data = load_data(f"coco-stuff:{root}", "val")
    assert len(data) == 18 and data.parts[0].damaged == 2
    assert "03.png cannot be read as a label map" in caplog.text
    assert "05.png holds the class 9, which has no name" in caplog.text
    write_grey(root / "annotations/val2017/07.png", [[0, 9]])
    with pytest.raises(InputError, match="3 of 20 items of coco-stuff val2017 are damaged, more than one in ten"):
        load_data(f"coco-stuff:{root}", "val")
    write_picture(root / "images/val2017/00.jpg", 9, 9)
    assert "00.jpg has 9x9 pixels, but its annotations are for 2x1" in refusal(data)


def test_ade20k(tmp_path):
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.2\t11664\t1172\t1\twall\n2\t0.1\t6046\t612\t0\tcar, auto, motorcar\n"
    )
    write_grey(tmp_path / "annotations/training/ADE_train_00000001.png", [[0, 1, 2, 2]])
    write_picture(tmp_path / "images/training/ADE_train_00000001.jpg", 4, 1)
    wall, car = load_data(f"ade20k:{tmp_path}", "train")
    assert (wall.phrase, ints(wall.mask)) == ("wall", [[0, 1, 0, 0]])
    assert (car.phrase, ints(car.mask), ints(car.ignore)) == ("car", [[0, 0, 1, 1]], [[1, 0, 0, 0]])
    with pytest.raises(InputError, match="has no folder annotations/validation"):
        load_data(f"ade20k:{tmp_path}", "val")


def test_lvis(tmp_path):
    """Absent nouns are verified; nouns that are not outlined exhaustively are left out."""
    url = "http://images.cocodataset.org/val2017/000000000001.jpg"
    image = coco_image(1, coco_url=url, neg_category_ids=[3], not_exhaustive_category_ids=[2])
    categories = [
        {"id": 1, "name": "apple", "synonyms": ["apple_(fruit)"]},
        {"id": 2, "name": "cup", "synonyms": ["cup"]},
        {"id": 3, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"]},
    ]
    rows = [(1, CAT), (2, CAT), (1, [flat(square(4, 2))])]
    annotations = [{"id": i, "image_id": 1, "category_id": c, "segmentation": s} for i, (c, s) in enumerate(rows)]
    content = {"annotations": annotations, "images": [image], "categories": categories}
    write_json(tmp_path / "lvis_v1_train.json", content)
    write_picture(tmp_path / "val2017/000000000001.jpg", 6, 4)
    apple, can = load_data(f"lvis:{tmp_path}", "train")
    assert (apple.phrase, can.phrase) == ("apple", "aerosol can")
    assert ints(apple.mask) == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert not can.mask.any() and can.picture == apple.picture


def write_cafe(root, annotations):
    name = coco_image(1)["file_name"]
    images = [
        coco_image(1, text_input="suitcase", edit_type="SM"),
        coco_image(1000001, text_input="giraffe", edit_type="SM", fp_source_id=1, file_name=name),
    ]
    write_json(root / "CAFEval2026_annotations.json", {"images": images, "annotations": annotations})
    write_picture(root / "CAFEval2026_imgs" / name, 6, 4)


def test_cafe(tmp_path):
    rle = {"size": [4, 6], "counts": "d04"}
    write_cafe(tmp_path, [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle}])
    right, misleading = load_data(f"cafe:{tmp_path}", "test")
    assert (right.phrase, misleading.phrase) == ("suitcase", "giraffe") and right.picture == misleading.picture
    assert ints(right.mask) == DOG_MASK and not misleading.mask.any()
    with pytest.raises(InputError, match="cafe is for evaluation; it has no data for train"):
        load_data(f"cafe:{tmp_path}", "train")


def test_a_phrase_whose_annotation_is_damaged_does_not_seem_absent(tmp_path, caplog):
    write_cafe(tmp_path, [{"id": 1, "image_id": 1, "segmentation": [[1, 2]]}, {"image_id": 2, "segmentation": CAT}])
    data = load_data(f"cafe:{tmp_path}", "test")
    assert "row 3: a polygon has fewer than three corners" in caplog.text
    assert "'suitcase': one of its annotations is damaged" in refusal(data)


# ---- damage ----


def test_damaged_rows_and_pictures_of_phrasecut_are_counted(tmp_path, caplog):
    """Two rows in forty are damaged, then a picture, one of another size and a phrase outside its picture."""
    tasks = [phrasecut_task(n, f"thing {n}", [square(0, 0)]) for n in range(40)]
    tasks[7]["Polygons"] = [[[[0, 0], ["x", 1], [2, 2]]]]
    del tasks[8]["phrase"]
    tasks[9]["Polygons"] = [[square(7, 0)]]
    write_phrasecut(tmp_path, train=tasks)
    (tmp_path / "images/1.jpg").write_bytes((tmp_path / "images/1.jpg").read_bytes()[:-40])
    (tmp_path / "images/2.jpg").unlink()
    write_picture(tmp_path / "images/3.jpg", 5, 4)
    data, damage = load_data(f"phrasecut:{tmp_path}", "train"), Damage()
    assert len(data) == 38 and data.parts[0].damaged == 2
    with pytest.raises(InputError, match="4 of 38 items"):
        for index in range(len(data)):
            damage.read(data, index)
        damage.check()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for line, message in zip(
        lines,
        [
            "refer_train.json, row 8: a polygon is not a list of x, y pairs",
            "refer_train.json, row 9 is not what was expected (KeyError: 'phrase'); mend it",
            "1.jpg: the picture is damaged or cut short",
            "2.jpg: there is no such file",
            "3.jpg has 5x4 pixels, but its annotations are for 6x4",
            "9.jpg, 'thing 9': a polygon lies outside its picture of 6x4 pixels",
        ],
        strict=True,
    ):
        assert message in line and "\n" not in line


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "refer_train.json is empty; get it again"),
        ("[]", "refer_train.json holds no list with rows in it"),
        ('{"a": 1}', "refer_train.json holds no list with rows in it"),
        ("3", "refer_train.json holds neither a list nor an object"),
        ('[{"image_id": 1, "Poly', "refer_train.json is damaged or cut short at character 1"),
        ('[{"image_id": 1}, 5]', "2 of 2 items of .*refer_train.json are damaged, more than one in ten"),
    ],
)
def test_annotation_files_that_are_empty_or_of_another_shape(tmp_path, content, message):
    write_phrasecut(tmp_path, train=[WINDOW])
    (tmp_path / "refer_train.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_data(f"phrasecut:{tmp_path}", "train")


@pytest.mark.parametrize(
    "kind", ["folder", "phrasecut", "refcoco", "coco-panoptic", "coco-stuff", "ade20k", "lvis", "cafe"]
)
def test_an_empty_folder_is_told_what_is_missing(tmp_path, kind):
    with pytest.raises(InputError) as caught:
        load_data(f"{kind}:{tmp_path}", "test")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_json_is_read_row_by_row_in_any_layout(tmp_path):
    content = {"info": {"a": [1]}, "images": [{"id": "ü"}, [2]], "n": 3, "annotations": [], "last": ["]", 1.5, None]}
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert list(json_rows(tmp_path / "a.json")) == [
            ("images", {"id": "ü"}),
            ("images", [2]),
            ("last", "]"),
            ("last", 1.5),
            ("last", None),
        ]


def test_masks_are_bool_and_pictures_are_rgb(tmp_path):
    write_phrasecut(tmp_path, train=[WINDOW])
    (example,) = load_data(f"phrasecut:{tmp_path}", "train")
    assert example.mask.dtype == bool and example.image.dtype == np.uint8 and example.image.shape == (4, 6, 3)
