"""Scores of a decoder in training on examples that it does not learn from, and pictures of its masks."""

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.base import Dataset
from ..data.damage import Damage
from ..errors import InputError
from ..imaging.sheets import sheet
from .progress import keep_lines
from .task import DecoderTask, Sample

SHOWN = 6  # examples on a sheet


class Metrics(Protocol):
    """What masks are scored with: `evaluation.metrics.PhraseMetrics`."""

    def update(self, probs: Tensor, masks: Tensor) -> None: ...

    def compute(self): ...


class Validation:
    """Scores on `count` evenly spread examples of a data set: whole pictures at the training size, the first template,
    the middle timestep, and the same noise each time.

    Each call writes a sheet (picture, true mask, found mask) and a line of `validation.jsonl` into `folder`. Raises
    InputError where none of the examples can be read.
    """

    def __init__(
        self, task: DecoderTask, dataset: Dataset, count: int, metrics: Callable[[], Metrics], folder: Path
    ):
        self.task, self.metrics, self.folder = task, metrics, folder
        settings, damage = task.settings, Damage("the validation data")
        condition = max(settings.conditions, key=settings.conditions.get)
        middle = sum(settings.timesteps) // 2
        self.samples: list[Sample] = []
        self.step, self.last = -1, {}  # of the last call
        for number, index in enumerate(np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist()):
            if example := damage.read(dataset, index):
                self.samples.append(task.prepared(example, settings.templates[0], condition, middle, number))
        damage.check()
        if not self.samples:
            raise InputError("there are no validation examples: set validate to 0, or name data that has some")

    def __call__(self, step: int, weights: dict[str, Tensor]) -> tuple[dict[str, float], np.ndarray]:
        """Scores of a decoder with these weights, and the sheet, uint8 [H, W, 3]."""
        metrics, shown, at_once = self.metrics(), [], self.task.settings.at_once
        with with_weights(self.task.decoder, weights), torch.inference_mode():
            for start in range(0, len(self.samples), at_once):
                chunk = self.samples[start : start + at_once]
                masks = self.task.predict(chunk)[0][:, 0].sigmoid().cpu()
                for sample, mask in zip(chunk, masks, strict=True):
                    counts = torch.from_numpy(sample.example.counts)
                    truth = torch.from_numpy(sample.example.mask)
                    metrics.update((mask * counts)[None], (truth & counts)[None])
                    if len(shown) < SHOWN:
                        shown.append((sample, mask.numpy()))
        scores = metrics.compute()
        values = {"miou": scores.miou, "iou_fg": scores.iou_fg, "ap": scores.ap, "iou": scores.iou_at_default}
        values = {name: round(value, 4) for name, value in values.items()}
        picture = self.draw(shown, self.folder / f"masks-{step:06}.png")
        self.step, self.last = step, values
        with open(self.folder / "validation.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        return values, picture

    def draw(self, shown: Sequence[tuple[Sample, np.ndarray]], path: Path) -> np.ndarray:
        pictures, titles = [], []
        for sample, mask in shown:
            example = sample.example
            image = example.image
            if image is None:
                image = (self.task.backbone.decode(example.latent[None].float())[0].cpu() * 255).byte().numpy()
            pictures += [image, grey(example.mask), grey(mask)]
            titles += [sample.phrase, "true mask", "found mask"]
        return sheet(pictures, titles, path, columns=3)


def grey(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] in 0..1 as a picture, uint8 [H, W, 3]."""
    return np.repeat((mask * 255).round().astype(np.uint8)[..., None], 3, axis=2)


@contextmanager
def with_weights(network: nn.Module, weights: dict[str, Tensor]):
    """The network with other parameters, in evaluation mode, while the block runs."""
    own = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def put(values: dict[str, Tensor]) -> None:
        for name, p in network.named_parameters():
            p.copy_(values[name])

    training = network.training
    try:
        put(weights)
        yield network.eval()
    finally:
        put(own)
        network.train(training)


class Best:
    """Keeps track of the best score of a run; after `patience` validations without gain `stale` is true.

    Past scores are read from the run's `validation.jsonl`, so that a resumed run goes on counting.
    """

    def __init__(self, folder: Path, patience: int, first: int):
        self.patience, path = patience, folder / "validation.jsonl"
        keep_lines(path, first)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.score, self.since = -1.0, 0
        for line in lines:
            self.add(json.loads(line)["miou"])

    def add(self, score: float) -> bool:
        """Whether it is the best one so far."""
        better = score > self.score
        self.score, self.since = (score, 0) if better else (self.score, self.since + 1)
        return better

    @property
    def stale(self) -> bool:
        return 0 < self.patience <= self.since
