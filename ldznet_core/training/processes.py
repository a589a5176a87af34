"""The processes of one training run: a single one, or those that `accelerate launch` started."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

BUCKET = 64 * 2**20  # bytes that are sent at once


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`. Only the main one, number 0, writes files."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors of one dtype up over all processes, in place. Does nothing where there is one process."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for number, tensor in enumerate(tensors):
            bucket.append(tensor)
            if number == len(tensors) - 1 or sum(t.nbytes for t in bucket) >= BUCKET:
                flat = torch.cat([t.reshape(-1) for t in bucket])
                torch.distributed.all_reduce(flat)
                for own, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    own.copy_(total.view_as(own))
                bucket = []

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes()


def join(count: int, device: str) -> tuple[Processes, str]:
    """Join the `count` processes that a launcher started: who we are, and the device to use (`device` where there is
    one process). Raises InputError where accelerate is not installed, or does not see the others."""
    if count == 1:
        return ALONE, device
    try:
        from accelerate import PartialState
    except ImportError:
        raise InputError("training with several processes needs accelerate: pip install accelerate") from None
    state = PartialState(cpu=torch.device(device).type == "cpu")
    if state.num_processes != count:
        raise InputError(
            f"{count} processes were started, of which accelerate sees {state.num_processes}: "
            "start them with accelerate launch"
        )
    return Processes(state.process_index, count), str(state.device)
