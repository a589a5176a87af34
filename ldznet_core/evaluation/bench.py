"""What masks cost: every method from an image, from a latent and while sampling, against the way of the authors' code
and against plain sampling, all in one run.

Ways take turns, round by round, so that a machine that slows down slows all of them; ratios are those of one round.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..backbones.base import TorchBackbone
from ..backbones.recording import record, tapped
from ..backbones.torch_ldm import LDMBackbone
from ..checkpoints.bundled import BUNDLED
from ..checkpoints.ldm import LatentDiffusion
from ..checkpoints.tokenizer import ClipTokenizer
from ..decoders.base import Decoder, DecoderInfo
from ..decoders.light import LightDecoder, light_config
from ..decoders.unet import DecoderConfig, MaskDecoder
from ..networks.autoencoder import Autoencoder, AutoencoderConfig
from ..networks.schedule import Schedule
from ..networks.text import ClipText, TextConfig
from ..networks.unet import UNet, UNetConfig
from ..segment.base import BaseSegmenter
from ..segment.decoder import Segmenter
from ..segment.methods import METHODS, decoder_free

log = logging.getLogger(__name__)
DECODED = ("light", "ldznet", "znet")
NAIVE, SAMPLING = "the authors' way", "plain sampling"
PHRASES = ("cat", "dog", "red apple", "house", "car", "tree", "a small bird", "umbrella")
CAPTION = "a cat on a green background"
ROOF = 2048  # side of the matrices whose product shows how fast the machine multiplies


@dataclass
class Way:
    """Something that is timed. `over` names the way that its seconds are compared with, which stands for `times` of
    it."""

    name: str
    work: Callable[[], object]
    over: str = ""
    times: int = 1
    gflop: float = 0.0
    memory: int | None = None  # bytes at its peak, on a GPU
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is timed: methods, side of the pictures in pixels, numbers of pictures and of phrases, and rounds."""

    methods: Sequence[str] = (*DECODED, *METHODS)
    side: int = 512
    batches: Sequence[int] = (1, 8)
    phrases: Sequence[int] = (1, 8)
    rounds: int = 5


# ---- the ways ----


