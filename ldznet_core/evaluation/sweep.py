"""The paper's sweep (section 3.2, figure 4): which blocks of a UNet, at which timesteps, know where a phrase is.

A probe is trained on the feature map of every spatial transformer at every timestep and scored on validation examples.
A cell is one seed at one timestep; its file is written whole, so that a run can be resumed.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..backbones.recording import Text
from ..data.base import Dataset, Example, draw
from ..data.damage import Damage
from ..data.resize import resized
from ..errors import InputError
from ..imaging.files import replacing
from ..networks.precision import half_precision
from ..networks.unet import UNetConfig
from ..segment.examples import latents_of
from ..segment.features import noised_outputs
from . import probe, sweep_figure

log = logging.getLogger(__name__)
ROWS = 16  # in a pass of the UNet
LATENT = "latent"  # the row of probes that read the clean latent, to compare with


@dataclass(frozen=True)
class Settings:
    """What is swept. `data` and `model` are for the record; `train` and `validation` count examples, `steps` those of
    each probe's training; `size` is the side of the pictures in pixels; `condition`, "phrase" or "empty", is the text
    that feature maps are made under."""

    model: str
    data: str
    blocks: tuple[str, ...]
    timesteps: tuple[int, ...]
    seeds: int
    train: int
    validation: int
    steps: int
    size: int
    condition: str


@dataclass(frozen=True, eq=False)
class Subset:
    """N examples of a data set: `z` [N, 4, h, w], phrases and their vectors [N, D], `masks` and `counts` (pixels that
    are not ignored) bool [N, H, W]."""

    z: Tensor
    phrases: list[str]
    vectors: Tensor
    masks: Tensor
    counts: Tensor


def choose(dataset: Dataset, count: int, side: int, seed: int) -> list[Example]:
    """Up to `count` examples whose phrase is there, drawn without repetition, at `side` x `side` pixels.

    Damaged ones are skipped. Raises InputError where too many are, or none is left.
    """
    damage, chosen = Damage(), []
    for index in dict.fromkeys(draw(dataset, np.random.default_rng(seed), 4 * count)):
        example = damage.read(dataset, index)
        if example is not None and (example := resized(example, side, side)).mask.any():
            chosen.append(example)
        if len(chosen) == count:
            break
    damage.check()
    if not chosen:
        raise InputError("no phrase of the data is in its picture: a sweep needs masks that are not empty")
    return chosen


@torch.inference_mode()
def subset(backbone: TorchBackbone, examples: Sequence[Example]) -> Subset:
    """Examples of one size, encoded."""
    phrases = [e.phrase for e in examples]
    vectors = [phrase_vectors(backbone.embed(phrases[i : i + ROWS])) for i in range(0, len(phrases), ROWS)]
    masks = torch.from_numpy(np.stack([e.mask for e in examples]))
    counts = torch.from_numpy(np.stack([e.counts for e in examples]))
    return Subset(latents_of(backbone, examples).cpu(), phrases, torch.cat(vectors).float().cpu(), masks, counts)


def phrase_vectors(text: Text) -> Tensor:
    """The contexts [B, N, D] at the end token, which has seen the whole phrase: [B, D]."""
    end = torch.tensor(text.lengths, device=text.context.device) + 1
    return text.context[torch.arange(len(text)), end.clamp(max=text.context.shape[1] - 1)]


@torch.inference_mode()
def feature_maps(
    backbone: TorchBackbone, examples: Subset, settings: Settings, timestep: int, seed: int, folder: Path
) -> list[Tensor]:
    """The maps [N, C, h, w] of all blocks from one pass an example, in float16, in files without names in `folder`,
    which are gone when the tensors are. Every example has noise of its own."""
    modules = {block: backbone.transformer(block) for block in settings.blocks}
    noise = torch.randn(examples.z.shape, generator=torch.Generator().manual_seed(seed))
    found: dict[str, Tensor] = {}
    for start in range(0, len(examples.z), ROWS):
        rows = slice(start, start + ROWS)
        z, phrases = examples.z[rows], examples.phrases[rows]
        timesteps = torch.full((len(z),), min(timestep, 999))  # the paper's 1000 is the schedule's last, 999
        text = backbone.embed(phrases if settings.condition == "phrase" else [""] * len(phrases))
        with half_precision(backbone.device):
            outputs = noised_outputs(backbone, z, noise[rows], timesteps, text, modules)
        for block, output in outputs.items():
            output = output.half()
            backbone.check_finite([output], timestep)
            if block not in found:
                found[block] = mapped((len(examples.z), *output.shape[1:]), folder)
            found[block][rows] = output.cpu()
    return [found[block] for block in settings.blocks]


def mapped(shape: tuple[int, ...], folder: Path) -> Tensor:
    """A float16 tensor that lies on the disk. Raises InputError where there is no room for it."""
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise InputError(
            f"feature maps of a block take {needed / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free: "
            "sweep fewer examples, or choose another --out"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would end the process by a signal
            os.posix_fallocate(file.fileno(), 0, needed)
        return torch.from_numpy(np.memmap(file, np.float16, "w+", shape=shape))


def inputs_at(
    backbone: TorchBackbone, subsets: Sequence[Subset], settings: Settings, timestep: int, folder: Path
) -> list[probe.Inputs]:
    """What probes read at one timestep, of training and of validation examples: all maps, and the clean latent last."""
    found = []
    for number, part in enumerate(subsets):
        maps = feature_maps(backbone, part, settings, timestep, 2 * timestep + number, folder)
        found.append(probe.Inputs([*maps, part.z.half()], part.vectors, part.masks, part.counts))
    return found


def cell_of(inputs: Sequence[probe.Inputs], settings: Settings, seed: int, device: torch.device) -> dict:
    """The scores of one seed: by block the grid of its map, its channels, parameters of its probe, AP and mIoU."""
    train, val = inputs
    size = tuple(train.maps[-1].shape[2:])  # the latent's
    probes = probe.fit(train, size, settings.steps, seed, device)
    scores = probe.score(probes, val, size, device)
    return {
        block: {
            "grid": [*maps.shape[2:]],
            "channels": maps.shape[1],
            "parameters": sum(p.numel() for p in one.parameters()),
            "ap": score.ap,
            "miou": score.miou,
        }
        for block, maps, one, score in zip((*settings.blocks, LATENT), train.maps, probes, scores, strict=True)
    }


# ---- the run -------------------------------------------------------------------------------------


def cell_file(folder: Path, seed: int, timestep: int) -> Path:
    return folder / "cells" / f"seed{seed}-t{timestep}.json"


def read_json(file: Path) -> dict | None:
    """What a file holds; None where there is none, or it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("%s is damaged and is written again", file)
        return None


