"""Feature maps and queries of noised latents, computed once and kept on disk in half precision.

Training on them runs no backbone but its text encoder. What is kept is a few draws of noise, timestep and text for each
picture.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.base import Example
from ..errors import InputError
from ..networks.precision import half_precision, stacked
from ..segment.features import noised_outputs
from .cache import EXAMPLES, LatentCache
from .processes import ALONE, Processes
from .shards import SHARD_BYTES, Shards


@dataclass(frozen=True)
class Draws:
    """In how many ways, and in which, each picture is noised and conditioned.

    `texts` are "phrase", "caption" and "empty" with the share of draws for each; `timesteps` is a half-open range. A
    draw depends on the seed, the picture's name and the draw's number alone.
    """

    texts: Mapping[str, float]
    count: int = 4
    timesteps: tuple[int, int] = (300, 500)
    templates: tuple[str, ...] = ("{}", "a {}")
    seed: int = 0

    def __call__(self, picture: str, number: int) -> "Draw":
        digest = hashlib.sha256(f"{self.seed} {number} {picture}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        kinds, shares = list(self.texts), np.array(list(self.texts.values()), float)
        return Draw(
            str(rng.choice(kinds, p=shares / shares.sum())),
            int(rng.integers(*self.timesteps)),
            str(rng.choice(self.templates)),
            int(rng.integers(2**62)),
        )


@dataclass(frozen=True)
class Draw:
    kind: str
    timestep: int
    template: str
    seed: int  # of the noise

    def text(self, phrase: str, caption: str) -> str:
        return {"phrase": self.template.format(phrase), "caption": caption, "empty": ""}[self.kind]


@dataclass(frozen=True)
class Outputs:
    """What a batch of B draws has: by name the outputs of the backbone [B, ...], their timesteps [B], and the text of
    each ("phrase", "caption" or "empty")."""

    tensors: dict[str, Tensor]
    timesteps: Tensor
    kinds: tuple[str, ...]


class FeatureCache:
    """Outputs of parts of a backbone's UNet for the examples of a `LatentCache`, `draws.count` draws of each.

    `modules` are the parts by name: spatial transformers for feature maps, `to_q` of attention layers for queries. What
    is drawn under the caption or no text is kept once for all phrases of a picture. It is the data set of its latents;
    `outputs` gives the rest. Raises InputError as `LatentCache` does, and where values do not fit half precision.
    """

    def __init__(
        self,
        folder: Path,
        latents: LatentCache,
        modules: Mapping[str, nn.Module],
        draws: Draws,
        processes: Processes = ALONE,
    ):
        self.latents, self.modules, self.draws = latents, dict(modules), draws
        backbone, side = latents.backbone, latents.size // 8
        blank, timesteps = torch.zeros(1, backbone.channels, side, side), torch.tensor([draws.timesteps[0]])
        probe = noised_outputs(backbone, blank, blank, timesteps, backbone.embed([""]), self.modules)
        row_bytes = sum(2 * value.numel() for value in probe.values())

        self.starts, rows, filled = [0], 0, 0  # the first example of each shard: pictures are not parted
        for examples, drawn in self._pictures(0, len(latents)):
            count = sum(len(examples) if draw.kind == "phrase" else 1 for draw in drawn)
            full = (filled + count) * row_bytes > SHARD_BYTES or examples[-1] - self.starts[-1] >= EXAMPLES
            if filled and full:
                self.starts.append(examples[0])
                filled = 0
            filled += count
            rows += count

        names = {id(module): name for name, module in backbone.networks["unet"].named_modules()}
        parts = [f"{name} = {names.get(id(module))} {list(probe[name].shape[1:])}" for name, module in modules.items()]
        about = {"content": "features", "model": latents.model, "model name": backbone.name, "size": latents.size}
        about |= {"examples": len(latents), "data": latents.shards.about["data"], "parts": parts}
        about |= {"texts": dict(draws.texts), "draws": draws.count, "timesteps": list(draws.timesteps)}
        about |= {"templates": list(draws.templates), "seed": draws.seed}
        self.shards = Shards(folder, about, len(self.starts))
        self.shards.build(
            self._extracted,
            f"{rows} draws of features ({draws.count} a picture, {len(latents)} examples)",
            rows * row_bytes,
            processes,
        )

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Example:
        return self.latents[index]

    def outputs(self, indices: Sequence[int], numbers: Sequence[int], device: torch.device | str = "cpu") -> Outputs:
        """Draw `numbers[b]` of example `indices[b]`, in float32. Raises InputError for an example that could not be
        read."""
        rows = []
        for index, number in zip(indices, numbers, strict=True):
            place = bisect_right(self.starts, index) - 1
            shard = self.shards[place]
            self.latents.texts(index)  # raises where there is none
            rows.append((shard, int(shard.row("rows", index - self.starts[place])[number])))
        return Outputs(
            {name: stacked([s.row(name, row) for s, row in rows]).to(device) for name in self.modules},
            torch.tensor([shard.texts[row][0] for shard, row in rows], device=device),
            tuple(shard.texts[row][1] for shard, row in rows),
        )

    def _pictures(self, first: int, end: int) -> Iterator[tuple[list[int], list[Draw]]]:
        """The examples of each picture and its draws; an example that could not be read has no draws."""
        def name(index: int) -> str:
            picture = self.latents.texts(index)[2] if self.latents.readable(index) else ""
            return picture or f"example {index}"

        for picture, group in groupby(range(first, end), name):
            examples = list(group)
            count = self.draws.count if self.latents.readable(examples[0]) else 0
            yield examples, [self.draws(picture, number) for number in range(count)]

    def _extracted(self, shard: int) -> tuple[dict[str, Tensor], list]:
        """A shard: outputs [R, ...] by name, with the timestep and kind of text of each row, and `rows` [N, draws]
        with the row of each example's draws, -1 where the example could not be read."""
        first, end = self.starts[shard], [*self.starts[1:], len(self)][shard]
        rows = torch.full((end - first, self.draws.count), -1)
        asked: list[tuple[int, Draw]] = []  # of each row an example that it serves
        for examples, draws in self._pictures(first, end):
            for number, draw in enumerate(draws):
                for index in examples:
                    if draw.kind == "phrase" or index == examples[0]:
                        asked.append((index, draw))
                    rows[index - first, number] = len(asked) - 1
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.modules}
        for start in range(0, len(asked), self.latents.batch):
            for name, value in self._batch(asked[start : start + self.latents.batch]).items():
                outputs[name].append(value)
        tensors = {name: torch.cat(values) for name, values in outputs.items() if values}
        return {**tensors, "rows": rows}, [[draw.timestep, draw.kind] for _, draw in asked]

    def _batch(self, asked: Sequence[tuple[int, Draw]]) -> dict[str, Tensor]:
        """Outputs [B, ...] by name, in half precision on the CPU."""
        backbone = self.latents.backbone
        z = torch.stack([self.latents.latent(index) for index, _ in asked])
        noise = [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(draw.seed)) for _, draw in asked]
        timesteps = torch.tensor([draw.timestep for _, draw in asked])
        text = backbone.embed([draw.text(*self.latents.texts(index)[:2]) for index, draw in asked])
        with half_precision(backbone.device):
            outputs = noised_outputs(backbone, z, torch.stack(noise), timesteps, text, self.modules)
        halves = {name: value.half().cpu().contiguous() for name, value in outputs.items()}
        for name, value in halves.items():
            if not value.isfinite().all():
                raise InputError(f"{name} of {backbone.name} does not fit half precision: do not cache features")
        return halves
