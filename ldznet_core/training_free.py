"""Image or latent and phrases to soft masks with no decoder: `Segmenter`'s twin for any checkpoint.

The host's model is run here; what its attention and noise estimates mean is in `attention.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import (
    CUT,
    ROUNDS,
    evidence,
    masks_of,
    noise_difference,
    peak,
    self_attention,
    spread,
    words_won,
)
from .errors import InputError
from .features import Text
from .images import to_tensor, working_size
from .queries import Plan, Queries, plan
from .refine import REACH
from .segmenter import ENCODING, PHRASES_AT_ONCE, check_phrases, encode, fit, padded, resize

METHODS = ("attention", "noise")
TIMESTEPS = {"attention": 100, "noise": 400}  # of DiffSegmenter, GoCA and iSeg; of the paper's Figure 1
SAMPLES = {"attention": 1, "noise": 4}
SPREADS = ("auto", *ROUNDS)
PRESENT = 2.0  # presence of 96 % of what is there in the validation scenes of the miniature
GRID = 64  # pixels: eight a latent position, and the UNet halves the latent three times
NOISE_GRID = 32  # positions along a side of the noise that attention is compared with; larger tells no more
NOISES = 2
POSITIONS_OFF = 2  # by which the edges of a coarse mask may be off, by the validation scenes of the miniature


@dataclass(frozen=True)
class Found:
    """Soft masks [B, P, H, W] in 0..1 and, for the method "attention", how far the attention of each phrase [B, P]
    peaks above what it gets from pure noise, in standard deviations: low where the phrase is absent.

    `reach` is how far an edge may be off, as a share of the long side, because the grid was coarse: for `refine`.
    """

    masks: Tensor
    presence: Tensor | None
    reach: float

    def present(self, least: float) -> Tensor:
        """The masks, all zero for phrases of less than `least` presence."""
        if self.presence is None:
            return self.masks
        return self.masks * (self.presence >= least)[..., None, None]


class TrainingFree:
    """Soft masks of phrases from a host's model alone.

    `method` is "attention" (one pass of the UNet for any number of phrases) or "noise" (the difference that a phrase
    makes to the noise estimate: a pass for every seven phrases and each sample; works where attention cannot be read).
    `spread` says how far attention runs along the model's self-attention: "objects", "stuff", "none", or "auto", which
    is objects where the self-attention is finer than the cross-attention. `samples` noises are averaged. `progress` is
    called before every pass with the share of the work done, 0..1; what it raises ends the work.
    """

    def __init__(
        self,
        host,
        method: str = "attention",
        *,
        spread: str = "auto",
        samples: int | None = None,
        progress: Callable[[float], None] | None = None,
    ):
        for name, value, known in (("method", method, METHODS), ("spread", spread, SPREADS)):
            if value not in known:
                raise InputError(f"no {name} {value!r}: choose one of {', '.join(known)}")
        samples = SAMPLES[method] if samples is None else samples
        if samples < 1:
            raise InputError(f"{samples} samples cannot be averaged: ask for 1 or more")
        self.host, self.method, self.spread, self.samples = host, method, spread, samples
        self.progress = progress or (lambda share: None)

    def __call__(
        self, image, phrases: Sequence[str], *, timestep: int | None = None, seed: int = 0, caption: str = ""
    ) -> Tensor:
        """Soft masks [B, P, H, W] in 0..1, as `find`."""
        return self.find(image, phrases, timestep=timestep, seed=seed, caption=caption).masks

    def find(
        self, image, phrases: Sequence[str], *, timestep: int | None = None, seed: int = 0, caption: str = ""
    ) -> Found:
        """Masks at the size of `image`: PIL, or float [B, H, W, 3] in 0..1.

        The work is done on a copy of the size that the model draws at. `timestep` is that of the noise (default 100
        for attention, 400 for noise), `caption` what the picture shows, if known. Raises InputError as `Segmenter`.
        """
        phrases, image = check_phrases(phrases), to_tensor(image)
        height, width = image.shape[1:3]
        small = resize(image, working_size(height, width, area=self.host.pixels, multiple=GRID))
        z = encode(self.host, small, lambda share: self.progress(ENCODING * share))
        found = self.read(z, phrases, timestep, seed, caption, None, ENCODING)
        return replace(found, masks=fit(found.masks, (height, width)))

    def latent(
        self,
        z: Tensor,
        phrases: Sequence[str],
        *,
        timestep: int | None = None,
        seed: int = 0,
        caption: str = "",
        queries: Queries | None = None,
    ) -> Found:
        """Masks [B, P, 8h, 8w] of scaled latents [B, 4, h, w]. With `queries` (captured while sampling, one row an
        image) the latents are not passed through the UNet."""
        return self.read(z, check_phrases(phrases), timestep, seed, caption, queries, 0.0)

    @torch.inference_mode()
    def read(
        self,
        z: Tensor,
        phrases: Sequence[str],
        timestep: int | None,
        seed: int,
        caption: str,
        queries: Queries | None,
        done: float,
    ) -> Found:
        """As `latent`; `done` is the share of the work that came before."""
        timestep = TIMESTEPS[self.method] if timestep is None else timestep
        if not 0 <= timestep <= 999:
            raise InputError(
                f"timestep {timestep} is outside 0..999: attention is best read near 100, the noise estimate near 400"
            )
        height, width = z.shape[-2:]
        if queries is None:
            z = padded(z, GRID // 8)
        if self.method == "attention":
            found = self.by_attention(z, phrases, timestep, seed, caption, queries, done)
        else:
            found = self.by_noise(z, phrases, timestep, seed, done)
        self.progress(1.0)
        size = (z.shape[-2] * 8, z.shape[-1] * 8)
        masks = F.interpolate(found.masks, size, mode="bilinear", align_corners=False)
        return replace(found, masks=masks[..., : height * 8, : width * 8])

    def by_attention(
        self,
        z: Tensor,
        phrases: Sequence[str],
        timestep: int,
        seed: int,
        caption: str,
        queries: Queries | None,
        done: float,
    ) -> Found:
        """Masks on the grid of the attention, and presence, on the CPU."""
        config, text, empty = self.host.unet_config, self.host.embed(phrases), self.host.embed([""])
        chosen = queries.plan if queries else plan(config, *z.shape[-2:])
        seeds = [None] if queries else range(seed, seed + self.samples)
        passes = 1 if queries else 1 + len(z) * len(seeds)
        keys = contest(self.host, chosen, text, empty)

        sides = (min(side, NOISE_GRID) for side in z.shape[-2:])
        nothing = torch.randn(NOISES, z.shape[1], *sides, generator=torch.Generator().manual_seed(NOISES)).to(z)
        self.progress(done)
        heard = look(self.host, nothing, empty.expand(NOISES), chosen, timestep, 0)
        on_noise = words_won(heard, keys, config)

        said, masks, presence, passed = self.host.embed([caption]) if caption else empty, [], [], 1
        for row in range(len(z)):
            total = 0.0
            for one in seeds:
                if queries is None:
                    self.progress(done + (1 - done) * passed / passes)
                    asked, passed = look(self.host, z[row : row + 1], said, chosen, timestep, one), passed + 1
                else:
                    asked = queries.row(row).map(lambda tensor: tensor.to(keys[0][0].device))
                total = total + evidence(words_won(asked, keys, config), on_noise, asked) / len(seeds)
            presence.append(peak(total).cpu())
            masks.append(self.run_along(masks_of(total)[0], asked)[None].cpu())
        return found_on_grid(torch.cat(masks), torch.cat(presence))

    def run_along(self, masks: Tensor, asked: Queries) -> Tensor:
        """Masks [P, h, w] spread along the model's self-attention, on its grid."""
        chosen = self.spread
        if chosen == "auto":
            chosen = "objects" if asked.plan.is_finer else "none"
        if not ROUNDS[chosen] or asked.own is None:
            return masks
        size = asked.shape(asked.plan.own.level)
        q, k = (tensor[0] for tensor in asked.own)
        ties = self_attention(q, k, self.host.unet_config.heads(q.shape[-1]))
        finer = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
        cut = CUT if chosen == "objects" else 0.0
        return masks_of(spread(finer.flatten(1).to(ties), ties, ROUNDS[chosen], cut).unflatten(1, size))

    def by_noise(self, z: Tensor, phrases: Sequence[str], timestep: int, seed: int, done: float) -> Found:
        """Masks on the grid of the latents, on the CPU."""
        # The empty text is in every batch: estimates of batches of other sizes differ by their rounding.
        starts = range(0, len(phrases), PHRASES_AT_ONCE - 1)
        groups = [self.host.embed(["", *phrases[i : i + PHRASES_AT_ONCE - 1]]) for i in starts]
        passes, passed, masks = len(z) * self.samples * len(groups), 0, []
        for one in z:
            total = 0.0
            for turn in range(seed, seed + self.samples):
                parts = []
                for group in groups:
                    self.progress(done + (1 - done) * passed / passes)
                    passed += 1
                    rows = one.expand(len(group), -1, -1, -1)
                    clean = self.host.denoise(rows, group, timestep=timestep, seed=turn)
                    parts.append(noise_difference(clean[1:], clean[:1]))
                total = total + torch.cat(parts)
            masks.append(masks_of(total - total.flatten(1).median(1).values[:, None, None]).cpu())
        return found_on_grid(torch.stack(masks), None)


