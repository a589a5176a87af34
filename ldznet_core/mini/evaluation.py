"""The miniature's evaluation sets, and the paper's scores on them.

Every set holds scenes of two and three things, one sample for each noun in a scene; what would score without
understanding a word ("mark all things") is measured beside.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..hosts.ldm import LDMHost
from ..metrics import DEFAULT_THRESHOLD, PhraseMetrics, Scores
from ..networks.decoder import KINDS
from ..training_free import PRESENT
from ..weights import load_decoder
from .bank import Recipe, bank
from .decoders import Phrases
from .drawing import generated_scenes
from .predictors import Answers, Decoded, Method, Predictor
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


def absent(data: Phrases, nouns: Sequence[str]) -> list[tuple[int, str]]:
    """Some scenes, each with a noun that is not in it."""
    rng = np.random.default_rng(SEED)
    missing = ([n for n in nouns if n not in data.present[i]] for i in range(len(data.images)))
    return [(i, str(rng.choice(names))) for i, names in enumerate(missing) if names][:ABSENT_SCENES]


@dataclass(frozen=True)
class Result:
    """Scores on one set, and the share of the picture that is marked when an absent noun is asked for; None where
    every noun is there. `gated_area` is what is left of it when only what has the presence `PRESENT` is marked; None
    where a predictor knows of no presence."""

    scores: Scores
    false_area: float | None
    gated_area: float | None = None


def judge(answers: Answers, asked: list[Question]) -> Result:
    """Scores of answers to `asked` and, after those, to what is absent."""
    metrics, count = PhraseMetrics(), len(asked)
    metrics.update(answers.masks[:count], torch.from_numpy(np.stack([q.mask for q in asked])))
    marked = (answers.masks[count:] > DEFAULT_THRESHOLD).float().mean((1, 2))
    areas = [marked]
    if answers.presence is not None:
        areas.append(marked * (answers.presence[count:] >= PRESENT))
    return Result(metrics.compute(), *(float(area.mean()) if len(area) else None for area in areas))


def score(
    host: LDMHost, predictor: Predictor, data: Phrases, asked: list[Question], edges: bool = False
) -> tuple[Result, ...]:
    """The result of a predictor and, with `edges`, that of the same masks refined."""
    pairs = [(q.scene, q.noun) for q in asked] + absent(data, host.model.about["nouns"])
    answers = predictor(host, data, pairs)
    return tuple(judge(a, asked) for a in ((answers, answers.refined(data, pairs)) if edges else (answers,)))


def mark_everything(asked: list[Question]) -> Result:
    """The baseline that ignores the words: all things are marked for every noun."""
    metrics = PhraseMetrics()
    everything = torch.from_numpy(np.stack([q.others for q in asked])).float()
    metrics.update(everything, torch.from_numpy(np.stack([q.mask for q in asked])))
    covered = float(np.mean([q.others.mean() for q in asked]))
    return Result(metrics.compute(), covered)


@dataclass(frozen=True)
class Row:
    """One line of the table: a method (or the baseline) on a set, one result a training seed."""

    dataset: str
    method: str
    text: str
    results: tuple[Result, ...]
    refined: bool = False

    def spread(self, read: Callable[[Result], float | None]) -> dict[str, float] | None:
        """Mean and standard deviation over seeds; None of what is not known."""
        values = [read(r) for r in self.results]
        if None in values:
            return None
        return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}

    def as_dict(self) -> dict:
        """Every score as {"mean": ..., "std": ...} over seeds."""
        reads: dict[str, Callable[[Result], float | None]] = {
            "miou": lambda r: r.scores.miou,
            "iou_fg": lambda r: r.scores.iou_fg,
            "ap": lambda r: r.scores.ap,
            "iou_at_default": lambda r: r.scores.iou_at_default,
            "false_area": lambda r: r.false_area,
            "gated_area": lambda r: r.gated_area,
        }
        about = {"set": self.dataset, "method": self.method, "text": self.text, "refined": self.refined}
        counts = {"seeds": len(self.results), "samples": self.results[0].scores.samples}
        return about | counts | {name: self.spread(read) for name, read in reads.items()}


def by_kind(
    files: Iterable[Path], kinds: tuple[str, ...] = KINDS, texts: tuple[str, ...] = ("phrase",)
) -> list[Method]:
    """Decoder files as methods, weakest input first; those of one kind are seeds of it. `texts` concerns LD-ZNet's
    features."""
    loaded = [load_decoder(file) for file in files]
    groups = {kind: [d for d in loaded if d.kind == kind] for kind in reversed(KINDS) if kind in kinds}
    return [
        Method(kind, text, tuple(Decoded(d, text or "phrase") for d in seeds))
        for kind, seeds in groups.items() if seeds
        for text in (texts if kind == "ldznet" else ("",))
    ]


def table(
    host: LDMHost, methods: Sequence[Method], pack: Path, sets: tuple[str, ...], count: int, edges: bool = False
) -> Iterator[Row]:
    """Rows set by set; with `edges` each is followed by that of the same masks refined."""
    for name in sets:
        scenes = scenes_of(name, host, pack, count)
        data, asked = Phrases.of(scenes, host.model), questions(scenes)
        log.info("%s: %d scenes, %d phrases", name, len(scenes), len(asked))
        yield Row(name, "mark everything", "", (mark_everything(asked),))
        for method in methods:
            seeds = [score(host, predictor, data, asked, edges) for predictor in method.predictors]
            for refined, results in enumerate(zip(*seeds, strict=True)):
                yield Row(name, method.name, method.text, results, bool(refined))
