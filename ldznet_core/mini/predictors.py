"""What evaluation puts to the test: decoders, and the methods that need none, all asked in one way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..features import overhear
from ..hosts.ldm import LDMHost
from ..networks.decoder import MaskDecoder
from ..queries import Average, Queries, plan
from ..refine import REACH, refine
from ..training_free import TrainingFree
from .decoders import Phrases
from .drawing import redraw_steps
from .loop import half_precision
from .vae import to_network

BATCH = 32
Asked = Sequence[tuple[int, str]]  # pairs of a scene's number and a phrase


@dataclass(frozen=True)
class Answers:
    """Soft masks [N, S, S] in 0..1 of N pairs. `presence` [N] says how surely each phrase is there, None where the
    predictor cannot tell; `reach` is how far edges may be off, for `refine`."""

    masks: Tensor
    presence: Tensor | None
    reach: float

    def refined(self, data: Phrases, asked: Asked) -> "Answers":
        """The same with the edges of the pictures."""
        masks = torch.empty_like(self.masks)
        for i, (scene, _) in enumerate(asked):
            masks[i : i + 1] = refine(self.masks[i : i + 1], torch.from_numpy(data.images[scene]) / 255, self.reach)
        return replace(self, masks=masks)


Predictor = Callable[[LDMHost, Phrases, Asked], Answers]


@dataclass(frozen=True)
class Method:
    """A line of the table. `text` is what features are read under; `predictors` differ in their training seed."""

    name: str
    text: str
    predictors: tuple[Predictor, ...]


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoder's masks: features at t = 400 with the default noise, in bfloat16."""

    decoder: MaskDecoder
    text: str = "phrase"

    @torch.inference_mode()
    def __call__(self, host: LDMHost, data: Phrases, asked: Asked) -> Answers:
        decoder, masks = self.decoder.to(host.device), []
        for start in range(0, len(asked), BATCH):
            index, phrases = map(list, zip(*asked[start : start + BATCH], strict=True))
            z = data.z[index].to(host.device)
            given = to_network(data.images[index]).to(host.device) if decoder.kind == "rgbnet" else z
            captions = [data.captions[i] for i in index]
            context = host.embed(phrases).context
            shown = host.embed({"phrase": phrases, "caption": captions, "empty": [""] * len(index)}[self.text])
            with half_precision(str(host.device)):
                maps = host.extract(z, shown, decoder.taps, said=self.text).maps if decoder.taps else None
                logits = decoder(given, context, maps)[:, 0]
            masks.append(logits.float().sigmoid().cpu())
        return Answers(torch.cat(masks), None, REACH)


@dataclass(frozen=True)
class Undecoded:
    """Masks of `TrainingFree`, which answers all phrases of a scene at once.

    `listen` gives the queries of some scenes, where they are not those of one pass over the clean latent.
    """

    method: str = "attention"
    timestep: int | None = None
    spread: str = "auto"
    samples: int | None = None
    listen: Callable[[LDMHost, Phrases, list[int]], Queries] | None = None

    def __call__(self, host: LDMHost, data: Phrases, asked: Asked) -> Answers:
        finder = TrainingFree(host, self.method, spread=self.spread, samples=self.samples)
        rows: dict[int, list[int]] = {}  # of each scene, where its phrases stand in `asked`
        for row, (scene, _) in enumerate(asked):
            rows.setdefault(scene, []).append(row)
        size, scenes = data.images.shape[1], list(rows)
        masks, presence, reach = torch.empty(len(asked), size, size), torch.full((len(asked),), torch.nan), REACH
        for start in range(0, len(scenes), BATCH):
            batch = scenes[start : start + BATCH]
            heard = self.listen and self.listen(host, data, batch)
            for turn, scene in enumerate(batch):
                here, phrases = rows[scene], [asked[row][1] for row in rows[scene]]
                queries = heard and heard.row(turn)
                z = data.z[scene : scene + 1]
                found = finder.latent(z, phrases, timestep=self.timestep, queries=queries)
                masks[here], reach = found.masks[0], found.reach
                if found.presence is not None:
                    presence[here] = found.presence[0]
        return Answers(masks, None if presence.isnan().all() else presence, reach)


@torch.inference_mode()
def redrawn(host: LDMHost, data: Phrases, scenes: list[int]) -> Queries:
    """What the sampler's own passes ask while scenes are drawn anew under their captions, from the timestep that the
    set of drawn scenes is redrawn from: the captions' half of every step, averaged."""
    z, average = data.z[scenes].to(host.device), Average()
    chosen = plan(host.unet_config, *z.shape[-2:])
    modules = chosen.modules(host.transformer)
    texts = [""] * len(scenes) + [data.captions[i] for i in scenes]
    context = host.embed(texts).context

    def predict(z_t: Tensor, timesteps: Tensor) -> Tensor:
        with overhear(modules, keep=lambda output: output.chunk(2)[1]) as heard:
            prediction = host.guided(z_t, timesteps, context)[0]
        average.add(Queries.of(chosen, tuple(z.shape[-2:]), heard), int(timesteps[0]))
        return prediction

    steps = redraw_steps(host)
    z_t = host.noised(z, steps[0], 0)[0]
    for _ in host.schedule.ddim(predict, z_t, steps):
        pass  # what was heard is all that is wanted
    return average.mean


FREE = {  # of a decoder, by the name that the command line knows
    "attention": (
        Method("attention", "empty", (Undecoded(),)),
        Method("attention, captured", "caption", (Undecoded(listen=redrawn),)),
    ),
    "noise": (Method("noise", "phrase", (Undecoded("noise"),)),),
}
