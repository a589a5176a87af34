"""Tables of scores: methods on a data set, one row each, with mean and standard deviation over training seeds."""

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..data.base import Dataset, Example
from ..data.damage import Damage
from ..errors import InputError, brief, is_out_of_memory
from .batches import Batch, Size, batches
from .metrics import DEFAULT_THRESHOLD, PhraseMetrics, Scores
from .native import NativeMetrics, NativeScores
from .predictors import Answers, Method, Predictor, everything
from .published import Published, rows_of

log = logging.getLogger(__name__)
BASELINE = Method("mark everything", "", (everything,))


@dataclass(frozen=True)
class Result:
    """Scores on a data set, those of the masks as people get them (`native`), and the share of the picture that is
    marked for phrases of things that are not there; None where every phrase names something. `gated_area` is what is
    left of it when only what counts as present is marked, and `presence_auc` how well presence tells the two apart: the
    share of pairs, of a phrase that is there and one that is not, in which the first has more. Both are None where a
    predictor knows of no presence."""

    scores: Scores
    false_area: float | None = None
    gated_area: float | None = None
    presence_auc: float | None = None
    native: NativeScores | None = None


class Mean:
    """A running mean; `value` is None before the first number."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, number: float) -> None:
        self.sum += number
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.sum / self.count if self.count else None


class Tally:
    """Gathers answers batch by batch; keeps sums only. Ignored pixels count as neither marked nor true."""

    def __init__(self) -> None:
        self.metrics, self.native = PhraseMetrics(), NativeMetrics()
        self.area = Mean()  # share of the picture marked for absent phrases
        self.gated: Mean | None = Mean()  # the same, 0 where the phrase does not count as present
        self.presence: dict[bool, list[float]] = {True: [], False: []}  # by whether the phrase names anything

    def add(self, batch: Batch, answers: Answers) -> None:
        originals = [example for picture in batch.originals for example in picture]
        if answers.presence is None:
            self.gated = None
        else:
            for original, presence in zip(originals, answers.presence.tolist(), strict=True):
                self.presence[bool(original.mask.any())].append(presence)
        for example, original, mask, present in zip(
            batch.examples, originals, answers.masks, answers.present, strict=True
        ):
            soft = masked(squashed(mask, example.mask.shape), example)
            if original.mask.any():
                # A thing so small that no pixel of it is left at this size still counts.
                self.metrics.update(soft[None], masked(torch.from_numpy(example.mask), example)[None])
            else:
                area = float((soft > DEFAULT_THRESHOLD).float().mean())
                self.area.add(area)
                if self.gated is not None:
                    self.gated.add(area * present)
            found = masked(stretched(mask, original.mask.shape), original) > DEFAULT_THRESHOLD
            self.native.update(found.numpy() & present, masked(torch.from_numpy(original.mask), original).numpy())

    def result(self) -> Result:
        """Raises InputError where no example named anything."""
        gated = self.gated and self.gated.value
        auc = area_under_curve(self.presence[True], self.presence[False])
        return Result(self.metrics.compute(), self.area.value, gated, auc, self.native.compute())


def area_under_curve(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The share of pairs in which a positive has the higher value, ties half: the area under the ROC curve. None
    without any pair."""
    if not positive or not negative:
        return None
    below = np.sort(np.asarray(negative))
    lower, upper = (np.searchsorted(below, positive, side) for side in ("left", "right"))
    return float((lower + upper).mean() / 2 / len(negative))


def masked(mask: Tensor, example: Example) -> Tensor:
    """A mask [H, W], zero or false at the pixels that do not count."""
    return mask * torch.from_numpy(example.counts)


def squashed(mask: Tensor, size: Size) -> Tensor:
    """A soft mask [h, w] on the grid of the paper's metrics, as CLIPSeg's evaluation resizes it."""
    if mask.shape == size:
        return mask
    return F.interpolate(mask[None, None], size, mode="bilinear", align_corners=True)[0, 0]


def stretched(mask: Tensor, size: Size) -> Tensor:
    """A soft mask [h, w] at the size of the picture."""
    if mask.shape == size:
        return mask
    return F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]


# ---- methods on a data set ----