def write_json(value: dict, path: Path) -> None:
    """A key a line, and of a list of objects an object a line."""

    def shown(item: object) -> str:
        if isinstance(item, list) and item and isinstance(item[0], dict):
            return "[\n  " + ",\n  ".join(map(json.dumps, item)) + "\n ]"
        return json.dumps(item)

    lines = ",\n ".join(f"{json.dumps(key)}: {shown(item)}" for key, item in value.items())
    with replacing(path) as unfinished:
        unfinished.write_text("{\n " + lines + "\n}\n", encoding="utf-8")


def prepare(folder: Path, settings: Settings, resume: bool) -> None:
    """Raises InputError where the folder holds another sweep, or one that is not to be resumed."""
    file, ours = folder / "settings.json", json.loads(json.dumps(asdict(settings)))
    theirs = read_json(file)
    if theirs is not None and not resume:
        raise InputError(f"{folder} holds a sweep already: go on with --resume, or choose another --out")
    differ = [] if theirs is None else [k for k in ours if ours[k] != theirs.get(k) and k not in ("timesteps", "seeds")]
    if differ:
        was = ", ".join(f"{key} {theirs.get(key)}" for key in differ)
        raise InputError(f"{folder} holds a sweep with other settings ({was}): choose another --out")
    write_json(ours, file)


def sweep(
    backbone: TorchBackbone, examples: Sequence[Sequence[Example]], settings: Settings, folder: Path
) -> Iterator[tuple[int, int, dict]]:
    """(seed, timestep, cell) for every cell. `examples` are those to train and those to validate on. Cells whose files
    are in `folder` are read, not computed."""
    subsets: list[Subset] = []
    for timestep in settings.timesteps:
        inputs = None  # the same for all seeds
        for seed in range(settings.seeds):
            file = cell_file(folder, seed, timestep)
            cell = read_json(file)
            if cell is None:
                subsets = subsets or [subset(backbone, part) for part in examples]
                inputs = inputs or inputs_at(backbone, subsets, settings, timestep, folder)
                cell = cell_of(inputs, settings, seed, backbone.device)
                write_json(cell, file)
            yield seed, timestep, cell


def summary(settings: Settings, cells: dict[tuple[int, int], dict], config: UNetConfig) -> dict:
    """All numbers of a sweep: `swept` holds its settings, `rows` a block at a timestep each, scores as mean and
    deviation over seeds. A block's number is its place among the UNet's, from 1; that of the clean latent is 0."""
    rows, about = [], cells[0, settings.timesteps[0]]
    numbers = {block: number for number, block in enumerate((LATENT, *config.transformers))}
    for block in (*settings.blocks, LATENT):
        facts = {key: about[block][key] for key in ("grid", "channels", "parameters")}
        for timestep in settings.timesteps:
            scores = {
                name: spread([cells[seed, timestep][block][name] for seed in range(settings.seeds)])
                for name in ("ap", "miou")
            }
            rows.append({"block": block, "number": numbers[block], **facts, "timestep": timestep, **scores})
    return {"swept": asdict(settings), "rows": rows}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds, to five digits."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 5), "std": round(deviation, 5)}


def report(settings: Settings, cells: dict[tuple[int, int], dict], config: UNetConfig, folder: Path) -> dict:
    """Write the numbers and the figure of a finished sweep into `folder`. Returns what was written and what is best: of
    all maps, and of those of each grid."""
    numbers = summary(settings, cells, config)
    write_json(numbers, folder / "sweep.json")
    png, svg = folder / "sweep.png", folder / "sweep.svg"
    sweep_figure.draw(numbers, config.taps).write(png, svg)
    rows = [row for row in numbers["rows"] if row["block"] != LATENT]
    grids = {"x".join(map(str, row["grid"])): [r for r in rows if r["grid"] == row["grid"]] for row in rows}
    return {
        "files": [str(folder / name) for name in ("sweep.json", png.name, svg.name)],
        "best": best(rows),
        "grids": {grid: best(alike) for grid, alike in grids.items()},
    }


def best(rows: Sequence[dict]) -> dict:
    """The row of the highest AP, without what does not name it."""
    row = max(rows, key=lambda row: row["ap"]["mean"])
    return {key: row[key] for key in ("block", "timestep", "ap", "miou")}
