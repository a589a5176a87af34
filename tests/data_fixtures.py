"""Writes small data sets in the formats they are published in."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, width: int, height: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_grey(path: Path, rows: list[list[int]], dtype=np.uint8) -> None:
    """A mask or label map with these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, dtype)).save(path)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, *rows) -> None:
    """A jsonl file; a row that is a text is written as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")


def square(x: int, y: int, width: int = 2, height: int = 2) -> list[list[int]]:
    """The corners of the polygon that covers so many pixels from (x, y) on."""
    right, below = x + width, y + height
    return [[x, y], [right, y], [right, below], [x, below]]


def flat(polygon: list[list[int]]) -> list[int]:
    return [value for corner in polygon for value in corner]


# ---- PhraseCut: VGPhraseCut_v0 ----


def phrasecut_task(image_id: int, phrase: str, *instances: list) -> dict:
    """An entry of refer_<split>.json; an instance is a list of polygons."""
    return {
        "task_id": f"{image_id}__{phrase}",
        "image_id": image_id,
        "ann_ids": list(range(len(instances))),
        "instance_boxes": [[0, 0, 1, 1]] * len(instances),
        "Polygons": list(instances),
        "phrase": phrase,
        "phrase_structure": {},
    }


def write_phrasecut(root: Path, **splits: list[dict]) -> None:
    """Pictures of 6x4 pixels for all tasks."""
    tasks = [task for split in splits.values() for task in split]
    ids = sorted({task["image_id"] for task in tasks})
    rows = [{"image_id": i, "coco_id": None, "width": 6, "height": 4, "url": "", "split": "train"} for i in ids]
    write_json(root / "image_data_split3000.json", rows)
    for image_id in ids:
        write_picture(root / f"images/{image_id}.jpg", 6, 4, "L" if image_id % 2 else "RGB")
    for split, rows in splits.items():
        write_json(root / f"refer_{split}.json", rows)


# ---- COCO ----


def coco_image(number: int, width: int = 6, height: int = 4, **more) -> dict:
    name = f"{number:012d}.jpg"
    return {"id": number, "file_name": name, "width": width, "height": height} | more


def write_coco_pictures(folder: Path, *images: dict) -> None:
    for image in images:
        write_picture(folder / image["file_name"], image["width"], image["height"])


def write_panoptic(root: Path, split: str, categories: dict[int, tuple[str, int]], *pictures) -> None:
    """A picture is its number, its segments {id: (category, iscrowd)} and the ids of its pixels [H][W]."""
    images, annotations = [], []
    for number, segments, ids in pictures:
        ids = np.array(ids)
        image = coco_image(number, ids.shape[1], ids.shape[0])
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
        path = root / f"panoptic_{split}" / f"{number:012d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(path)
        rows = [
            {"id": i, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1], "area": 1}
            for i, (category, crowd) in segments.items()
        ]
        annotations.append({"image_id": number, "file_name": path.name, "segments_info": rows})
        images.append(image)
    write_coco_pictures(root / split, *images)
    names = [{"id": i, "name": name, "isthing": thing} for i, (name, thing) in categories.items()]
    content = {"info": {"year": 2018}, "images": images, "annotations": annotations, "categories": names}
    write_json(root / "annotations" / f"panoptic_{split}.json", content)


# ---- RefCOCO ----


def reference(image_id: int, ann_id, split: str, *sentences: str, **more) -> dict:
    """An entry of refs(...).p, or of grefs(unc).json."""
    rows = [{"raw": text, "sent": text, "sent_id": i, "tokens": text.split()} for i, text in enumerate(sentences)]
    about = {"image_id": image_id, "ann_id": ann_id, "split": split, "ref_id": 1, "category_id": 1, "sentences": rows}
    return about | {"sent_ids": [], "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg"} | more


def write_instances(root: Path, images: list[dict], segmentations: dict[int, tuple[int, object]]) -> None:
    """instances.json, annotations before images; a segmentation is of a picture."""
    annotations = [
        {"id": i, "image_id": image_id, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
        for i, (image_id, segmentation) in segmentations.items()
    ]
    content = {"annotations": annotations, "images": images, "categories": [{"id": 1, "name": "thing"}]}
    write_json(root / "instances.json", content)
