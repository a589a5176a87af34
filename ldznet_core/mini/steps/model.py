"""Steps that make the miniature itself: its art, its autoencoder, its denoisers, and how well it draws."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ...backbones.load import load_backbone
from ...backbones.torch_ldm import FileBackbone
from ...imaging.images import to_network
from ...imaging.sheets import sheet
from ..bank import Recipe, bank
from ..denoiser import train_denoiser, trained_vae
from ..dit import COUNTS as DIT_COUNTS
from ..dit import export, train_dit
from ..drawing import generate
from ..recognise import recognise as name_all
from ..recognise import single_things, train_classifier
from ..styles import Looks
from ..vae import train_vae
from ..words import article
from ..world import COLOUR_RGB
from .settings import CHECKPOINT, TRANSFORMER, Build

log = logging.getLogger(__name__)
DIT_RATE = 1e-3
DRAWING_COUNTS = (0.6, 0.3, 0.1)  # shapes are learnt from single, large things
GROUNDS_ALONE = Looks(things=0, pictures=0, empty=0.06)  # "a blue background" is to show nothing else
CLASSIFIER_EPOCHS = 20
DRAWINGS_EACH = 4


def pack(build: Build) -> None:
    from ..pack import build_pack

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


def drawing_recipe(size: int, concepts: int) -> Recipe:
    """The scenes that the UNet learns to draw from."""
    return Recipe(size, concepts, counts=DRAWING_COUNTS, looks=GROUNDS_ALONE, portraits=True)


def denoiser(build: Build) -> None:
    s, folder = build.settings, build.folder / "denoiser"
    recipe = drawing_recipe(s.size, s.concepts)
    plan = build.plan(s.learning_rate, s.denoiser_minutes, 0.998)
    autoencoder = trained_vae(build.folder / "vae", build.device)
    train_denoiser(build.pack, autoencoder, folder, plan, recipe, s.drawing_scenes, s.batch)
    sample_sheet(load_backbone(folder / CHECKPOINT), build.folder / "samples.png")


def grow(build: Build) -> None:
    """The miniature of the step `denoiser`, for pictures of twice the size: only its UNet changes."""
    s = build.settings
    small = load_backbone(build.small).model
    recipe = drawing_recipe(2 * small.about["size"], len(small.about["nouns"]))
    plan = build.plan(s.learning_rate, s.grow_minutes, 0.998)
    train_denoiser(build.pack, small.vae, build.grown.parent, plan, recipe, s.grow_scenes, s.batch, small)
    sample_sheet(load_backbone(build.grown), build.folder / "samples.png")


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
    """`recognition.json`: how often a classifier names sprites, and what the miniatures were asked to draw."""
    files = [build.grown, build.small.with_name(TRANSFORMER)]
    backbone, *others = map(load_backbone, filter(Path.is_file, files))
    nouns, size = backbone.model.about["nouns"], backbone.model.about["size"]
    network = train_classifier(build.pack, nouns, size, build.settings.scenes, CLASSIFIER_EPOCHS)
    captions = [caption for caption in drawing_captions(nouns) for _ in range(DRAWINGS_EACH)]
    labels = torch.arange(len(nouns)).repeat_interleave(DRAWINGS_EACH)
    known, unseen = (
        single_things(build.pack, nouns, splits, 500, size, seed=32) for splits in (("train",), ("val", "test"))
    )
    found = {
        "sprites of its training": asdict(name_all(network, *known)),
        "unseen sprites": asdict(name_all(network, *unseen)),
        "drawings": asdict(name_all(network, generate(backbone, captions, size, seed=500), labels)),
    }
    for other in others:
        pictures = generate(other, captions, other.model.about["size"], seed=500)
        found[f"drawings of {other.name}"] = asdict(name_all(network, pictures, labels))
    (build.folder / "recognition.json").write_text(json.dumps(found, indent=1))
    log.info("recognised: %s", found)
