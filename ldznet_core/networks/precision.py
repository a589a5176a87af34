"""Which precision networks run in on the machine at hand."""

from collections.abc import Sequence

import torch
from torch import Tensor


def computes_in_bfloat16(device: str | torch.device) -> bool:
    """Whether the device multiplies in bfloat16. A CPU without AVX-512 BF16 or AMX emulates it at several times the
    cost of float32."""
    if torch.device(device).type != "cpu":
        return True
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe)


def half_precision(device: str | torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device computes in it; elsewhere a context that changes nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=computes_in_bfloat16(device))


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """A batch in float32 of tensors of one shape in any precision. Autocast on a CPU does not stack float16."""
    return torch.stack([tensor.float() for tensor in tensors])
