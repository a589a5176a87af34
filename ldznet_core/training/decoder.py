"""Trains a mask decoder of any kind on a backbone's latents and feature maps, and writes its file."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..data.base import Dataset
from ..decoders.base import Decoder, DecoderInfo
from ..decoders.files import write_decoder
from .hardware import compile_on_gpu
from .loop import Plan, train
from .task import DecoderTask, Settings

log = logging.getLogger(__name__)


def train_decoder(
    decoder: Decoder,
    backbone: TorchBackbone,
    dataset: Dataset,
    path: Path,
    plan: Plan,
    info: DecoderInfo,
    settings: Settings,
    seed: int = 0,
) -> None:
    """Train a decoder and write it to `path`; its checkpoint lies beside, in a folder of the same name.

    The file holds `info`, what `settings` say of templates, timesteps and conditions, and steps, samples and seed.
    """
    decoder.to(plan.device).train().requires_grad_(True)
    compile_on_gpu(plan.device, decoder)
    info = replace(
        info, templates=tuple(settings.templates), timesteps=settings.timesteps, conditions=tuple(settings.conditions)
    )
    task = DecoderTask(decoder, backbone, dataset, settings, seed)

    def report(averaged: dict[str, Tensor], trained: dict) -> None:
        decoder.load_state_dict(averaged)
        training = info.training | trained | {"seed": seed, "samples": trained["steps"] * settings.batch}
        write_decoder(decoder, replace(info, training=training), path)
        log.info("wrote %s", path)

    torch.manual_seed(seed)
    train(decoder, lambda moment: task.loss(moment.step, moment.part), plan, path.with_suffix(""), report)
