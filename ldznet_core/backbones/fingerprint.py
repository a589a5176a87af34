"""Tells models apart by their weights, whatever their files are called."""

import hashlib

import torch

from .base import TorchBackbone

SAMPLES = 64  # values of each tensor; a merged LoRA changes nearly all of them


@torch.inference_mode()
def fingerprint(backbone: TorchBackbone) -> str:
    """16 hexadecimal digits of what a backbone computes with: VAE, text encoders, denoiser, noise and scale.

    It hashes names, shapes and evenly spaced values of all tensors, so a model of some GB takes seconds. It is the same
    on every device. It differs where a LoRA is merged, and between precisions.
    """
    sizes = backbone.unet_config
    digest = hashlib.sha256(repr((backbone.prediction, backbone.scale, sizes.num_heads, sizes.head_channels)).encode())
    digest.update(backbone.schedule.alphas_cumprod.float().cpu().numpy().tobytes())
    for part, network in backbone.networks.items():
        for name, tensor in sorted(network.named_parameters()):
            digest.update(f"{part} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            step = tensor.numel() // SAMPLES | 1  # odd, so that the values are not all of one column
            values = tensor.reshape(-1)[::step].cpu().contiguous()
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
