"""What a light decoder gains by what it reads: `python benchmarks/light.py mini-build many [steps] [seeds]`.

Trains one decoder for each choice of features on the same scenes and scores them on scenes of the styles that it was
given no masks of and on evaluation sets, half of their scenes. `many` are masks of thousands of scenes in all styles
that the denoiser learnt but one, and a head of CLIPSeg's shape (Lueddecke and Ecker, CVPR 2022) reads the same maps.
`few` are masks of some scenes in one of these styles, as people have them who make a decoder for a checkpoint: the
denoiser knows the other styles by pictures and captions. Everything lies in the build's folder `light` and is resumed.
Writes benchmarks/results/light.json or light_few.json.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from writing import write_result

from ldznet_core import load_backbone
from ldznet_core.decoders.light import LightConfig, LightDecoder, light_config
from ldznet_core.evaluation.predictors import Decoded
from ldznet_core.evaluation.tables import score
from ldznet_core.mini import light
from ldznet_core.mini.bank import Recipe, bank
from ldznet_core.mini.decoders import LOOKS, TRAINING_COUNTS, Phrases
from ldznet_core.mini.evaluation import OOD_STYLES, SEEN, UNSEEN, examples, scenes_of
from ldznet_core.mini.steps import SETTINGS, Build
from ldznet_core.mini.steps.mask_decoders import LIGHT_RATE
from ldznet_core.networks.schedule import Schedule
from ldznet_core.training.decoder import train_decoder

LEARNT = ("emojione", "emojione-v1", "fxemoji", "noto", "noto-v1", "twemoji")  # by the denoiser
SEED, SCENES = 4242, 75  # of each set
LATENT_ALONE, ALL_FEATURES = "nothing", "maps and attention by head"
SCHEDULE = Schedule.stable_diffusion("v")


class Noised(LightDecoder):
    """Learns on latents with as much noise as features are read at: noise alone is an augmentation."""

    def predict(self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps=None):
        if self.training:
            timesteps = torch.randint(*light.TIMESTEPS, (len(z),))
            z = SCHEDULE.add_noise(z, torch.randn_like(z), timesteps) / SCHEDULE.alphas_cumprod[timesteps].sqrt().view(
                -1, 1, 1, 1
            )
        return super().predict(z, context, features, None)


class WithoutLatent(LightDecoder):
    """Reads features alone."""

    def predict(self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps=None):
        return super().predict(torch.zeros_like(z), context, features, timesteps)


class Averaged(LightDecoder):
    """Reads attention as a mean over heads, as most published work does."""

    def predict(self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps=None):
        features = list(features or ())
        for i in range(len(self.taps), len(features)):
            heads = features[i].unflatten(1, (2, -1))  # [N, (mean, largest), heads, h, w]
            features[i] = heads.mean(2, keepdim=True).expand_as(heads).flatten(1, 2)
        return super().predict(z, context, features, timesteps)


class ClipSegHead(LightDecoder):
    """CLIPSeg's decoder on the maps: transformer blocks over positions, one more map added before each, the phrase as
    scale and shift before the first, and one transposed convolution. It reads neither latent nor attention."""

    def __init__(self, config: LightConfig, width: int = 128):
        nn.Module.__init__(self)
        self.config, self.info, self.attending, self.attends = config, None, (), ()
        self.taps = tuple(source.tap for source in config.sources)
        self.text, self.text_norm = nn.Linear(config.unet.context_dim, config.width), nn.LayerNorm(config.width)
        self.pool = nn.Linear(config.width, 1)
        self.maps = nn.ModuleList(nn.Conv2d(source.channels, width, 1) for source in config.sources)
        self.film = nn.Linear(config.width, 2 * width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True) for _ in config.sources
        )
        self.mask = nn.ConvTranspose2d(width, 1, 8, stride=8)
        self.present = nn.Linear(width, 1)

    def predict(self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps=None):
        tokens = self.text_norm(self.text(context))  # [N, 77, C]
        scale, shift = self.film((self.pool(tokens).softmax(1) * tokens).sum(1))[:, None].chunk(2, -1)
        x: Tensor | float = 0.0
        for i, (read, block) in enumerate(zip(self.maps, self.blocks, strict=True)):
            seen = F.interpolate(read(features[i]), z.shape[-2:], mode="bilinear", align_corners=False)
            x = x + seen.flatten(2).transpose(1, 2).repeat_interleave(len(context) // len(z), 0)  # [N, h w, C]
            x = block(x * (1 + scale) + shift if i == 0 else x)
        logits = self.mask(x.transpose(1, 2).unflatten(2, z.shape[-2:]))
        return logits, self.present(x.mean(1))[:, 0]


@dataclass(frozen=True)
class Labels:
    """What masks are given of: scenes in some of the styles that the denoiser learnt, to decoders that read `choices`
    (all where none are named)."""

    file: str
    styles: tuple[str, ...]
    scenes: int
    choices: tuple[str, ...] = ()


LABELS = {
    "many": Labels("light", tuple(style for style in LEARNT if style != "fxemoji"), 6000),
    "few": Labels("light_few", ("twemoji",), 150, (LATENT_ALONE, ALL_FEATURES)),
}


def reading(config: LightConfig, maps: bool, attention: bool, queries: bool = False) -> LightConfig:
    """The config with some of what it reads left out; with `queries` they stand in for the maps."""
    sources = []
    for source in config.sources:
        if source.heads:
            source = replace(source, heads=source.heads if attention else 0, as_map=queries)
        elif not maps:
            continue
        if source.heads or source.as_map:
            sources.append(source)
    return replace(config, sources=tuple(sources))


def choices(config: LightConfig) -> dict[str, LightDecoder]:
    """Untrained decoders by what they read beside the latent."""
    maps = reading(config, maps=True, attention=False)
    return {
        LATENT_ALONE: LightDecoder(reading(config, maps=False, attention=False)),
        "nothing, trained with noise": Noised(reading(config, maps=False, attention=False)),
        "maps": LightDecoder(maps),
        "attention by head": LightDecoder(reading(config, maps=False, attention=True)),
        ALL_FEATURES: LightDecoder(config),
        "maps and attention averaged over heads": Averaged(config),
        "maps and attention by head, no latent": WithoutLatent(config),
        "maps, by CLIPSeg's head": ClipSegHead(replace(maps, sources=maps.sources[-3:])),
        "queries and attention by head": LightDecoder(reading(config, maps=False, attention=True, queries=True)),
    }


def main(folder: Path, labels: Labels, steps: int, seeds: int) -> None:
    torch.set_num_threads(1)
    build = Build(folder, SETTINGS["cpu"], resume=True)
    backbone = load_backbone(build.grown)
    model = backbone.model
    size, nouns = model.about["size"], tuple(model.about["nouns"])
    recipe = Recipe(size, len(nouns), labels.styles, counts=TRAINING_COUNTS, looks=LOOKS)
    data = light.ScenePhrases(Phrases.of(bank(build.pack, recipe, labels.scenes, seed=79), model))
    sets = {}
    for style in (style for style in LEARNT if style not in labels.styles):
        unseen = Recipe(size, len(nouns), (style,), ("train", "val"), ("val",), counts=(0.0, 0.6, 0.4))
        sets[f"no masks: {style}"] = examples(bank(build.pack, unseen, SCENES, SEED), nouns)
    sets |= {
        name: examples(scenes_of(name, backbone, build.pack, SCENES), nouns) for name in (SEEN, UNSEEN, *OOD_STYLES)
    }
    plan = replace(build.plan(LIGHT_RATE, math.inf, 0.995), steps=steps)
    scores: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        for name, decoder in choices(light_config(backbone.unet_config, size, light.WIDTH)).items():
            if labels.choices and name not in labels.choices:
                continue
            path = folder / "light" / f"{labels.file}-{name.replace(' ', '-')}-{seed}.safetensors"
            path.parent.mkdir(exist_ok=True)
            scored = path.with_suffix(".json")
            if not scored.exists():
                train_decoder(decoder, backbone, data, path, plan, light.info(model), light.SETTINGS, seed)
                decoder.eval()
                results = {of: score(backbone, Decoded(decoder, None), one)[0] for of, one in sets.items()}
                found = {of: (r.scores.iou_at_default, r.false_area) for of, r in results.items()}
                scored.write_text(json.dumps(found))
            for of, pair in json.loads(scored.read_text()).items():
                scores.setdefault(name, {}).setdefault(of, []).append(pair)
            write(scores, labels, steps)


def write(scores: dict, labels: Labels, steps: int) -> None:
    """The table so far: IoU at 0.5 and what is marked of the absent, in percent, mean and spread over seeds."""
    kinds = {
        "the unseen styles": OOD_STYLES,
        "the styles that only the denoiser knew": [of for of in next(iter(scores.values())) if of.startswith("no ")],
    }
    facts, which = {}, "many" if labels is LABELS["many"] else "few"
    for kind, sets in kinds.items() if {LATENT_ALONE, ALL_FEATURES} <= scores.keys() else ():
        with_it, without = (
            100 * mean(mean(p[0] for p in scores[name][of]) for of in sets) for name in (ALL_FEATURES, LATENT_ALONE)
        )
        facts[f"light decoder, {which} masks: features above the latent alone, IoU at 0.5, mean of {kind}"] = {
            "measured": f"{with_it - without:+.1f} ({with_it:.1f} and {without:.1f})", "goal": "+3",
            "met": with_it - without >= 3,
        }  # fmt: skip
    rows = [
        {"reads": name, "set": of, "seeds": len(pairs), "iou": percent([p[0] for p in pairs]),
         "absent": percent([p[1] for p in pairs])}
        for name, by_set in scores.items() for of, pairs in by_set.items()
    ]  # fmt: skip
    command = f"light.py mini-build {which} {steps} {max(row['seeds'] for row in rows)}"
    write_result(labels.file, command, scenes=labels.scenes, steps=steps, facts=facts, rows=rows)


def percent(values: list[float]) -> dict[str, float]:
    return {"mean": round(100 * mean(values), 1), "std": round(100 * stdev(values), 1) if len(values) > 1 else 0.0}


if __name__ == "__main__":
    asked = [int(value) for value in sys.argv[3:]]
    main(Path(sys.argv[1]), LABELS[sys.argv[2]], *(asked + [1200, 3][len(asked) :]))
