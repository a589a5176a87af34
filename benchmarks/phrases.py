"""What eight phrases cost over one with a decoder: `python benchmarks/phrases.py [rounds]`.

Counts operations of one 384 px image at SD 1.5's sizes (on the meta device, as `cost.py` does), and measures medians
of interleaved runs on the miniature, for a decoder read under no text (one UNet pass) and under each phrase. The text
encoder is counted with the decoder, whose work is a row a phrase whatever conditions the features. Writes
benchmarks/results/phrases.json.
"""

import json
import sys
from statistics import median
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode
from writing import write_result

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig

PHRASES = ("cat", "dog", "frog", "panda", "fish", "apple", "bus", "star")
SIDE = 48  # positions of the latent of 384 px


def operations(rows: int, phrases: int) -> dict[str, float]:
    """GFLOP of the UNet to its last tap with so many rows, and of text encoder and decoder for so many phrases."""
    with torch.device("meta"):
        unet, text = UNet(UNetConfig()), ClipText(TextConfig())
        decoder = MaskDecoder(DecoderConfig("ldznet", UNetConfig()))
        z, context = torch.zeros(max(rows, phrases), 4, SIDE, SIDE), torch.zeros(max(rows, phrases), 77, 768)
        tokens, timesteps = torch.zeros(phrases, 77, dtype=torch.long), torch.zeros(rows)
        maps = unet.extract(z[:1], timesteps[:1], context[:1], decoder.taps)
        maps = [one.expand(phrases, -1, -1, -1) for one in maps]

    def count(work) -> float:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            work()
        return counter.get_total_flops() / 1e9

    return {
        "unet": count(lambda: unet.extract(z[:rows], timesteps, context[:rows], decoder.taps)),
        "decoder and text": count(lambda: (text(tokens), decoder(z[:phrases], context[:phrases], maps))),
    }


def seconds(rounds: int) -> dict[str, float]:
    """Median seconds on the miniature, for one and for eight phrases, of the whole and of its UNet passes."""
    backbone, z, times = load_backbone("mini"), torch.randn(1, 4, 32, 32), {}
    segmenters = {text: Segmenter(backbone, load_decoder("mini"), text) for text in ("empty", "phrase")}
    extract, spent = backbone.extract, [0.0]

    def timed(*args, **options):
        start = perf_counter()
        features = extract(*args, **options)
        spent[0] += perf_counter() - start
        return features

    backbone.extract = timed
    for round_ in range(-1, rounds):
        for text, segmenter in segmenters.items():
            for phrases in (1, len(PHRASES)):
                spent[0], start = 0.0, perf_counter()
                segmenter.predict_latent(z, PHRASES[:phrases])
                if round_ >= 0:
                    times.setdefault(f"{text}, {phrases}", []).append(perf_counter() - start)
                    times.setdefault(f"{text}, {phrases}, unet", []).append(spent[0])
    return {name: median(values) for name, values in times.items()}


def ratios(unet: tuple[float, float], rest: tuple[float, float]) -> dict[str, float]:
    """Eight phrases over one: in all, of the UNet's part and of the rest, and the rest's share of eight phrases."""
    total = [a + b for a, b in zip(unet, rest, strict=True)]
    values = {
        "total": total[1] / total[0], "unet": unet[1] / unet[0], "rest": rest[1] / rest[0],
        "rest's share of eight": rest[1] / total[1],
    }  # fmt: skip
    return {name: round(value, 3) for name, value in values.items()}


def main(rounds: int) -> None:
    torch.manual_seed(0)
    one, many, mini = operations(1, 1), operations(len(PHRASES), len(PHRASES)), seconds(rounds)
    rest = one["decoder and text"], many["decoder and text"]
    sizes = {
        "empty": ratios((one["unet"], one["unet"]), rest),
        "phrase": ratios((one["unet"], many["unet"]), rest),
    }
    measured = {}
    for text in ("empty", "phrase"):
        whole, unet = ([mini[f"{text}, {n}{part}"] for n in (1, 8)] for part in ("", ", unet"))
        measured[text] = ratios(tuple(unet), tuple(a - b for a, b in zip(whole, unet, strict=True)))
    found = {
        "eight phrases over one, operations at SD 1.5's sizes": sizes,
        "eight phrases over one, seconds on the miniature": measured,
        "seconds on the miniature": {name: round(value, 4) for name, value in mini.items()},
    }
    write_result("phrases", f"phrases.py {rounds}", **found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