@dataclass(frozen=True)
class Evaluation:
    """How methods are evaluated. `size` gives the height and width that a picture of some height and width is worked on
    at; without it pictures keep theirs, whose sides are then multiples of 64. `edges` also scores the same masks
    refined. `progress` is told how many examples are done."""

    edges: bool = False
    size: Callable[[int, int], Size] | None = None
    damage: Damage | None = None
    progress: Callable[[int, int], None] | None = None


def score_all(
    backbone: TorchBackbone | None, predictors: Sequence[Predictor], dataset: Dataset, how: Evaluation | None = None
) -> list[tuple[Result, ...] | Exception]:
    """For each predictor its result and, with edges, that of the same masks refined; or the error that ended it. All of
    them read the data set in one pass, so each picture is read and encoded once and none is kept."""
    how = how or Evaluation()
    tallies = [[Tally() for _ in range(1 + how.edges)] for _ in predictors]
    errors: dict[int, Exception] = {}
    done = 0
    for batch in batches(dataset, backbone, how.size, how.damage):
        for number, predictor in enumerate(predictors):
            if number in errors:
                continue
            try:
                answers = predictor(backbone, batch)
                tallies[number][0].add(batch, answers)
                if how.edges:
                    tallies[number][1].add(batch, answers.refined(batch))
            except Exception as error:  # hours of the others' work must not be lost
                errors[number] = memory_error(batch) if is_out_of_memory(error) else error
        done += len(batch.examples)
        if how.progress:
            how.progress(done, len(dataset))
        if len(errors) == len(predictors):
            break
    return [
        errors.get(number) or tuple(tally.result() for tally in group) for number, group in enumerate(tallies)
    ]


def memory_error(batch: Batch) -> InputError:
    height, width = batch.examples[0].mask.shape
    return InputError(f"pictures of {width}x{height} pixels do not fit into memory: choose a smaller --size")


def score(
    backbone: TorchBackbone | None, predictor: Predictor, dataset: Dataset, edges: bool = False
) -> tuple[Result, ...]:
    """The result of a predictor and, with `edges`, that of the same masks refined. Raises InputError where the
    predictor does."""
    (result,) = score_all(backbone, [predictor], dataset, Evaluation(edges))
    if isinstance(result, Exception):
        raise result
    return result


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
        about = {"set": self.dataset, "method": self.method, "text": self.text, "refined": self.refined}
        counts = {"seeds": len(self.results), "samples": self.results[0].scores.samples}
        return about | counts | {name: self.spread(lambda r, name=name: value(r, name)) for name in SCORES}


SCORES = (
    "miou", "iou_fg", "ap", "iou_at_default", "false_area", "gated_area", "presence_auc",
    *(f.name for f in fields(NativeScores)),
)  # fmt: skip


def value(result: Result, name: str) -> float | None:
    for holder in (result.scores, result, result.native):
        if hasattr(holder, name):
            return getattr(holder, name)
    return None


def table(
    backbone: TorchBackbone | None,
    methods: Sequence[Method],
    name: str,
    dataset: Dataset,
    how: Evaluation | None = None,
    published: str | None = None,
) -> Generator[Row | Published, None, list[Exception]]:
    """The rows of a data set: the baseline, the methods (with edges each is followed by that of the same masks refined)
    and the published ones of the table of that name.

    A method that fails is logged and has no row; the generator returns these errors. Where every method fails the first
    error is raised.
    """
    log.info("%s: %d examples", name, len(dataset))
    rows, errors = [], {}
    listed = [BASELINE, *methods]
    results = iter(score_all(backbone, [p for method in listed for p in method.predictors], dataset, how))
    for method in listed:
        seeds = [next(results) for _ in method.predictors]
        if failed := [seed for seed in seeds if isinstance(seed, Exception)]:
            errors[method.name] = failed[0]
            continue
        for refined, of_seeds in enumerate(zip(*seeds, strict=True)):
            if not (refined and method is BASELINE):
                rows.append(Row(name, method.name, method.text, of_seeds, bool(refined)))
    if methods and len(errors) == len(methods):
        raise next(iter(errors.values()))
    for method, error in errors.items():
        if isinstance(error, InputError):
            log.error("%s on %s: %s", method, name, error)
        else:
            log.error("%s on %s: a fault of this program (%s); please report it", method, name, brief(error))
            log.info("what led to it:", exc_info=error)
    yield from rows
    yield from rows_of(published)
    return list(errors.values())
