"""One training run from a configuration: data, cache, decoder, training, validation, and the file at its end."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..backbones.fingerprint import fingerprint
from ..backbones.recording import tapped
from ..data.base import Dataset
from ..data.spec import load_data
from ..decoders.base import DecoderInfo
from ..decoders.files import read_about, write_decoder
from ..errors import InputError, is_out_of_memory
from ..imaging.files import replacing
from .cache import LatentCache
from .config import BLOCKS, Config, read_toml, to_toml
from .features import Draws, FeatureCache
from .hardware import compile_on_gpu
from .loop import Moment, Plan, train
from .processes import Processes
from .progress import Progress, out_of_memory
from .recipes import RECIPES, SMALL, completed
from .task import DecoderTask, Settings
from .validation import Best, Metrics, Validation, with_weights

log = logging.getLogger(__name__)
# Settings that change how a run goes, not what it computes: they may differ when it is resumed.
FREE = {"at_once", "checkpointing", "cache_folder", "steps", "minutes", "validate", "validation", "patience"}


@dataclass(frozen=True)
class Run:
    """`out` is the decoder's file; beside it, in a folder of the same name, lie checkpoint, configuration, losses,
    validation scores and sheets of masks. `config` must be complete (`prepared`)."""

    config: Config
    backbone: TorchBackbone
    family: str
    dataset: Dataset
    out: Path
    metrics: Callable[[], Metrics]
    device: str = "cpu"
    processes: Processes = Processes()
    resume: bool = False

    @property
    def folder(self) -> Path:
        return self.out.with_suffix("")

    @property
    def best_file(self) -> Path:
        return self.folder / "best.safetensors"

    @cached_property
    def task(self) -> DecoderTask:
        c = self.config
        torch.manual_seed(c.schedule.seed)
        decoder = RECIPES[c.decoder.kind].make(c, self.backbone).to(self.device).train().requires_grad_(True)
        if c.optimiser.checkpointing:
            decoder.checkpointing = True
        elif self.backbone.native_area <= SMALL**2:
            compile_on_gpu(self.device, decoder)
        settings = Settings(
            c.optimiser.batch, c.optimiser.at_once, c.decoder.templates, c.decoder.conditions, c.decoder.timesteps,
            c.data.size, c.data.crop, c.data.absent, c.data.phrases, c.optimiser.dice, c.optimiser.precision,
        )  # fmt: skip
        cache = self.cache(decoder.taps, decoder.reads)
        return DecoderTask(decoder, self.backbone, self.dataset, settings, c.schedule.seed, self.processes, cache)

    def cache(self, taps: tuple[str, ...], reads: str) -> LatentCache | FeatureCache | None:
        """The cache that the configuration asks for, built where it is missing."""
        c = self.config
        if c.data.cache == "none":
            return None
        if reads == "pixels":
            raise InputError(f"a {c.decoder.kind} decoder reads pixels: use it with cache none")
        folder = Path(c.data.cache_folder) if c.data.cache_folder else self.folder / "cache"
        latents = LatentCache(
            folder / "latents", self.backbone, self.dataset, c.data.size, c.optimiser.at_once, processes=self.processes
        )
        if c.data.cache == "latents" or not taps:
            return latents
        draws = Draws(
            c.decoder.conditions, timesteps=c.decoder.timesteps, templates=c.decoder.templates, seed=c.schedule.seed
        )
        modules = {tap: tapped(self.backbone.transformer, tap) for tap in taps}
        return FeatureCache(folder / "features", latents, modules, draws, self.processes)

    def train(self) -> dict:
        """Run, and return what the command prints. Raises InputError for what the user can mend."""
        c, schedule = self.config, self.config.schedule
        first = self.begin()
        try:
            task = self.task
            plan = Plan(
                c.optimiser.rate, c.optimiser.muon or None, schedule.minutes or math.inf, schedule.steps or math.inf,
                resume=self.resume, warm_up=schedule.warm_up, ema=c.optimiser.ema,
                weight_decay=c.optimiser.weight_decay, device=self.device, parts=task.parts,
            )  # fmt: skip
            after_step, progress = None, None
            if self.processes.main:
                progress = Progress(self.folder, first)
                after_step = self.watcher(progress, first)
            try:
                train(
                    task.decoder, lambda m: task.loss(m.step, m.part), plan, self.folder, self.report,
                    processes=self.processes, after_step=after_step,
                )  # fmt: skip
            finally:
                if progress:
                    progress.close()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            spares = RECIPES[c.decoder.kind].checkpointing and not c.optimiser.checkpointing
            sizes = c.optimiser.batch, c.optimiser.at_once, c.data.phrases, c.data.size
            raise InputError(out_of_memory(*sizes, spares)) from None
        self.processes.wait()
        return self.summary() if self.processes.main else {}

    def begin(self) -> int:
        """Make the run's folder, or check that this goes on with the run in it; returns the steps that are done."""
        kept, about = self.folder / "config.toml", self.folder / "about.json"
        if self.resume and kept.is_file():
            check_same(Config().updated(read_toml(kept), str(kept)), self.config, self.folder)
        self.check_model()
        self.processes.wait()  # until all have read them
        if self.processes.main:
            if not self.resume and self.folder.is_dir():
                for old in ("validation.jsonl", "losses.jsonl", "best.safetensors", "about.json"):
                    (self.folder / old).unlink(missing_ok=True)
                shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            with replacing(kept) as unfinished:
                unfinished.write_text(to_toml(self.config), encoding="utf-8")
        steps = json.loads(about.read_text())["steps"] if self.resume and about.is_file() else 0
        together = torch.tensor([float(steps)], device=self.device)
        self.processes.sum([together])
        if together.item() != steps * self.processes.count:
            raise InputError(f"not all processes see the checkpoint in {self.folder}: put it on a disk that they share")
        return steps

    def check_model(self) -> None:
        """Note the model of a new run. Raises InputError where a run is resumed with another one."""
        path, own = self.folder / "model.json", {"name": self.backbone.name, "fingerprint": fingerprint(self.backbone)}
        if self.resume and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["fingerprint"] != own["fingerprint"]:
                raise InputError(
                    f"the run in {self.folder} is for the model {before['name']}, and this is another one, "
                    f"{own['name']}: name the same with --model, or train anew without --resume"
                )
        elif self.processes.main:
            with replacing(path) as unfinished:
                unfinished.write_text(json.dumps(own), encoding="utf-8")

    @cached_property
    def validation(self) -> Validation | None:
        """None where the configuration or the data have none."""
        schedule = self.config.schedule
        if not schedule.validate:
            return None
        try:
            dataset = load_data(self.config.data.data, "val")
        except InputError as error:
            log.warning("training goes without validation: %s", error)
            return None
        return Validation(self.task, dataset, schedule.validation, self.metrics, self.folder)

    def watcher(self, progress: Progress, first: int) -> Callable[[Moment, Tensor, dict[str, Tensor]], bool]:
        """What is called after each step: it tells, validates, keeps the best weights, and says whether to end."""
        schedule, validation = self.config.schedule, self.validation
        best = Best(self.folder, schedule.patience, first)

        def watch(moment: Moment, loss: Tensor, weights: dict[str, Tensor]) -> bool:
            progress.step(moment, loss)
            if not (validation and moment.step % schedule.validate == 0):
                return False
            scores, sheet = validation(moment.step, weights)
            progress.scores(moment.step, scores, sheet)
            log.info("step %d: validation mIoU %.3f", moment.step, scores["miou"])
            if best.add(scores["miou"]) and schedule.patience:
                self.write(self.best_file, weights, {"steps": moment.step}, scores)
            return best.stale

        return watch

    def report(self, weights: dict[str, Tensor], trained: dict) -> None:
        """Write the decoder: the best one where early stopping kept one, else the last."""
        if self.config.schedule.patience and self.best_file.is_file():
            with replacing(self.out) as unfinished:
                shutil.copyfile(self.best_file, unfinished)
            return
        scores = {}
        if self.validation:
            done = self.validation.step == trained["steps"]
            scores = self.validation.last if done else self.validation(trained["steps"], weights)[0]
        self.write(self.out, weights, trained, scores)

    def write(self, path: Path, weights: dict[str, Tensor], trained: dict, scores: dict[str, float]) -> None:
        c, batch = self.config, self.config.optimiser.batch
        damaged = self.task.damage.damaged + sum(part.damaged for part in self.dataset.parts)
        training = {
            "data": {"spec": c.data.data, "examples": len(self.dataset), "damaged": damaged},
            "model": self.backbone.name,
            "recipe": c.as_dict(),
            "seed": c.schedule.seed,
            **trained,
            "samples": trained["steps"] * batch,
        }
        info = DecoderInfo(
            self.family, self.backbone.prediction, c.decoder.timesteps, c.data.size**2, c.decoder.templates, training,
            {"validation": scores} if scores else {}, conditions=tuple(c.decoder.conditions),
        )  # fmt: skip
        with with_weights(self.task.decoder, weights) as decoder:
            write_decoder(decoder, info, path)

    def summary(self) -> dict:
        about = read_about(self.out)
        training = about["info"]["training"]
        return {
            "file": str(self.out),
            "kind": about["kind"],
            "family": self.family,
            "parameters": about["parameters"],
            "bytes": self.out.stat().st_size,
            "steps": training["steps"],
            "samples": training["samples"],
            "data": training["data"],
            "metrics": about["info"]["metrics"].get("validation", {}),
        }


def prepared(config: Config, backbone: TorchBackbone) -> tuple[Config, Dataset]:
    """The configuration with every value, and the training data. Raises InputError where either cannot be had."""
    if not config.data.data:
        raise InputError("no data are named: give --data, such as --data folder:/my/masks")
    dataset = load_data(config.data.data, "train")
    return completed(config, backbone, len(dataset)), dataset


def check_same(before: Config, now: Config, folder: Path) -> None:
    """Raises InputError where a run would go on with settings that change what it computes."""
    for block in BLOCKS:
        for one in fields(getattr(now, block)):
            old, new = getattr(getattr(before, block), one.name), getattr(getattr(now, block), one.name)
            if one.name not in FREE and old != new:
                raise InputError(
                    f"the run in {folder} has {one.name} {old!r}, not {new!r}: leave the setting out to go on with it, "
                    "or train anew without --resume"
                )
