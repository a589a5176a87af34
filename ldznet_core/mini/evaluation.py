"""The miniature's evaluation sets, and the paper's scores on them.

Every set holds scenes of two and three things, one sample for each noun in a scene; what would score without
understanding a word ("mark all things") is measured beside.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..hosts.ldm import LDMHost
from ..metrics import PhraseMetrics, Scores
from ..networks.decoder import KINDS, MaskDecoder
from ..weights import load_decoder
from .bank import Recipe, bank
from .decoders import Phrases
from .drawing import generated_scenes
from .loop import half_precision
from .vae import to_network
from .world import Scene

log = logging.getLogger(__name__)
COUNTS = (0.0, 0.6, 0.4)
OOD_STYLES = ("fluent-emoji-flat", "fluent-3d", "openmoji", "fluent-emoji-high-contrast")
SEEN, UNSEEN, GENERATED = "seen styles, new scenes", "seen styles, unseen sprites", "drawn by the miniature"
SETS = (SEEN, UNSEEN, GENERATED, *OOD_STYLES)
SEED = 9000
ABSENT_SCENES = 40  # scenes that are also asked for something that is not there


def scenes_of(name: str, host: LDMHost, pack: Path, count: int) -> list[Scene]:
    """The scenes of a set. Backgrounds are never those of training, the generated ones apart."""
    about = host.model.about
    if name == GENERATED:
        return generated_scenes(host, tuple(about["nouns"]), count, about["size"], SEED)
    splits = {SEEN: ("train",), UNSEEN: ("val", "test")}.get(name, ("ood",))
    styles = (name,) if name in OOD_STYLES else None
    recipe = Recipe(about["size"], len(about["nouns"]), styles, splits, ("test",), COUNTS)
    return bank(pack, recipe, count, SEED)


@dataclass(frozen=True)
class Question:
    """One sample: a noun and its mask in scene `scene`."""

    scene: int
    noun: str
    mask: np.ndarray  # bool [S, S]
    others: np.ndarray  # bool [S, S]: everything in the scene, for the baseline


def questions(scenes: list[Scene]) -> list[Question]:
    asked = []
    for i, scene in enumerate(scenes):
        everything = np.logical_or.reduce([t.mask for t in scene.things])
        for noun in dict.fromkeys(t.sprite.noun for t in scene.things):
            mask = np.logical_or.reduce([t.mask for t in scene.things if t.sprite.noun == noun])
            asked.append(Question(i, noun, mask, everything))
    return asked


@torch.inference_mode()
def predictions(
    host: LDMHost, decoder: MaskDecoder, data: Phrases, asked: list[tuple[int, str]], text: str, batch: int = 32
) -> Iterator[Tensor]:
    """Soft masks [b, S, S] of (scene, phrase) pairs, in order, at t = 400 with the default noise, in bfloat16."""
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        index = [i for i, _ in part]
        z = data.z[index].to(host.device)
        given = to_network(data.images[index]).to(host.device) if decoder.kind == "rgbnet" else z
        phrases, captions = [p for _, p in part], [data.captions[i] for i in index]
        context = host.embed(phrases).context
        shown = host.embed({"phrase": phrases, "caption": captions, "empty": [""] * len(part)}[text])
        with half_precision(str(host.device)):
            maps = host.extract(z, shown, decoder.taps, said=text).maps if decoder.taps else None
            logits = decoder(given, context, maps)[:, 0]
        yield logits.float().sigmoid().cpu()


@dataclass(frozen=True)
class Result:
    """Scores on one set, and the share of the picture that is marked when an absent noun is asked for."""

    scores: Scores
    false_area: float


def score(host: LDMHost, decoder: MaskDecoder, data: Phrases, asked: list[Question], text: str) -> Result:
    masks = torch.from_numpy(np.stack([q.mask for q in asked]))
    metrics, done = PhraseMetrics(), 0
    for probs in predictions(host, decoder, data, [(q.scene, q.noun) for q in asked], text):
        metrics.update(probs, masks[done : done + len(probs)])
        done += len(probs)
    nouns = host.model.about["nouns"]
    rng = np.random.default_rng(SEED)
    missing = ([n for n in nouns if n not in data.present[i]] for i in range(len(data.images)))
    absent = [(i, str(rng.choice(names))) for i, names in enumerate(missing) if names][:ABSENT_SCENES]
    marked = [(probs > 0.5).float().mean((1, 2)) for probs in predictions(host, decoder, data, absent, text)]
    return Result(metrics.compute(), float(torch.cat(marked).mean()) if marked else math.nan)


def mark_everything(asked: list[Question]) -> Result:
    """The baseline that ignores the words: all things are marked for every noun."""
    metrics = PhraseMetrics()
    everything = torch.from_numpy(np.stack([q.others for q in asked])).float()
    metrics.update(everything, torch.from_numpy(np.stack([q.mask for q in asked])))
    covered = float(np.mean([q.others.mean() for q in asked]))
    return Result(metrics.compute(), covered)


@dataclass(frozen=True)
class Row:
    """One line of the table: a decoder kind (or the baseline) on a set, one result a training seed."""

    dataset: str
    kind: str
    text: str
    results: tuple[Result, ...]

    def spread(self, read: Callable[[Result], float]) -> tuple[float, float]:
        """Mean and standard deviation over seeds."""
        values = [read(r) for r in self.results]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def as_dict(self) -> dict:
        """Every score as {"mean": ..., "std": ...} over seeds."""
        reads: dict[str, Callable[[Result], float]] = {
            "miou": lambda r: r.scores.miou,
            "iou_fg": lambda r: r.scores.iou_fg,
            "ap": lambda r: r.scores.ap,
            "iou_at_default": lambda r: r.scores.iou_at_default,
            "false_area": lambda r: r.false_area,
        }
        scores = {name: dict(zip(("mean", "std"), self.spread(read), strict=True)) for name, read in reads.items()}
        return {"set": self.dataset, "method": self.kind, "text": self.text, "seeds": len(self.results),
                "samples": self.results[0].scores.samples, **scores}


def by_kind(files: Iterable[Path], kinds: tuple[str, ...] = KINDS) -> dict[str, list[MaskDecoder]]:
    """Decoder files grouped by kind, weakest input first; those of one kind are seeds of it."""
    loaded = [load_decoder(file) for file in files]
    groups = {kind: [d for d in loaded if d.kind == kind] for kind in reversed(KINDS) if kind in kinds}
    return {kind: group for kind, group in groups.items() if group}


def table(
    host: LDMHost, decoders: dict[str, list[MaskDecoder]], pack: Path, sets: tuple[str, ...], count: int,
    texts: tuple[str, ...] = ("phrase",),
) -> Iterator[Row]:
    """Rows set by set; decoders of a kind differ in their training seed. `texts` concerns LD-ZNet's features."""
    for name in sets:
        scenes = scenes_of(name, host, pack, count)
        data, asked = Phrases.of(scenes, host.model), questions(scenes)
        log.info("%s: %d scenes, %d phrases", name, len(scenes), len(asked))
        yield Row(name, "mark everything", "", (mark_everything(asked),))
        for kind, trained in decoders.items():
            for text in texts if kind == "ldznet" else ("",):
                yield Row(name, kind, text, tuple(score(host, d, data, asked, text or "phrase") for d in trained))