def decoders_for(backbone: TorchBackbone, own: dict[str, Decoder], side: int) -> dict[str, Decoder]:
    """A decoder of each kind in `DECODED`: those of `own`, and others with random weights, which take as long and work
    on pictures of `side` pixels along a side."""
    native = round(backbone.native_area**0.5)

    def made(kind: str) -> nn.Module:
        if kind == "light":
            decoder = LightDecoder(light_config(backbone.unet_config, native))
        else:
            decoder = MaskDecoder(DecoderConfig(kind, backbone.unet_config, grid=native // 8))
        decoder.info = DecoderInfo("", backbone.prediction, pixels=side**2, conditions=decoder.conditions)
        return decoder

    return {kind: (own.get(kind) or made(kind)).to(backbone.device).eval() for kind in DECODED}


@torch.inference_mode()
def as_the_authors(backbone: TorchBackbone, decoder: Decoder, image: Tensor, phrase: str) -> Tensor:
    """The logits of one phrase in one picture [1, H, W, 3]: the whole UNet and the whole decoder, and nothing kept."""
    z, text = backbone.encode(image), backbone.embed([phrase])
    z_t, timesteps = backbone.noised(z, 400, 0)
    with record({tap: tapped(backbone.transformer, tap) for tap in decoder.taps}) as outputs:
        backbone.predict(z_t, timesteps, text)
    return decoder(z, text.context, [outputs[tap] for tap in decoder.taps])


def random_model(device: str) -> LDMBackbone:
    """Networks of Stable Diffusion 1.x's sizes with random weights, and the miniature's vocabulary: their masks mean
    nothing, their times do."""
    tokenizer = ClipTokenizer.from_folder(BUNDLED / "tokenizer")
    networks = Autoencoder(AutoencoderConfig()), ClipText(TextConfig()), UNet(UNetConfig())
    for network in networks:
        network.eval().requires_grad_(False)
    about = {"name": "a model of Stable Diffusion 1.x's sizes with random weights"}
    return LDMBackbone(LatentDiffusion(*networks, tokenizer, Schedule.stable_diffusion(), about), device)


def segmenter(backbone: TorchBackbone, method: str, decoders: dict[str, Decoder]) -> BaseSegmenter:
    return Segmenter(backbone, decoders[method]) if method in decoders else decoder_free(backbone, method)


def ways(backbone: TorchBackbone, decoders: dict[str, Decoder], plan: Plan) -> Iterator[Way]:
    """All that is timed, what others are compared with first."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(max(plan.batches), plan.side, plan.side, 3, generator=generator)
    z = backbone.encode(image[:1]).repeat(max(plan.batches), 1, 1, 1)
    asked = [PHRASES[i % len(PHRASES)] for i in range(max(plan.phrases))]
    yield Way(NAIVE, lambda: as_the_authors(backbone, decoders["ldznet"], image[:1], asked[0]))
    for method in plan.methods:
        work = segmenter(backbone, method, decoders)
        for batch in plan.batches:
            for phrases in plan.phrases:
                about = f"{count(phrases, 'phrase')}, {count(batch, 'picture')}"

                def from_image(work=work, batch=batch, phrases=phrases):
                    work(image[:batch], asked[:phrases])

                def from_latent(work=work, batch=batch, phrases=phrases):
                    work.predict_latent(z[:batch], asked[:phrases])

                yield Way(f"{method}, image, {about}", from_image, NAIVE, batch * phrases)
                yield Way(f"{method}, latent, {about}", from_latent, NAIVE, batch * phrases)
    if "sample" not in backbone.capabilities:
        log.warning("%s draws no pictures here: nothing is timed while sampling", backbone.name)
        return

    def sample(**options):
        return backbone.sample(CAPTION, plan.side, plan.side, **options)

    yield Way(SAMPLING, sample)
    for method in (method for method in plan.methods if method in decoders and decoders[method].taps):
        for phrases in plan.phrases:

            def while_sampling(method=method, phrases=phrases):
                drawn, features = sample(taps=decoders[method].taps, near=decoders[method].timestep)
                segmenter(backbone, method, decoders).predict_latent(drawn, asked[:phrases], captured=features)

            yield Way(f"{method}, while sampling, {count(phrases, 'phrase')}", while_sampling, SAMPLING)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


# ---- timing ----


def measure(
    found: Sequence[Way], rounds: int, backbone: TorchBackbone, progress: Callable[[int, int], None] | None = None
) -> None:
    """Time all ways in turn, `rounds` times. The round before counts operations and warms up. Texts are encoded anew
    each time. `progress` is told how many runs are done, and of how many."""
    device, progress = backbone.device, progress or (lambda done, total: None)
    for done, way in enumerate(found):
        progress(done, len(found) * (rounds + 1))
        backbone.known_texts.clear()
        with FlopCounterMode(display=False) as counter:
            way.work()
        way.gflop = counter.get_total_flops() / 1e9
    for round_ in range(rounds):
        for done, way in enumerate(found):
            progress((round_ + 1) * len(found) + done, len(found) * (rounds + 1))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                torch.cuda.synchronize(device)
            backbone.known_texts.clear()
            start = perf_counter()
            way.work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                way.memory = max(way.memory or 0, torch.cuda.max_memory_allocated(device))
            way.seconds.append(perf_counter() - start)


def roof(device: torch.device, rounds: int = 5) -> float:
    """GFLOP a second of the product of two large matrices, the most that a network here can reach."""
    a, seconds = torch.randn(ROOF, ROOF, device=device), []
    for _ in range(rounds + 1):
        start = perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(perf_counter() - start)
    return 2 * ROOF**3 / 1e9 / min(seconds[1:])


def rows(found: Sequence[Way], roofline: float) -> Iterator[dict]:
    """One row a way: medians of seconds, and the median and the spread of its ratio within a round."""
    by_name = {way.name: way for way in found}
    for way in found:
        seconds = median(way.seconds)
        row = {
            "way": way.name, "seconds": round(seconds, 4), "gflop": round(way.gflop, 3),
            "share of roof": round(way.gflop / seconds / roofline, 3),
        }  # fmt: skip
        if way.memory is not None:
            row["peak megabytes"] = round(way.memory / 1e6)
        if way.over:
            other = by_name[way.over]
            ratios = [mine / (theirs * way.times) for mine, theirs in zip(way.seconds, other.seconds, strict=True)]
            row |= {
                "over": way.over if way.times == 1 else f"{way.times} times {way.over}",
                "ratio": round(median(ratios), 4), "low": round(min(ratios), 4), "high": round(max(ratios), 4),
            }  # fmt: skip
            if other.gflop:
                row["ratio of operations"] = round(way.gflop / (other.gflop * way.times), 4)
        yield row


def table(rows: Sequence[dict]) -> Iterator[str]:
    """Rows as a Markdown table."""
    columns = ("way", "seconds", "gflop", "share of roof", "peak megabytes", "over", "ratio", "low", "high",
               "ratio of operations")  # fmt: skip
    names = [name for name in columns if any(name in row for row in rows)]
    yield "| " + " | ".join(names) + " |"
    yield "|---" * len(names) + "|"
    for row in rows:
        yield "| " + " | ".join(str(row.get(name, "-")) for name in names) + " |"


def machine(device: torch.device, dtype: str, roofline: float) -> dict:
    """The machine's line; `dtype` is what networks compute in."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": named, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
        "precision": dtype, "roof, gflop a second": round(roofline, 1),
    }  # fmt: skip


def weights(decoders: dict[str, Decoder]) -> dict[str, float]:
    """Megabytes that each decoder adds to the model in 16 bits."""
    return {kind: round(sum(2 * p.numel() for p in d.parameters()) / 1e6, 1) for kind, d in decoders.items()}
