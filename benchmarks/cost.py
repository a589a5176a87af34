"""Operations for one full-size LD-ZNet mask with SD 1.5, against the authors' way: `python benchmarks/cost.py`.

Counted by torch on the meta device, so nothing is computed: convolutions and matrix products, two operations a
multiplication. Both ways are counted in this run; the authors' runs the whole of SD's UNet.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.decoder import DecoderConfig, MaskDecoder
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig

SIDE = 384


def count(work) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops() / 1e9


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
        "decoder": count(lambda: decoder(z, context, maps)),
    }
    for name, operations in parts.items():
        print(f"{name:24} {operations:8.1f} GFLOP")
    encoder, words, whole, partial, masks = parts.values()
    authors = encoder + words + whole + masks
    ways = {"image to mask": encoder + words + partial + masks, "latent to mask": words + partial + masks,
            "captured to mask": words + masks}
    print(f"{'authors, image to mask':24} {authors:8.1f} GFLOP")
    for name, operations in ways.items():
        print(f"{name:24} {operations:8.1f} GFLOP, {operations / authors:.3f} of the authors'")


if __name__ == "__main__":
    main()
