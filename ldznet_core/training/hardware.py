"""What makes small networks train fast on the machine at hand."""

import ctypes

import torch
from torch import nn


def keep_heap() -> None:
    """Keep freed memory in the process: returning and fetching it each step costs a third of a CPU step's time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # no mmap, no trimming, grow by 256 MiB
        mallopt(option, value)


def compile_on_gpu(device: str, *networks: nn.Module) -> None:
    """These networks are small: on a GPU launching their kernels costs more than the arithmetic."""
    if torch.device(device).type == "cuda":
        for network in networks:
            network.compile()
