"""The build of the bundled miniature: steps that each read the folder of the one before and can be resumed.

`pack` fetches the art and needs the network once. All steps need the extra `build`.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ..backbones.load import load_backbone
from ..backbones.torch_ldm import FileBackbone
from ..checkpoints.bundled import BUNDLED
from ..data.base import Example
from ..decoders.base import Decoder
from ..decoders.files import load_decoder, write_decoder
from ..decoders.unet import KINDS
from ..errors import InputError
from ..evaluation.predictors import by_kind
from ..imaging.images import to_network
from ..imaging.sheets import sheet
from ..training.loop import Plan
from . import evaluation
from .bank import Recipe, bank
from .calibration import calibrate
from .decoders import blend, train_kind, training_data
from .denoiser import train_denoiser, trained_vae
from .dit import COUNTS as DIT_COUNTS
from .dit import export, train_dit
from .drawing import generate
from .grow import grown_light, grown_mask_decoder
from .light import train_light
from .recognise import recognise as name_all
from .recognise import single_things, train_classifier
from .vae import train_vae
from .words import article
from .world import COLOUR_RGB

log = logging.getLogger(__name__)
BUNDLED_KINDS = ("ldznet", "znet")
LIGHT, LIGHT_RATE = "light", 1e-3
DIT_RATE = 1e-3
ADAPTED = {LIGHT: 7e-4, "ldznet": 3e-4}  # decoders that grow, and the rates that they are trained on at
CHECKPOINT, TRANSFORMER = "mini.safetensors", "mini-dit.safetensors"
MUON = 5  # its rate over AdamW's: 12 does as well, 1 learns less than AdamW alone
DRAWING_COUNTS = (0.6, 0.3, 0.1)  # shapes are learnt from single, large things
BLEND = {"ldznet": 0.75, "znet": 0.5, LIGHT: 0.75}  # of the long way, as `benchmarks/blend.py` found best
EVALUATION_SCENES, CALIBRATION_SCENES = 150, 80
CLASSIFIER_EPOCHS = 4
DRAWINGS_EACH = 4
LIMIT = 84_000_000  # bytes of all bundled weights together


@dataclass(frozen=True)
class Settings:
    """How long each step takes and on how much. `size` is the side of the pictures that the autoencoder and the
    denoiser begin with; the step `grow` doubles it."""

    size: int
    concepts: int
    vae_minutes: float
    denoiser_minutes: float
    grow_minutes: float
    decoder_steps: int
    long_steps: int
    light_steps: int
    long_light_steps: int
    adapt_steps: int
    drawing_scenes: int  # for the denoiser
    grow_scenes: int  # for the grown one
    scenes: int  # for everything else
    vae_batch: int
    batch: int
    decoder_batch: int
    learning_rate: float
    decoder_rate: float
    dit_minutes: float
    dit_scenes: int
    dit_batch: int


SETTINGS = {
    "cpu": Settings(
        128, 32, 22, 90, 50, 500, 2500, 3000, 6000, 800, 24_000, 8_000, 6_000, 4, 32, 12, 8e-4, 4e-4, 240, 8_000, 24
    ),
    "cuda": Settings(
        128, 100, 4, 15, 15, 2000, 6000, 20000, 40000, 6000, 60_000, 60_000, 30_000, 16, 256, 96, 1e-3, 5e-4, 20,
        60_000, 256,
    ),
}  # fmt: skip
"""By the kind of device. The first takes hours on two cores; the second was not measured."""


@dataclass(frozen=True)
class Build:
    """Where a build lives and how this run of it goes. `minutes` replaces a step's own length; `stop_after` ends
    this run early, to be resumed."""

    folder: Path
    settings: Settings
    device: str = "cpu"
    minutes: float | None = None
    stop_after: float = math.inf
    resume: bool = False
    seeds: int = 3

    @property
    def pack(self) -> Path:
        return self.folder / "world.zip"

    @property
    def small(self) -> Path:
        """The miniature of the step `denoiser`."""
        return self.folder / "denoiser" / CHECKPOINT

    @property
    def checkpoint(self) -> Path:
        """The miniature that is bundled: the grown one where there is one."""
        grown = self.folder / "grown" / CHECKPOINT
        return grown if grown.is_file() else self.small

    def plan(self, rate: float, minutes: float, ema: float, muon: bool = True) -> Plan:
        return Plan(
            rate, MUON * rate if muon else None, minutes=self.minutes or minutes, stop_after=self.stop_after,
            resume=self.resume, ema=ema, device=self.device,
        )


def pack(build: Build) -> None:
    from .pack import build_pack

    build.folder.mkdir(parents=True, exist_ok=True)
    if build.resume and build.pack.is_file():
        log.info("%s is there already", build.pack)
        return
    build_pack(build.pack, build.folder / "art")


def vae(build: Build) -> None:
    s, folder = build.settings, build.folder / "vae"
    recipe = Recipe(s.size, s.concepts)
    plan = build.plan(1.5e-3, s.vae_minutes, 0.995, muon=False)
    train_vae(build.pack, folder, plan, recipe, s.scenes, s.vae_batch)
    images = np.stack([scene.image for scene in bank(build.pack, recipe, 16, seed=5)])
    network = trained_vae(folder, "cpu")
    with torch.inference_mode():
        again = network.decode(network.encode(to_network(images))).clamp(-1, 1)
    again = ((again.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    pairs = [picture for pair in zip(images, again, strict=True) for picture in pair]
    sheet(pairs, ["picture", "through the autoencoder"] * len(images), build.folder / "vae.png")


def denoiser(build: Build) -> None:
    s, folder = build.settings, build.folder / "denoiser"
    recipe = Recipe(s.size, s.concepts, counts=DRAWING_COUNTS)
    plan = build.plan(s.learning_rate, s.denoiser_minutes, 0.998)
    autoencoder = trained_vae(build.folder / "vae", build.device)
    train_denoiser(build.pack, autoencoder, folder, plan, recipe, s.drawing_scenes, s.batch)
    sample_sheet(load_backbone(folder / CHECKPOINT), build.folder / "samples.png")


def grow(build: Build) -> None:
    """The miniature of the step `denoiser`, for pictures of twice the size: only its UNet changes."""
    s, folder = build.settings, build.folder / "grown"
    small = load_backbone(build.small).model
    recipe = Recipe(2 * small.about["size"], len(small.about["nouns"]), counts=DRAWING_COUNTS)
    plan = build.plan(s.learning_rate, s.grow_minutes, 0.998)
    train_denoiser(build.pack, small.vae, folder, plan, recipe, s.grow_scenes, s.batch, small)
    sample_sheet(load_backbone(folder / CHECKPOINT), build.folder / "samples.png")


def adapt(build: Build) -> None:
    """The bundled decoders that read the UNet, grown with it and trained on. ZNet stays: it reads the latent and the
    text alone, which are what they were."""
    s, folder = build.settings, build.folder / "grown"
    backbone = load_backbone(build.checkpoint)
    unet, size = backbone.model.unet, backbone.model.about["size"]
    data = training_data(build.pack, backbone.model, s.grow_scenes // 2)
    dataset = evaluation.calibration_set(backbone.model.about, build.pack, CALIBRATION_SCENES)
    for kind, rate in ADAPTED.items():
        path, small = folder / f"{kind}.safetensors", load_decoder(decoder_file(build.folder, f"{kind}-blend"))
        plan = replace(build.plan(rate, math.inf, 0.995), steps=s.adapt_steps, warm_up=50)
        if kind == LIGHT:
            train_light(0, backbone, data, path, plan, grown_light(small, unet, size))
        else:
            start = grown_mask_decoder(small, unet)
            train_kind(kind, 0, backbone, data, path, plan, s.decoder_batch, start)
        write_calibrated(backbone, load_decoder(path), dataset, path, grown=True)


def write_calibrated(
    backbone: FileBackbone, decoder: Decoder, dataset: list[Example], path: Path, **about: float | bool
) -> None:
    """Calibrate a decoder and write it; its file says so, and `about`, with how it was trained."""
    training = {**decoder.info.training, **about, "calibration": calibrate(backbone, decoder, dataset)}
    write_decoder(decoder, replace(decoder.info, training=training), path)


def bundled_decoder(build: Build, kind: str) -> Path:
    """The file of a decoder that is bundled: the one that grew, where it did."""
    grown = build.folder / "grown" / f"{kind}.safetensors"
    return grown if grown.is_file() else decoder_file(build.folder, f"{kind}-blend")


def dit(build: Build) -> None:
    """The miniature transformer, beside the autoencoder and the text encoder of the miniature. It draws small
    pictures: those of twice the size have four times the tokens."""
    s = build.settings
    folder, file = build.folder / "dit", build.small.with_name(TRANSFORMER)  # beside what it shares
    model = load_backbone(build.small).model
    size, nouns = model.about["size"], model.about["nouns"]
    recipe = Recipe(size, len(nouns), counts=DIT_COUNTS)
    plan = build.plan(DIT_RATE, s.dit_minutes, 0.995)
    train_dit(build.pack, model, folder, plan, recipe, s.dit_scenes, s.dit_batch)
    export(folder, model, {"size": size, "nouns": nouns}, file)
    sample_sheet(load_backbone(file), build.folder / "samples-dit.png")


def drawing_captions(nouns: list[str]) -> list[str]:
    """One caption a noun, grounds in turn: fixed, so that nothing is picked."""
    grounds = list(COLOUR_RGB)
    return [f"{article(n)} on {article(grounds[i % len(grounds)])} background" for i, n in enumerate(nouns)]


def sample_sheet(backbone: FileBackbone, path: Path) -> None:
    captions = drawing_captions(backbone.model.about["nouns"])[:32]
    sheet(list(generate(backbone, captions, backbone.model.about["size"], seed=0)), captions, path)


def recognise(build: Build) -> None:
    """`recognition.json`: how often a classifier names unseen sprites, and what the miniatures were asked to draw."""
    files = [build.checkpoint, build.small.with_name(TRANSFORMER)]
    backbone, *others = map(load_backbone, filter(Path.is_file, files))
    nouns, size = backbone.model.about["nouns"], backbone.model.about["size"]
    network = train_classifier(build.pack, nouns, size, build.settings.scenes, CLASSIFIER_EPOCHS)
    captions = [caption for caption in drawing_captions(nouns) for _ in range(DRAWINGS_EACH)]
    labels = torch.arange(len(nouns)).repeat_interleave(DRAWINGS_EACH)
    unseen = single_things(build.pack, nouns, ("val", "test"), 500, size, seed=32)
    found = {
        "unseen sprites": asdict(name_all(network, *unseen)),
        "drawings": asdict(name_all(network, generate(backbone, captions, size, seed=500), labels)),
    }
    for other in others:
        pictures = generate(other, captions, other.model.about["size"], seed=500)
        found[f"drawings of {other.name}"] = asdict(name_all(network, pictures, labels))
    (build.folder / "recognition.json").write_text(json.dumps(found, indent=1))
    log.info("recognised: %s", found)


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
    compared_and_bundled(build, KINDS, BUNDLED_KINDS)


def light(build: Build) -> None:
    """Light decoders, as `decoders` makes the others."""
    compared_and_bundled(build, (LIGHT,), (LIGHT,))


def compared_and_bundled(build: Build, compared: Iterable[str], bundled: Iterable[str]) -> None:
    run_jobs(build, [Job(kind, seed) for seed in range(build.seeds) for kind in compared])
    run_jobs(build, [Job(kind, 0, long=True) for kind in bundled])
    backbone = load_backbone(build.small)
    dataset = evaluation.calibration_set(backbone.model.about, build.pack, CALIBRATION_SCENES)
    for kind in bundled:
        first, last = (load_decoder(decoder_file(build.folder, f"{kind}-{end}")) for end in ("0", "long"))
        path, decoder = decoder_file(build.folder, f"{kind}-blend"), blend(first, last, BLEND[kind])
        write_calibrated(backbone, decoder, dataset, path, blend=BLEND[kind])


def run_jobs(build: Build, jobs: list[Job]) -> None:
    """Jobs one after the other on a GPU, one a core elsewhere: small networks gain little from a second thread."""
    if torch.device(build.device).type != "cpu":
        return train_jobs(build, jobs)
    cores = min(len(jobs), os.cpu_count() or 1)
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        for done in [pool.submit(train_jobs, build, jobs[i::cores]) for i in range(cores)]:
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
        if job.kind == LIGHT:
            train_light(job.seed, backbone, data, path, plan)
        else:
            train_kind(job.kind, job.seed, backbone, data, path, plan, s.decoder_batch)


def evaluate(build: Build) -> None:
    """Score decoders on all sets, in the rows that `ldznet evaluate` prints: those of the comparison, on the small
    miniature, in `evaluation.json`, those to be bundled in `bundled.json`."""
    compared = sorted((build.folder / "decoders").glob("*-[0-9].safetensors"))
    chosen = [file for kind in (*BUNDLED_KINDS, LIGHT) if (file := bundled_decoder(build, kind)).is_file()]
    parts = {"evaluation.json": (build.small, compared), "bundled.json": (build.checkpoint, chosen)}
    for name, (checkpoint, files) in parts.items():
        backbone, decoders, rows = load_backbone(checkpoint), by_kind(files), []
        for row in evaluation.table(backbone, decoders, build.pack, evaluation.SETS, EVALUATION_SCENES):
            rows.append(row.as_dict())
            (build.folder / name).write_text(json.dumps(rows, indent=1))


def metrics_of(build: Build, kind: str) -> dict:
    """Scores of a bundled decoder by evaluation set, for its file; nothing before the step `evaluate`."""
    path = build.folder / "bundled.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    return {
        row["set"]: {name: round(row[name]["mean"], 4) for name in ("miou", "iou_fg", "ap")}
        for row in rows
        if row["method"] == kind
    }


def bundle(build: Build) -> None:
    """Put the checkpoint, its tokenizer, the blended decoders and, where there is one, the transformer where `mini` is
    loaded from."""
    sources = {
        CHECKPOINT: build.checkpoint,
        **{f"{kind}.safetensors": bundled_decoder(build, kind) for kind in (*BUNDLED_KINDS, LIGHT)},
    }
    missing = [str(p) for p in sources.values() if not p.is_file()]
    if missing:
        raise InputError(f"nothing to bundle yet: {missing[0]} is missing, run the steps before")
    if (transformer := build.small.with_name(TRANSFORMER)).is_file():
        sources[TRANSFORMER] = transformer
    total = sum(p.stat().st_size for p in sources.values())
    if total > LIMIT:
        raise InputError(f"the weights take {total / 1e6:.1f} MB together, more than {LIMIT / 1e6:.0f} MB")
    BUNDLED.mkdir(parents=True, exist_ok=True)
    for name in {CHECKPOINT, TRANSFORMER} & sources.keys():
        shutil.copyfile(sources.pop(name), BUNDLED / name)
    for name, source in sources.items():
        decoder = load_decoder(source)
        info = replace(decoder.info, metrics=metrics_of(build, decoder.kind))
        write_decoder(decoder, info, BUNDLED / name)
    shutil.copytree(build.small.with_name("tokenizer"), BUNDLED / "tokenizer", dirs_exist_ok=True)
    files = sorted(BUNDLED.glob("*.safetensors"))
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (BUNDLED / "checksums.json").write_text(json.dumps(hashes, indent=1) + "\n")  # install.py checks them
    log.info("bundled %.1f MB", total / 1e6)
