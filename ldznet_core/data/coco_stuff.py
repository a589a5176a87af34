"""COCO-Stuff (Caesar et al., CVPR 2018): every pixel by one of 171 labels.

The folder holds `labels.txt`, label maps in `annotations/<split>` or `stuffthingmaps/<split>`, and pictures in
`<split>` or `images/<split>`; the split is "train2017" or "val2017".
"""

from pathlib import Path

from ..errors import InputError
from .label_maps import label_map_records, phrases_of
from .records import Records, first_file, first_folder, picture_folder, read_text, text

VOID = 255  # unlabelled pixels


def stuff(root: Path, split: str = "train2017", images: str = "") -> Records:
    """One example for each of the 171 labels in a picture. Unlabelled pixels are ignored.

    `images` is the folder of the pictures where they lie elsewhere. Raises InputError where files are missing or
    damaged.
    """
    names = read_labels(first_file(root, "labels.txt", "annotations/labels.txt"))
    maps = first_folder(root, f"annotations/{split}", f"stuffthingmaps/{split}")
    folder = picture_folder(images, root, split, f"images/{split}")
    # A value is the label's number less one; label 0 is "unlabeled", which the maps hold as 255.
    phrases = phrases_of((number - 1, name) for number, name in names.items() if number)
    return label_map_records(f"coco-stuff {split}", maps, folder, phrases, VOID)


def read_labels(path: Path) -> dict[int, str]:
    """Names by their numbers, from lines such as `12: traffic light`."""
    try:
        rows = (line.partition(":") for line in read_text(path).splitlines() if line.strip())
        return {int(number): text([name], 0) for number, _, name in rows}
    except ValueError:
        raise InputError(f"{path} is not a list of labels such as 12: traffic light; get it again") from None
