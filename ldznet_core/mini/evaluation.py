"""The miniature's evaluation sets: scenes of two and three things, one example for each noun in a scene.

Some scenes are also asked for a noun that is not in them.
"""

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones.families.unet import plan
from ..backbones.queries import Queries
from ..backbones.step_recorder import StepRecorder
from ..backbones.torch_ldm import FileBackbone, LDMBackbone
from ..data.base import Example
from ..evaluation import predictors, tables
from ..evaluation.predictors import Method, Undecoded
from .bank import Recipe, bank
from .drawing import generated_scenes, redraw_steps
from .world import Scene

COUNTS = (0.0, 0.6, 0.4)
OOD_STYLES = ("fluent-emoji-flat", "fluent-3d", "openmoji", "fluent-emoji-high-contrast")
SEEN, UNSEEN, GENERATED = "seen styles, new scenes", "seen styles, unseen sprites", "drawn by the miniature"
SETS = (SEEN, UNSEEN, GENERATED, *OOD_STYLES)
SEED = 9000
ABSENT_SCENES = 40  # scenes that are also asked for something that is not there


def scenes_of(name: str, backbone: FileBackbone, pack: Path, count: int) -> list[Scene]:
    """The scenes of a set. Backgrounds are never those of training, the generated ones apart."""
    about = backbone.model.about
    if name == GENERATED:
        return generated_scenes(backbone, tuple(about["nouns"]), count, about["size"], SEED)
    splits = {SEEN: ("train",), UNSEEN: ("val", "test")}.get(name, ("ood",))
    styles = (name,) if name in OOD_STYLES else None
    recipe = Recipe(about["size"], len(about["nouns"]), styles, splits, ("test",), COUNTS)
    return bank(pack, recipe, count, SEED)


def sweep_sets(about: dict, pack: Path, counts: tuple[int, int]) -> tuple[list[Example], list[Example]]:
    """Examples of scenes to train and to validate on, `counts` scenes of each: sprites of the train split, on
    backgrounds of the train and of the val split."""
    size, concepts = about["size"], len(about["nouns"])
    return tuple(
        examples(bank(pack, Recipe(size, concepts, background_splits=(split,), counts=COUNTS), count, SEED + number))
        for number, (split, count) in enumerate(zip(("train", "val"), counts, strict=True), start=1)
    )


def calibration_set(about: dict, pack: Path, count: int) -> list[Example]:
    """Examples of scenes of sprites and backgrounds of the val split, some of what is not there."""
    recipe = Recipe(about["size"], len(about["nouns"]), None, ("val",), ("val",), COUNTS)
    return examples(bank(pack, recipe, count, SEED + 3), about["nouns"])


def examples(scenes: Sequence[Scene], nouns: Sequence[str] = ()) -> list[Example]:
    """An example for every noun in every scene; its mask holds all things of that noun. The first `ABSENT_SCENES` of
    the scenes that lack any of `nouns` get one more, for a noun that they lack."""
    rng, lacking, found = np.random.default_rng(SEED), 0, []
    for number, scene in enumerate(scenes):
        present = dict.fromkeys(thing.sprite.noun for thing in scene.things)
        masks = {
            noun: np.logical_or.reduce([t.mask for t in scene.things if t.sprite.noun == noun]) for noun in present
        }
        absent = [noun for noun in nouns if noun not in present]
        if absent and lacking < ABSENT_SCENES:
            lacking += 1
            masks[str(rng.choice(absent))] = np.zeros(scene.image.shape[:2], bool)
        found += [
            Example(noun, mask, scene.image, caption=scene.caption, picture=str(number)) for noun, mask in masks.items()
        ]
    return found


@torch.inference_mode()
def redrawn(backbone: LDMBackbone, z: Tensor, captions: list[str]) -> Queries:
    """The mean queries of the sampler's own passes while pictures, latents [K, 4, h, w], are generated anew under their
    captions, from the timestep that the generated scenes are."""
    z = z.to(backbone.device)
    recorder = StepRecorder(plan_of=lambda height, width: plan(backbone.unet_config, height, width))
    text = backbone.embed([""] * len(z) + captions)
    steps = redraw_steps(backbone)
    z_t = backbone.noised(z, steps[0], 0)[0]
    for _ in backbone.schedule.ddim(lambda z_t, t: backbone.recorded(recorder, z_t, t, text), z_t, steps):
        pass  # the pictures themselves are not wanted
    return recorder.queries


CAPTURED = Method("attention, captured", "caption", (Undecoded(capture=redrawn),))
FREE = {**predictors.FREE, "attention": (*predictors.FREE["attention"], CAPTURED)}


def table(
    backbone: FileBackbone,
    methods: Sequence[Method],
    pack: Path,
    sets: tuple[str, ...],
    count: int,
    how: tables.Evaluation | None = None,
) -> Generator[tables.Row, None, list[Exception]]:
    """Rows set by set, as `evaluation.tables.table` gives them; returns the errors of those that are missing."""
    if "queries" not in backbone.capabilities:
        methods = [method for method in methods if method is not CAPTURED]
    errors = []
    for name in sets:
        dataset = examples(scenes_of(name, backbone, pack, count), backbone.model.about["nouns"])
        errors += yield from tables.table(backbone, methods, name, dataset, how)
    return errors
