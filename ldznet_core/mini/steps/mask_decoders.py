"""Steps that make the decoders: from several seeds for the comparison, longer for the bundle, and their scores."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from ...backbones.load import load_backbone
from ...backbones.torch_ldm import FileBackbone
from ...data.base import Example
from ...decoders.base import Decoder
from ...decoders.files import load_decoder, write_decoder
from ...decoders.unet import KINDS
from ...evaluation.predictors import Decoded, by_kind
from ...evaluation.tables import score
from ...training.loop import Plan
from .. import evaluation
from ..calibration import calibrate
from ..decoders import Phrases, blend, train_kind, training_data
from ..grow import grown_light, grown_mask_decoder
from ..light import train_light
from .settings import Build

log = logging.getLogger(__name__)
LIGHT = "light"
BUNDLED_KINDS = ("ldznet", "znet", LIGHT)
LIGHT_RATE, GROWN_LIGHT_RATE, GROWN_RATE = 1e-3, 7e-4, 3e-4
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the long way, of which the best is kept
EVALUATION_SCENES, CALIBRATION_SCENES = 150, 80


@dataclass(frozen=True)
class Job:
    """One decoder to train: a seed of the comparison, or (`long`) its longer-trained successor for the bundle."""

    kind: str
    seed: int
    long: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}-long" if self.long else f"{self.kind}-{self.seed}"


def decoder_file(folder: Path, name: str) -> Path:
    """Where a build keeps a decoder: `name` is its kind with a seed, `long` or `blend`."""
    return folder / "decoders" / f"{name}.safetensors"


def decoders(build: Build) -> None:
    """Every kind from every seed, equally long; then the bundled kinds: on from seed 0, and a part of the way back."""
    compared_and_bundled(build, KINDS, [kind for kind in BUNDLED_KINDS if kind in KINDS])


def light(build: Build) -> None:
    """Light decoders, as `decoders` makes the others."""
    compared_and_bundled(build, (LIGHT,), (LIGHT,))


def compared_and_bundled(build: Build, compared: Iterable[str], bundled: Iterable[str]) -> None:
    run_jobs(train_jobs, build, [Job(kind, seed) for seed in range(build.seeds) for kind in compared])
    jobs = [Job(kind, 0, long=True) for kind in bundled]
    run_jobs(train_jobs, build, jobs)
    backbone = load_backbone(build.small)
    dataset = evaluation.calibration_set(backbone.model.about, build.pack, CALIBRATION_SCENES)
    for job in jobs:
        first = load_decoder(decoder_file(build.folder, f"{job.kind}-0"))
        last = load_decoder(decoder_file(build.folder, job.name))
        write_blend(backbone, first, last, dataset, decoder_file(build.folder, f"{job.kind}-blend"))


def adapt(build: Build) -> None:
    """Decoders of the grown miniature, each grown out of one of the small one and trained on."""
    compared = [Job(kind, seed) for seed in range(build.seeds) for kind in (*KINDS, LIGHT)]
    bundled = [Job(kind, 0, long=True) for kind in BUNDLED_KINDS]
    run_jobs(adapt_jobs, build, compared + bundled)
    backbone = load_backbone(build.grown)
    dataset = evaluation.calibration_set(backbone.model.about, build.pack, CALIBRATION_SCENES)
    for job in bundled:
        last = load_decoder(decoder_file(build.grown.parent, job.name))
        first, path = grown_decoder(build, job, backbone), bundled_decoder(build, job.kind)
        write_blend(backbone, first, last, dataset, path, grown=True)


def bundled_decoder(build: Build, kind: str) -> Path:
    """The file of a decoder that is bundled."""
    return build.grown.with_name(f"{kind}.safetensors")


def write_blend(
    backbone: FileBackbone, first: Decoder, last: Decoder, dataset: list[Example], path: Path, **about: bool
) -> None:
    """Write the best decoder on the way from `first` to `last`, calibrated. Its file says which it is, with the mIoU of
    every share that was tried on the data set, and `about`."""
    tried = {share: score_on(backbone, blend(first, last, share), dataset) for share in SHARES}
    share = max(tried, key=tried.get)
    log.info("%s: mIoU by share of the long way: %s", path.stem, tried)
    decoder = blend(first, last, share)
    training = {**last.info.training, **about, "blend": share, "blends tried": tried}
    training["calibration"] = calibrate(backbone, decoder, dataset)
    write_decoder(decoder, replace(last.info, training=training), path)


def score_on(backbone: FileBackbone, decoder: Decoder, dataset: list[Example]) -> float:
    """mIoU of a decoder, 0..1, four digits."""
    (result,) = score(backbone, Decoded(decoder), dataset)
    return round(result.scores.miou, 4)


def run_jobs(work: Callable[[Build, list[Job]], None], build: Build, jobs: list[Job]) -> None:
    """Jobs one after the other on a GPU, one a core elsewhere: small networks gain little from a second thread."""
    if torch.device(build.device).type != "cpu":
        return work(build, jobs)
    cores = min(len(jobs), os.cpu_count() or 1)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        for done in [pool.submit(work, build, jobs[i::cores]) for i in range(cores)]:
            done.result()


def one_thread() -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def train_jobs(build: Build, jobs: list[Job]) -> None:
    s = build.settings
    backbone = load_backbone(build.small)
    data = training_data(build.pack, backbone.model, s.scenes)
    for job in jobs:
        path = decoder_file(build.folder, job.name)
        if build.resume and path.is_file():
            continue
        if job.long and not path.with_suffix("").exists():
            shutil.copytree(decoder_file(build.folder, f"{job.kind}-0").with_suffix(""), path.with_suffix(""))
        if job.kind == LIGHT:
            plan = build.plan(LIGHT_RATE, math.inf, 0.998)
            short, long = s.light_steps, s.long_light_steps
        else:
            plan, short, long = build.plan(s.decoder_rate, math.inf, 0.995), s.decoder_steps, s.long_steps
        if build.minutes is None:
            plan = replace(plan, steps=long if job.long else short)
        plan = replace(plan, resume=plan.resume or job.long)
        train(build, job, backbone, data, path, plan)


def adapt_jobs(build: Build, jobs: list[Job]) -> None:
    s, folder = build.settings, build.grown.parent
    backbone = load_backbone(build.grown)
    data = training_data(build.pack, backbone.model, s.scenes)
    for job in jobs:
        path = decoder_file(folder, job.name)
        if build.resume and path.is_file():
            continue
        plan = build.plan(GROWN_LIGHT_RATE if job.kind == LIGHT else GROWN_RATE, math.inf, 0.995)
        plan = replace(plan, steps=s.adapt_steps if job.long else s.compare_steps, warm_up=50)
        train(build, job, backbone, data, path, plan, grown_decoder(build, job, backbone))


def grown_decoder(build: Build, job: Job, backbone: FileBackbone) -> Decoder:
    """What the decoder of a job starts as on the grown miniature: that of the small one, with a level more."""
    small = load_decoder(decoder_file(build.folder, f"{job.kind}-blend" if job.long else job.name))
    unet = backbone.model.unet
    torch.manual_seed(job.seed)
    if job.kind == LIGHT:
        return grown_light(small, unet, backbone.model.about["size"])
    return grown_mask_decoder(small, unet)


def train(
    build: Build, job: Job, backbone: FileBackbone, data: Phrases, path: Path, plan: Plan, start: Decoder | None = None
) -> None:
    """Train the decoder of a job, a new one or `start`."""
    if job.kind == LIGHT:
        train_light(job.seed, backbone, data, path, plan, start)
    else:
        train_kind(job.kind, job.seed, backbone, data, path, plan, build.settings.decoder_batch, start)


def evaluate(build: Build) -> None:
    """Score the decoders of the grown miniature on all sets, in the rows that `ldznet evaluate` prints: those of the
    comparison in `evaluation.json`, those to be bundled in `bundled.json`."""
    backbone = load_backbone(build.grown)
    compared = sorted((build.grown.parent / "decoders").glob("*-[0-9].safetensors"))
    chosen = [file for kind in BUNDLED_KINDS if (file := bundled_decoder(build, kind)).is_file()]
    for name, files in (("evaluation.json", compared), ("bundled.json", chosen)):
        rows = []
        for row in evaluation.table(backbone, by_kind(files), build.pack, evaluation.SETS, EVALUATION_SCENES):
            rows.append(row.as_dict())
            (build.folder / name).write_text(json.dumps(rows, indent=1))
