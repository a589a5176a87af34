"""A data set that a checkpoint draws for itself: scenes with exact masks, drawn anew or in looks of their own, and
natural pictures with weak masks.

Every item is made from its number and the seed alone and written whole, its note last. So what was killed goes on where
it stood.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..backbones.base import require
from ..backbones.families.unet import plan
from ..backbones.fingerprint import fingerprint
from ..backbones.queries import Queries
from ..backbones.sampling import Sampling
from ..backbones.step_recorder import StepRecorder
from ..errors import InputError
from ..imaging.files import replacing
from ..imaging.images import write_png
from ..imaging.looks import restyle_picture
from ..segment.attention import AttentionSegmenter
from ..segment.base import PRESENT
from .cutouts import Cutout, compose, cut, matte, relooked
from .shards import tell
from .vocabulary import Words, article, listed
from .weak_masks import edged, unsure

log = logging.getLogger(__name__)
HELD_OUT = 8  # one noun in so many, one drawing of every other noun, and one scene made of those, are for validation
LEAST_NOUNS = 4
NATURAL = 0.25  # natural pictures to a scene
REUSE = 2  # scenes to a drawing that a thing may be cut out of
GROUNDS_OF = 30  # scenes that share a drawn ground, about
REDRAWING = 0.15  # of the time of a drawing on two grounds, about
GROUND_TRIES = 5
EMPTY = 0.01  # share of a plain ground that may stand out
REDRAWN = 150, 250  # timesteps that scenes are noised to
MOVED = 0.1  # mean change of colour of 8 x 8 pixels, of 1, above which a redrawn scene's masks may be wrong
KINDS = "cutouts", "grounds", "scenes", "natural", "looks"
LOOKS = 2  # scenes in random looks to one that is drawn anew: they cost no drawing
THINGS, PICTURES = 0.7, 0.4  # shares of their things, and of whole pictures, that have another look


@dataclass(frozen=True)
class Drawn:
    """`count` scenes, and what they are made of, in `folder`; `steps` are those of one drawing.

    After `draw`, the folder is a data set of the kind `folder`.
    """

    backbone: Sampling
    folder: Path
    nouns: tuple[str, ...]
    words: Words
    count: int
    steps: int = 20
    seed: int = 0

    def check(self) -> None:
        """Raises InputError where the model cannot draw, or the nouns are too few."""
        require(self.backbone, "sample")
        if len(set(self.nouns)) < LEAST_NOUNS:
            raise InputError(f"{len(set(self.nouns))} nouns are too few: name at least {LEAST_NOUNS}, one a line")

    def begin(self, resume: bool) -> None:
        """Note what is drawn. Raises InputError where a run is resumed and the folder holds other drawings."""
        about = {
            "model": fingerprint(self.backbone), "nouns": [*self.nouns], "pictures": self.count, "steps": self.steps,
            "seed": self.seed,
        }  # fmt: skip
        path = self.folder / "about.json"
        if resume and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if other := [key for key in about if about[key] != before.get(key)]:
                raise InputError(
                    f"the drawings in {self.folder} were made with other {' and '.join(other)}: name the same again, "
                    "or start anew with --overwrite"
                )
        write_json(path, about)

    def draw(self) -> dict:
        """Draw what is not there yet, and write the list of all masks. Returns what was drawn and why some was not.

        Raises InputError where nothing could be cut out.
        """
        started, expected = time.monotonic(), self.count * REDRAWING + (NATURAL * self.count + self.ground_count) / 2
        for number, _ in enumerate(self.all("cutouts", self.attempts, self.cutout)):
            minutes = (time.monotonic() - started) / 60 * (self.attempts + expected)
            if number == 0 and minutes > 1:
                log.warning("drawing %d scenes will take about %.0f minutes, before training", self.count, minutes)
        if not self.cutouts["train"]:
            raise InputError(
                f"none of {self.attempts} drawings could be cut out ({told(self.reasons('cutouts'))}): look at "
                f"{self.folder / 'cutouts'}; name other nouns, or more pictures"
            )
        if not self.cutouts["nouns"] and not self.cutouts["drawings"]:
            log.warning("nothing that is held out could be cut out: training goes without validation")
        for _ in self.all("grounds", self.ground_count, self.ground):
            pass
        if not self.notes_of_grounds:
            raise InputError("no empty ground was drawn: name more pictures, or another --seed")
        rows = [row for note in self.all("scenes", self.count, self.scene) for row in note.get("rows", ())]
        if not rows:
            raise InputError(f"no scene could be composed ({told(self.reasons('scenes'))}): name more pictures")
        for kind, each, make in (("looks", LOOKS, self.look), ("natural", NATURAL, self.natural)):
            rows += [row for note in self.all(kind, round(each * self.count), make) for row in note.get("rows", ())]
        write_rows(self.folder / "masks.jsonl", rows)
        return {
            **{
                kind: len({row["image"] for row in rows if f"/{kind}-" in row["image"]})
                for kind in ("scenes", "looks", "natural")
            },
            "cutouts": sum(not note["reason"] for note in self.notes("cutouts")),
            "rejected": {kind: dict(self.reasons(kind)) for kind in KINDS if self.reasons(kind)},
        }

    # ---- numbers ----

    @property
    def attempts(self) -> int:
        """Drawings that things are to be cut out of: each noun twice at least."""
        return max(self.count // REUSE, 2 * len(self.nouns))

    @property
    def ground_count(self) -> int:
        return max(4, self.count // GROUNDS_OF)

    @property
    def side(self) -> int:
        """Of the pictures, in pixels: what the model was trained to draw."""
        return max(64, round(self.backbone.native_area**0.5) // 64 * 64)

    @cached_property
    def held_out(self) -> frozenset[str]:
        order = np.random.default_rng(self.seed).permutation(len(self.nouns))
        return frozenset(self.nouns[i] for i in order[: max(1, len(self.nouns) // HELD_OUT)])

    @cached_property
    def order(self) -> tuple[str, ...]:
        return tuple(str(noun) for noun in np.random.default_rng(self.seed + 1).permutation(self.nouns))

    def generator(self, kind: str, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, KINDS.index(kind), number))

    # ---- items ----

    def all(self, kind: str, count: int, make: Callable[[int], dict]) -> Iterator[dict]:
        """The notes of all items of a kind; those that are missing are made."""
        started, made = time.monotonic(), 0
        for number in range(count):
            path = self.folder / "notes" / kind / f"{number:05}.json"
            if not path.is_file():
                write_json(path, make(number))
                made += 1
                left = (time.monotonic() - started) / made * (count - number - 1)
                tell(f"{kind} {number + 1}/{count}, {left / 60:.0f} min left", number + 1 == count)
            yield json.loads(path.read_text(encoding="utf-8"))

    def notes(self, kind: str) -> list[dict]:
        return [json.loads(path.read_text("utf-8")) for path in sorted((self.folder / "notes" / kind).glob("*.json"))]

    def reasons(self, kind: str) -> Counter:
        """Why items of a kind were not used."""
        return Counter(note["reason"] for note in self.notes(kind) if note.get("reason"))

    def cutout(self, number: int) -> dict:
        """Draw a thing alone on plain grounds, from one noise, and cut it out."""
        noun, rng = self.order[number % len(self.order)], self.generator("cutouts", number)
        style = str(rng.choice(self.words.styles))
        captions = [style.format(self.words.plain.format(article(noun), ground)) for ground in self.words.grounds]
        z, queries = self.sampled(captions, int(rng.integers(2**62)))
        pictures = self.pictures(z)
        prediction = AttentionSegmenter(self.backbone).predict_latent(z[:1], [noun], captured=queries.row(0))
        attention = prediction.present(PRESENT)[0, 0].numpy()
        thing, reason = cut(noun, pictures, attention)
        self.save(pictures[0], f"cutouts/{number:05}-drawn.png")
        if thing:
            write_png(self.folder / "cutouts" / f"{number:05}.png", Image.fromarray(thing.rgba))
        return {"noun": noun, "number": number, "reason": reason}

    def ground(self, number: int) -> dict:
        """Draw a ground for scenes, anew where a thing that nobody asked for stands on a plain one."""
        place, rng = self.words.places[number % len(self.words.places)], self.generator("grounds", number)
        for _ in range(GROUND_TRIES):
            picture = self.pictures(self.sampled([place], int(rng.integers(2**62)))[0])[0]
            thing = matte(picture)
            if thing is None or thing.mean() <= EMPTY:
                self.save(picture, f"grounds/{number:05}.png")
                return {"place": place, "number": number}
        return {"reason": "the ground is not empty"}

    @cached_property
    def cutouts(self) -> dict[str, dict[str, list[int]]]:
        """Numbers of cut-outs by noun: those to train on, of `nouns` held out, and `drawings` of others held out."""
        found = {"train": {}, "nouns": {}, "drawings": {}}
        for note in self.notes("cutouts"):
            if not note["reason"]:
                part = "nouns" if note["noun"] in self.held_out else "train"
                found[part].setdefault(note["noun"], []).append(note["number"])
        for noun, numbers in found["train"].items():
            if len(numbers) > 2:
                kept = -(-len(numbers) // HELD_OUT)
                found["drawings"][noun], found["train"][noun] = numbers[:kept], numbers[kept:]
        return found

    def scene(self, number: int) -> dict:
        """Compose cut-outs on a drawn ground, noise the picture a little and denoise it."""
        rng = self.generator("scenes", number)
        part = ("nouns", "drawings")[number // HELD_OUT % 2] if number % HELD_OUT == 0 else "train"
        if not self.cutouts[part]:
            part = "train"
        things, ground = self.chosen(rng, part)
        composed = compose(rng, things, self.load(f"grounds/{ground['number']:05}.png"))
        if composed is None:
            return {"reason": "the things do not fit"}
        before, masks = composed
        nouns, caption = self.described(things, ground)
        picture = self.redrawn(before, caption, rng)
        if moved(before, picture) > MOVED:
            return {"reason": "redrawing moved too much"}
        split = "train" if part == "train" else "val"
        return {"rows": self.write("scenes", number, picture, caption, nouns, list(masks), split)}

    def look(self, number: int) -> dict:
        """Compose cut-outs in other looks and shapes on a drawn ground; nothing is drawn anew."""
        rng = self.generator("looks", number)
        things, ground = self.chosen(rng, "train")
        things = [relooked(rng, one) if rng.random() < THINGS else one for one in things]
        composed = compose(rng, things, self.load(f"grounds/{ground['number']:05}.png"))
        if composed is None:
            return {"reason": "the things do not fit"}
        picture, masks = composed
        if rng.random() < PICTURES:
            picture = restyle_picture(rng, picture.astype(np.float32)).astype(np.uint8)
        nouns, caption = self.described(things, ground)
        return {"rows": self.write("looks", number, picture, caption, nouns, list(masks), "train")}

    def chosen(self, rng: np.random.Generator, part: str) -> tuple[list[Cutout], dict]:
        """One to three things of different nouns, and the note of a ground."""
        bank = self.cutouts[part]
        nouns = rng.permutation([*bank])[: rng.choice((1, 2, 3), p=(0.2, 0.45, 0.35))]
        things = [Cutout(str(noun), self.load(f"cutouts/{rng.choice(bank[noun]):05}.png", "RGBA")) for noun in nouns]
        return things, self.notes_of_grounds[rng.integers(len(self.notes_of_grounds))]

    def described(self, things: Sequence[Cutout], ground: dict) -> tuple[list[str], str]:
        """The nouns of a scene and its caption."""
        nouns = [thing.noun for thing in things]
        return nouns, f"{listed(nouns)} {self.words.on.format(ground['place'])}".strip()

    @cached_property
    def notes_of_grounds(self) -> list[dict]:
        return [note for note in self.notes("grounds") if "reason" not in note]

    def natural(self, number: int) -> dict:
        """Draw one to three things together; masks are those of the attention captured meanwhile."""
        rng = self.generator("natural", number)
        nouns = [noun for noun in self.order if noun not in self.held_out]
        chosen = [str(noun) for noun in rng.permutation(nouns)[: rng.integers(1, 4)]]
        place = str(rng.choice(self.words.places))
        caption = str(rng.choice(self.words.styles)).format(f"{listed(chosen)} {self.words.on.format(place)}".strip())
        z, queries = self.sampled([caption], int(rng.integers(2**62)))
        picture = self.pictures(z)[0]
        prediction = AttentionSegmenter(self.backbone).predict_latent(z, chosen, captured=queries)
        there = [i for i in range(len(chosen)) if prediction.presence[0, i] >= PRESENT]
        if not there:
            return {"reason": "attention sees none of the nouns"}
        soft = edged(prediction, picture)[there]
        for i, mask in enumerate(soft):
            self.save((mask * 255).round().astype(np.uint8), f"soft/natural-{number:05}/{i}.png")
        masks = [unsure(mask) for mask in soft]
        return {"rows": self.write("natural", number, picture, caption, [chosen[i] for i in there], masks, "train")}

    # ---- pictures ----

    @torch.inference_mode()
    def sampled(self, captions: Sequence[str], seed: int) -> tuple[Tensor, Queries]:
        """Latents [N, C, h, w] of captions drawn from one noise, and the queries of attention meanwhile."""
        side = self.side // 8
        noise = torch.randn(1, self.backbone.channels, side, side, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(self.backbone.device).expand(len(captions), -1, -1, -1)
        return self.denoised(noise, captions, self.backbone.schedule.steps(self.steps))

    def denoised(self, z_t: Tensor, captions: Sequence[str], steps: list[int]) -> tuple[Tensor, Queries]:
        backbone, z = self.backbone, z_t
        recorder = StepRecorder(plan_of=lambda height, width: plan(backbone.unet_config, height, width))
        text = backbone.embed([""] * len(captions) + [*captions])
        for _, latent in backbone.schedule.ddim(lambda z, t: backbone.recorded(recorder, z, t, text), z_t, steps):
            z = latent
        backbone.check_finite([z], steps[-1])
        return z, recorder.queries

    @torch.inference_mode()
    def redrawn(self, picture: np.ndarray, caption: str, rng: np.random.Generator) -> np.ndarray:
        backbone, start = self.backbone, int(rng.integers(*REDRAWN))
        z = backbone.encode(torch.from_numpy(picture)[None].float() / 255)
        z_t, _ = backbone.noised(z, start, int(rng.integers(2**62)))
        steps = backbone.schedule.steps(max(2, round(self.steps * start / 1000)), start)
        return self.pictures(self.denoised(z_t, [caption], steps)[0])[0]

    def pictures(self, z: Tensor) -> np.ndarray:
        """uint8 [N, H, W, 3] of latents."""
        return (self.backbone.decode(z).float() * 255).round().byte().cpu().numpy()

    # ---- files ----

    def load(self, file: str, mode: str = "RGB") -> np.ndarray:
        """A picture of the folder, uint8 [H, W, 3], or [H, W, 4] and [H, W] for modes RGBA and L."""
        with Image.open(self.folder / file) as image:
            return np.array(image.convert(mode))  # a copy: torch warns of arrays that cannot be written to

    def save(self, picture: np.ndarray, file: str) -> None:
        write_png(self.folder / file, Image.fromarray(picture))

    def write(
        self, kind: str, number: int, picture: np.ndarray, caption: str, phrases: Sequence[str],
        masks: Sequence[np.ndarray], split: str,
    ) -> list[dict]:  # fmt: skip
        """Write a picture and the masks of phrases in it, bool or uint8 [H, W]; returns their rows of the list."""
        name, rows = f"{kind}-{number:05}", []
        self.save(picture, f"images/{name}.png")
        for i, (phrase, mask) in enumerate(zip(phrases, masks, strict=True)):
            row = {"image": f"images/{name}.png", "phrase": phrase, "mask": f"masks/{name}/{i}.png"}
            self.save(mask.astype(np.uint8) * 255 if mask.dtype == bool else mask, row["mask"])
            rows.append({**row, "caption": caption, "split": split})
        return rows


def moved(before: np.ndarray, after: np.ndarray) -> float:
    """The mean change of colour between two pictures, uint8 [H, W, 3], in squares of 8 x 8 pixels: 0..1."""
    first, second = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in (before, after))
    return float((F.avg_pool2d(first, 8) - F.avg_pool2d(second, 8)).abs().mean())


def told(reasons: Counter) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())


def write_json(path: Path, value: object) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value), encoding="utf-8")


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
