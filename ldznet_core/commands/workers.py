"""Work shared among processes that `accelerate launch` or torchrun start: who this process is, and how they end.

Every process reads its place from environment variables and takes its share by a rule. None of them gives out work.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import torch

from ..errors import BAD_INPUT, DONE, FAULT, InputError

# By torchrun and accelerate, by Intel MPI, by Open MPI and by MVAPICH2; the names that accelerate reads, too.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")

SEVERITY = (DONE, BAD_INPUT, FAULT)  # of exit statuses, the least severe first
LONGEST = timedelta(days=30)  # that a worker waits for the others


class Worker(NamedTuple):
    """One of `count` processes on one or more machines; `local_rank` is its number on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def share(self, items: Sequence) -> list:
        """Those of the items that this worker does; with the other workers' shares they are all, each once."""
        return list(items[self.rank :: self.count])


def this_worker() -> Worker:
    """This process among those that were started with it. Raises InputError where the variables make no sense."""
    worker = Worker(_number(RANK, 0), _number(COUNT, 1), _number(LOCAL_RANK, 0))
    if not 0 <= worker.rank < worker.count:
        raise InputError(f"RANK {worker.rank} is outside 0..{worker.count - 1}, with WORLD_SIZE {worker.count}: "
                         "unset both, or start the program with accelerate launch")
    return worker


def worst_status(worker: Worker, status: int) -> int:
    """The most severe exit status of all workers, once each has one.

    Launchers end all workers as soon as one ends with a status that is not 0, so none may end before the others.
    Workers without a launcher (no MASTER_ADDR) do not wait and keep their own.
    """
    if worker.count == 1 or "MASTER_ADDR" not in os.environ:
        return status
    import torch.distributed as dist

    severity = torch.tensor(SEVERITY.index(status))
    try:
        dist.init_process_group("gloo", timeout=LONGEST)
        dist.all_reduce(severity, dist.ReduceOp.MAX)
        dist.destroy_process_group()
    except RuntimeError:  # another worker was killed; its launcher knows
        return status
    return SEVERITY[severity.item()]


def _number(names: Sequence[str], default: int) -> int:
    for name in names:
        if text := os.environ.get(name):
            try:
                return int(text)
            except ValueError:
                raise InputError(f"the environment variable {name} is {text!r}, which is no number: unset it") from None
    return default
