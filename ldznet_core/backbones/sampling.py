"""Drawing pictures with a backbone whose networks run here: DDIM with classifier-free guidance."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .base import TorchBackbone
from .queries import Plan, Queries
from .recording import Features, Text, record
from .steering import Reader, Region, Step, Tracker, blend
from .step_recorder import StepRecorder, Wanted

GUIDANCE = 3.0
STEPS = 25


class Sampling(TorchBackbone):
    """A `TorchBackbone` that samples. `nouns` are things that it is known to draw; none where it does not say."""

    capabilities = TorchBackbone.capabilities | {"sample"}
    nouns: tuple[str, ...] = ()

    def guided(self, z_t: Tensor, timesteps: Tensor, text: Text, shares: Sequence[Tensor] = ()) -> Tensor:
        """The prediction for `z_t` [B, C, h, w] with classifier-free guidance. `text` holds the empty text B times,
        then B captions and, for each of `shares` [B, h, w], B captions that draw there."""
        count = 2 + len(shares)
        empty, caption, *others = self.predict(z_t.repeat(count, 1, 1, 1), timesteps.repeat(count), text).chunk(count)
        if shares:
            caption = blend(caption, list(zip(others, shares, strict=True)))
        return empty + GUIDANCE * (caption - empty)

    def recorded(
        self, recorder: StepRecorder, z_t: Tensor, timesteps: Tensor, text: Text, shares: Sequence[Tensor] = ()
    ) -> Tensor:
        """As `guided`, with the captions' rows of the pass shown to a recorder."""

        def of_caption(output: Tensor) -> Tensor:
            return output.chunk(2 + len(shares))[1]

        with recorder.step(int(timesteps[0]), tuple(z_t.shape[-2:]), self.transformer, of_caption):
            return self.guided(z_t, timesteps, text, shares)

    @torch.inference_mode()
    def sample(
        self,
        caption: str,
        height: int,
        width: int,
        *,
        seed: int = 0,
        taps: Sequence[str] = (),
        near: int = 400,
        asked: Plan | None = None,
        keep: tuple[Tensor, Tensor] | None = None,
        regions: Sequence[tuple[str, Region, Reader]] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, Features | Queries | None]:
        """Draw `caption` as a scaled latent [1, C, height/8, width/8], and with it what a `StepRecorder` keeps of the
        run: no pass is added, and the drawing is the same.

        With `taps` that is what they name, of the step nearest to the timestep `near`; with `asked`, the mean queries
        of the layers of that plan. Give one of the two, or neither.
        `regions` are captions that draw where the words of a reader are being drawn.
        `keep` = (latent [1, 4, h, w], mask [1, 1, h, w], 1 where to draw anew) holds the rest of a picture still.
        """
        schedule = self.schedule
        noise = torch.randn(1, self.channels, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(self.device)
        text = self.embed(["", caption, *(one for one, _, _ in regions)])
        trackers = [Tracker(region, reader) for _, region, reader in regions]
        steps = schedule.steps(STEPS)
        kept = [Wanted(tuple(taps), near)] if taps else []
        recorder = StepRecorder(kept, (lambda height, width: asked) if asked else None)
        shown: Step | None = None  # the latest step that a region is read from

        def predict(z_t: Tensor, timesteps: Tensor) -> Tensor:
            nonlocal shown
            if keep is not None:  # in place: the sampler must go on from what was put back
                z_t.copy_(torch.where(keep[1] > 0.5, z_t, schedule.add_noise(keep[0], noise, timesteps)))
            timestep, size = int(timesteps[0]), tuple(z_t.shape[-2:])
            shares, rows, modules, wanted = [], [0, 1], {}, False
            for row, tracker in enumerate(trackers, start=2):
                if timestep <= steps[0] * (1 - tracker.region.start):
                    if shown is not None:
                        tracker.read(shown)
                    if (share := tracker.share()) is not None:
                        shares.append(share)
                        rows.append(row)
                if not tracker.is_settled:
                    wanted = True
                    modules |= tracker.reader.modules(size, self.transformer)
            with record(modules, lambda output: output.chunk(len(rows))[1]) as outputs:
                prediction = self.recorded(recorder, z_t, timesteps, text.pick(rows), shares)
            if wanted:
                shown = Step(schedule.split(prediction, z_t, timesteps)[0], timestep, outputs, text.context[1:2])
            return prediction

        z = noise
        for done, (_, latent) in enumerate(schedule.ddim(predict, noise.clone(), steps), start=1):
            z = latent
            if progress:
                progress(done, STEPS)
        if keep is not None:
            z = torch.where(keep[1] > 0.5, z, keep[0])
        return z, next(iter(recorder.features()), recorder.queries)