def found_on_grid(masks: Tensor, presence: Tensor | None) -> Found:
    """Masks [B, P, h, w] whose edges may be off by more than a position of their grid."""
    return Found(masks, presence, max(REACH, POSITIONS_OFF / max(masks.shape[-2:])))


def look(host, z: Tensor, said: Text, chosen: Plan, timestep: int, seed: int) -> Queries:
    """The queries of latents [B, 4, h, w] noised to `timestep`, in one pass that ends at the last layer asked."""
    said = said.expand(len(z)) if len(said) == 1 else said
    heard = host.observe(z, said, chosen.modules(host.transformer), timestep=timestep, seed=seed)
    queries = Queries.of(chosen, tuple(z.shape[-2:]), heard)
    if queries is None:
        raise InputError(f"{host.name} ran without passing the layers that its attention is read from")
    return queries


def contest(host, chosen: Plan, text: Text, empty: Text) -> list[tuple[Tensor, Tensor]]:
    """For each layer the keys [P, M + 2, C] that contend for attention and which of them are valid [P, M + 2]: the
    words of each phrase and, last, the start and the end of the empty text."""
    most = max(text.lengths)
    if not min(text.lengths):
        raise InputError("a phrase has no words that the text encoder knows: say it otherwise")
    context = torch.cat([text.context[:, 1 : most + 1], empty.context[:, :2].expand(len(text), -1, -1)], dim=1)
    words = torch.arange(most)[None] < torch.tensor(text.lengths)[:, None]
    valid = F.pad(words, (0, 2), value=True)
    return [(keys, valid.to(keys.device)) for keys in host.project(context, chosen.keys(host.transformer))]
