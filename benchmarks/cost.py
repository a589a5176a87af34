"""Operations for full-size masks with SD 1.5, against the authors' way: `python benchmarks/cost.py`.

Counted by torch on the meta device, so nothing is computed: convolutions and matrix products, two operations a
multiplication. All ways are counted in this run; the authors' runs the whole of SD's UNet. Writes
benchmarks/results/cost.json.
"""

from contextlib import nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode
from writing import write_result

from ldznet_core.backbones.recording import record, tapped
from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.layers import SpatialTransformer
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig
from ldznet_core.segment import features
from ldznet_core.segment.features import Keys, decoder_features

SIDE = 384
PHRASES = 8
WORDS = 3  # of a phrase


def count(work) -> float:
    """GFLOP"""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops() / 1e9


def light_operations(unet: UNet, z: torch.Tensor, phrases: int) -> tuple[float, float, int]:
    """GFLOP of the UNet to the last query that a light decoder reads, GFLOP of that decoder for so many phrases (their
    keys included), and its parameters."""
    def find(block: str) -> SpatialTransformer:
        return next(layer for layer in unet.get_submodule(block) if isinstance(layer, SpatialTransformer))

    with torch.device("meta"):
        decoder = LightDecoder(light_config(UNetConfig(), 512)).eval()
        context, timestep = torch.zeros(phrases, 77, 768), torch.zeros(1)
        layers = [tapped(find, tap) for tap in decoder.taps]
        valid, to_k = torch.ones(phrases, WORDS, dtype=torch.bool), torch.zeros(phrases, WORDS, 768)
    outputs: dict[str, torch.Tensor] = {}

    def read() -> None:
        with record(dict(zip(decoder.taps, layers, strict=True)), stop=True) as recorded:
            unet(z, timestep, context[:1])
        outputs.update(recorded)

    def decode() -> None:
        keys = []
        for layer in (layer for tap, layer in zip(decoder.taps, layers, strict=True) if tap in decoder.attends):
            weight = layer.weight.new_zeros(768, len(layer.weight))
            keys.append(Keys(to_k @ weight, valid, weight[:2]))
        maps = [outputs[tap] for tap in decoder.taps]
        decoder(z, context, decoder_features(decoder, maps, tuple(z.shape[-2:]), keys, UNetConfig().heads), timestep)

    features.exact = lambda like: nullcontext()  # autocast knows no meta device
    return count(read), count(decode), sum(p.numel() for p in decoder.parameters())


def main() -> None:
    with torch.device("meta"):
        vae, text, unet = Autoencoder(AutoencoderConfig()), ClipText(TextConfig()), UNet(UNetConfig())
        decoder = MaskDecoder(DecoderConfig("ldznet", UNetConfig()))
        image, z = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 4, SIDE // 8, SIDE // 8)
        tokens, timestep, context = torch.zeros(1, 77, dtype=torch.long), torch.zeros(1), torch.zeros(1, 77, 768)
        maps = unet.extract(z, timestep, context, decoder.taps)
    parts = {
        "VAE encoder": count(lambda: vae.encode(image)),
        "text encoder": count(lambda: text(tokens)),
        "SD UNet, whole": count(lambda: unet(z, timestep, context)),
        "SD UNet to the last map": count(lambda: unet.extract(z, timestep, context, decoder.taps)),
        "LD-ZNet decoder": count(lambda: decoder(z, context, maps)),
    }
    parts["SD UNet to the light decoder's last query"], parts["light decoder"], size = light_operations(unet, z, 1)
    for name, operations in parts.items():
        print(f"{name:42} {operations:8.1f} GFLOP")
    encoder, words, whole, partial, masks, early, light = parts.values()
    authors = encoder + words + whole + masks
    eight = early + PHRASES * words + light_operations(unet, z, PHRASES)[1]

    def share(operations: float, goal: str | None = None) -> dict:
        ratio, fact = operations / authors, {"measured": f"{operations / authors:.3f} ({operations:,.1f} GFLOP)"}
        return fact | ({"goal": goal, "met": ratio <= float(goal)} if goal else {})

    full = sum(p.numel() for p in decoder.parameters())
    ratio = eight / (early + words + light)
    facts = {
        f"operations, image to mask, over the authors' {authors:,.1f} GFLOP (SD 1.5, 384 px)":
            share(encoder + words + partial + masks, "0.87"),
        "operations, latent to mask": share(words + partial + masks, "0.45"),
        "operations, captured while sampling": share(words + masks),
        "light decoder, latent to mask": share(words + early + light, "0.17"),
        "light decoder, captured while sampling": share(words + light, "0.02"),
        "light decoder, eight phrases over one, from a latent":
            {"measured": f"{ratio:.2f}", "goal": "1.45", "met": ratio <= 1.45},
        "light decoder, megabytes in 16 bits": {"measured": f"{2 * size / 1e6:.1f} ({size / full:.4f} of LD-ZNet's)"},
    }  # fmt: skip
    for name, fact in facts.items():
        print(f"{name}: {fact['measured']}")
    write_result("cost", "cost.py", facts=facts)


if __name__ == "__main__":
    main()
