"""A light decoder from a checkpoint alone: it learns from what the checkpoint draws, then once more from its own masks.

The second round learns natural pictures anew: pixels count where attention and the decoder of the first round agree.
Of both rounds the one that is best on nouns and drawings that neither was taught is kept.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.folder import folder as load_folder
from ..decoders.files import load_decoder
from ..imaging.files import replacing
from ..imaging.images import write_png
from ..imaging.sheets import sheet
from ..segment.decoder import Segmenter
from .config import Config
from .drawn import Drawn, read_rows, write_rows
from .recipes import SMALL
from .run import Run, prepared
from .validation import Metrics
from .weak_masks import agreed, edged

log = logging.getLogger(__name__)
SHOWN = 32  # pictures of a kind on a sheet
ROUNDS = 0.7, 0.3  # shares of the minutes
PATIENCE = 8  # validations on nouns and drawings that are held out
PAPER = (236, 190, 214)  # the colour behind cut-outs on a sheet


@dataclass(frozen=True)
class Distillation:
    """`out` is the decoder's file; in a folder of the same name lie the drawings, sheets of them, and both rounds.

    `minutes` of training are for both rounds together; None leaves the length to the recipe.
    """

    drawn: Drawn
    family: str
    out: Path
    metrics: Callable[[], Metrics]
    minutes: float | None = None
    device: str = "cpu"
    resume: bool = False

    @property
    def folder(self) -> Path:
        return self.out.with_suffix("")

    @property
    def second(self) -> Path:
        """The data of the second round."""
        return self.folder / "relabelled"

    def run(self) -> dict:
        """Draw, train, and return what the command prints. Raises InputError for what the user can mend."""
        self.drawn.check()
        if not self.resume:
            for old in (self.drawn.folder, self.second, self.folder / "first", self.folder / "second"):
                shutil.rmtree(old, ignore_errors=True)
        self.drawn.begin(self.resume)
        about = self.drawn.draw()
        sheets = self.sheets()
        results = {"first": self.train("first", self.drawn.folder, ROUNDS[0])}
        if about["natural"]:
            start = results["first"]["file"]
            if not (self.second / "masks.jsonl").is_file():
                self.relabel(start)
            results["second"] = self.train("second", self.second, ROUNDS[1], start)
        chosen = better(results)
        with replacing(self.out) as unfinished:
            shutil.copyfile(results[chosen]["file"], unfinished)
        return {
            "file": str(self.out), "kind": results[chosen]["kind"], "bytes": self.out.stat().st_size,
            "parameters": results[chosen]["parameters"], **about,
            "rounds": {name: result["metrics"] for name, result in results.items()}, "chosen": chosen,
            "sheets": sheets,
        }  # fmt: skip

    def train(self, name: str, data: Path, share: float, start: str | None = None) -> dict:
        """A round of training on the data in a folder, from the weights in the file `start` where one is given."""
        out = self.folder / f"{name}.safetensors"
        small = round(self.drawn.backbone.native_area**0.5) <= SMALL
        settings = {
            "decoder": {"kind": "light"},
            "data": {"data": f'folder:"{data}"', "cache": "features" if small else "latents"},
            "schedule": {"seed": self.drawn.seed, "patience": PATIENCE},
        }
        if small:
            settings["schedule"]["validate"] = 200
        if self.minutes is not None:
            settings["schedule"]["minutes"] = self.minutes * share
        config, dataset = prepared(Config().updated(settings, "distil"), self.drawn.backbone)
        if self.minutes is None:
            steps = {"schedule": {"steps": max(1, round(config.schedule.steps * share))}}
            config = config.updated(steps, "distil")
        backbone, resume = self.drawn.backbone, self.resume
        run = Run(config, backbone, self.family, dataset, out, self.metrics, self.device, resume=resume)
        if self.resume and out.is_file():
            return run.summary()
        if start:
            run.task.decoder.load_state_dict(load_decoder(start).state_dict())
        log.info("training, %s round", name)
        return run.train()

    def relabel(self, file: str) -> None:
        """Masks of natural pictures for the second round: sure where attention and a decoder agree, else unknown."""
        drawn, rows = self.drawn, read_rows(self.drawn.folder / "masks.jsonl")
        segmenter = Segmenter(drawn.backbone, load_decoder(file))
        relabelled = []
        for image, group in groupby(rows, lambda row: row["image"]):
            group = [{**row, "image": f"../{drawn.folder.name}/{image}"} for row in group]
            if "/natural-" not in image:
                relabelled += [{**row, "mask": f"../{drawn.folder.name}/{row['mask']}"} for row in group]
                continue
            picture = drawn.load(image)
            tensor = torch.from_numpy(picture)[None].float() / 255
            own = edged(segmenter.predict(tensor, [row["phrase"] for row in group]), picture)
            for row, mask in zip(group, own, strict=True):
                soft = drawn.load(row["mask"].replace("masks/", "soft/", 1), "L")
                write_png(self.second / row["mask"], Image.fromarray(agreed(soft / 255, mask)))
                relabelled.append(row)
        write_rows(self.second / "masks.jsonl", relabelled)

    # ---- sheets ----

    def sheets(self) -> list[str]:
        """Sheets of what was drawn and cut, and of scenes and natural pictures with their masks."""
        drawn = self.drawn
        pictures, titles = [], []
        for note in drawn.notes("cutouts")[:SHOWN]:
            name = f"cutouts/{note['number']:05}"
            picture = drawn.load(f"{name}-drawn.png")
            pictures += [picture, picture if note["reason"] else pasted(drawn.load(f"{name}.png", "RGBA"), picture)]
            titles += [note["noun"], note["reason"] or "cut out"]
        made = {"cutouts.png": (pictures, titles)}
        examples = load_folder(drawn.folder, "all")
        for kind in ("scenes", "looks", "natural"):
            chosen = [i for i, row in enumerate(examples.records) if f"/{kind}-" in row.image][:SHOWN]
            shown = [examples[i] for i in chosen]
            pairs = [(example.image, lit(example.image, example.mask, example.ignore)) for example in shown]
            titles = [title for example in shown for title in (example.caption, example.phrase)]
            made[f"{kind}.png"] = ([picture for pair in pairs for picture in pair], titles)
        files = []
        for name, (pictures, titles) in made.items():
            if pictures:
                sheet(pictures, titles, self.folder / name)
                files.append(str(self.folder / name))
        return files


def better(results: dict[str, dict]) -> str:
    """The round with the best validation, on the same scenes that are held out; the last of equals."""
    return max(reversed([*results]), key=lambda name: results[name]["metrics"].get("miou", 0.0))


def pasted(rgba: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A cut-out in the middle of a plain picture as large as another."""
    canvas = Image.new("RGB", (like.shape[1], like.shape[0]), PAPER)
    thing = Image.fromarray(rgba)
    canvas.paste(thing, ((canvas.width - thing.width) // 2, (canvas.height - thing.height) // 2), thing)
    return np.asarray(canvas)


def lit(picture: np.ndarray, mask: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    """A picture, uint8 [H, W, 3], dark outside its mask and half so where nobody knows."""
    light = np.where(mask, 1.0, 0.2) if ignore is None else np.select([ignore, mask], [0.5, 1.0], 0.2)
    return (picture * light[..., None]).astype(np.uint8)
