"""Data as the command line names it: `phrasecut:/data/VGPhraseCut_v0`, or several with the shares of their draws.

A spec is KIND:FOLDER, then options as `?name=value&name=value`, then a share as `=0.3`. Several are joined by commas. A
folder whose name holds a comma, ? or = is put into double quotes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .ade20k import ade20k
from .base import Mix
from .cafe import cafe
from .coco_panoptic import panoptic
from .coco_stuff import stuff
from .folder import folder
from .lvis import lvis
from .phrasecut import phrasecut
from .records import Records
from .refcoco import refcoco

PART = re.compile(
    r"""\s*(?P<kind>[^:,"]*):(?:"(?P<quoted>[^"]*)"|(?P<plain>[^,?="]*))"""
    r"""(?:\?(?P<options>[^,=]+=[^,=&]*(?:&[^,=]+=[^,=&]*)*))?(?:=(?P<share>[^,]*))?\s*(?:,|$)"""
)


@dataclass(frozen=True)
class Kind:
    """A kind of data set: how it is loaded, and by which name of its own each split goes; None where it has none."""

    load: Callable[..., Records]
    train: str | None = "train"
    val: str | None = "val"
    test: str | None = "test"
    options: Mapping[str, str] = field(default_factory=dict)  # of `load`, and what each one says


IMAGES = {"images": "the folder of the pictures, where they lie elsewhere"}
KINDS: dict[str, Kind] = {
    "folder": Kind(folder),
    "phrasecut": Kind(phrasecut),
    "refcoco": Kind(refcoco, options={"partition": "unc, umd or google"} | IMAGES),
    "coco-panoptic": Kind(panoptic, "train2017", "val2017", "val2017", IMAGES),
    "coco-stuff": Kind(stuff, "train2017", "val2017", "val2017", IMAGES),
    "ade20k": Kind(ade20k, "training", "validation", "validation"),
    "lvis": Kind(lvis, "train", "val", "val", IMAGES),
    "cafe": Kind(cafe, None, None, "test", {"annotations": "another of its .json files"} | IMAGES),
    "aigi": Kind(folder, train=None, val=None, test="all"),
}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """One data set of a spec."""

    kind: str
    root: Path
    options: dict[str, str]
    share: float | None

    def __str__(self) -> str:
        return f"{self.kind}:{self.root}"


def load_data(spec: str, split: str) -> Mix:
    """The data that a spec names. `split` is "train", "val" or "test"; an option `split` of a part overrides it.

    Each share is the part of the draws that its data set gets. Data sets without one share what is left by their sizes.
    Raises InputError, in one sentence, where the spec cannot be read, its data are not there or too much is damaged.
    """
    if split not in SPLITS:
        raise InputError(f"the split must be one of {', '.join(SPLITS)}, not {split!r}")
    parts = parse(spec)
    loaded = [_load(part, split) for part in parts]
    return Mix(loaded, _shares(parts, [len(data) for data in loaded]))


def parse(spec: str) -> list[Part]:
    """The data sets of a spec. Raises InputError that says how one is written."""
    parts, at = [], 0
    while at < len(spec.rstrip()):
        match = PART.match(spec, at)
        if match is None:
            raise InputError(
                f"cannot read the data {spec[at:]!r}: write KIND:FOLDER, such as folder:/my/masks, several joined by "
                f"commas, each with a share if you like (=0.3); kinds are {', '.join(KINDS)}"
            )
        parts.append(_part(match))
        at = match.end()
    if not parts:
        raise InputError("no data are named: write KIND:FOLDER, such as folder:/my/masks")
    return parts


def _part(match: re.Match) -> Part:
    kind, text = match["kind"].strip(), match[0].strip().rstrip(",")
    if kind not in KINDS:
        raise InputError(f"{kind!r} in {text!r} is no kind of data; kinds are {', '.join(KINDS)}")
    root = (match["quoted"] or match["plain"] or "").strip()
    if not root:
        raise InputError(f"{text!r} names no folder: write {kind}:FOLDER")
    options = dict(pair.split("=") for pair in match["options"].split("&")) if match["options"] else {}
    known = ("split", *KINDS[kind].options)
    for name in options:
        if name not in known:
            raise InputError(f"{name!r} in {text!r} is no option of {kind}; options are {', '.join(known)}")
    return Part(kind, Path(root).expanduser(), options, _share(match["share"], text))


def _share(number: str | None, text: str) -> float | None:
    if number is None:
        return None
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share < float("inf"):
        raise InputError(
            f"the share {number!r} in {text!r} is no number above 0; put a folder with = in its name in double quotes"
        )
    return share


def _load(part: Part, split: str) -> Records:
    kind, options = KINDS[part.kind], dict(part.options)
    own = options.pop("split", getattr(kind, split))
    if own is None:
        raise InputError(f"{part}: {part.kind} is for evaluation; it has no data for {split}")
    if not part.root.is_dir():
        raise InputError(f"{part}: there is no such folder")
    data = kind.load(part.root, own, **options)
    if not len(data):
        raise InputError(f"{part}: there are no examples for {own}")
    return data


def _shares(parts: list[Part], sizes: list[int]) -> list[float]:
    """Each part's share of the draws; together 1."""
    named = sum(part.share for part in parts if part.share is not None)
    left = sum(size for part, size in zip(parts, sizes, strict=True) if part.share is None)
    if not left:
        return [part.share / named for part in parts]
    if named >= 1:
        first = next(part for part in parts if part.share is None)
        raise InputError(f"the shares add up to {named:g}, which leaves nothing for {first}; give it a share, too")
    return [
        part.share if part.share is not None else (1 - named) * size / left
        for part, size in zip(parts, sizes, strict=True)
    ]
