"""ADE20K's scene parsing (Zhou et al., CVPR 2017): 150 classes.

The folder ADEChallengeData2016 holds `images/<split>`, `annotations/<split>` and `objectInfo150.txt`. The split
is "training" or "validation".
"""

from pathlib import Path

from ..errors import InputError
from .label_maps import label_map_records
from .records import Records, first_file, first_folder, read_text, text

OTHER = 0  # pixels of no class


def ade20k(root: Path, split: str = "training") -> Records:
    """One example for each class in a picture, by the first of its names. Pixels of no class are ignored.

    Raises InputError where files are missing or damaged.
    """
    phrases = read_names(first_file(root, "objectInfo150.txt"))
    maps, pictures = first_folder(root, f"annotations/{split}"), first_folder(root, f"images/{split}")
    return label_map_records(f"ade20k {split}", maps, pictures, phrases, OTHER)


def read_names(path: Path) -> dict[str, tuple[int, ...]]:
    """The classes that each name stands for. Columns are separated by tabs, the names in the last one by commas."""
    phrases: dict[str, tuple[int, ...]] = {}
    try:
        for line in read_text(path).splitlines()[1:]:
            if line.strip():
                columns = line.split("\t")
                name = text(columns[-1].split(","), 0)
                phrases[name] = (*phrases.get(name, ()), int(columns[0]))
    except ValueError:
        raise InputError(f"{path} is not a table of classes, their numbers first; get it again") from None
    return phrases
