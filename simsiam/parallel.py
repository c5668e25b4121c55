"""Several processes that train one model together: what `torchrun` starts.

Each process has the whole model and takes its share of every batch. On GPUs BatchNorm is computed over the whole batch
(SyncBatchNorm, for which the host waits in every layer); on CPUs, where torch has no such layer, over each process's share,
and the running statistics are those of process 0. Without `torchrun` there is one process, and nothing here does anything.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simsiam.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)  # how long a process waits for one that has stopped answering


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Find the other processes when `torchrun` started this one, and part from them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield  # a process that fails leaves without a word, and torchrun ends the others
    dist.barrier()
    dist.destroy_process_group()


def local_device() -> torch.device:
    """The GPU of this process when there is one, else the CPU. Raises UserError when there are fewer GPUs than processes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise UserError(f"there are {torch.cuda.device_count()} GPUs: start at most as many processes on a machine")
    return torch.device("cuda", number)


def share(module: nn.Module) -> nn.Module:
    """The module as all processes train it: equal weights from process 0, gradients averaged. It shares its parameters."""
    if size() == 1:
        return module
    if next(module.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, (n * processes, ...), with their gradient.

    A loss that every process computes of all rows is the loss of the whole batch, and the average of the processes'
    gradients is its gradient; the average of losses that each computes of its own rows is another function.
    """
    return _Gathered.apply(rows) if size() > 1 else rows


class _Gathered(torch.autograd.Function):
    """Every process's rows are in every process's loss, so their gradient is the sum of all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        pieces = [torch.empty_like(rows) for _ in range(size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total.chunk(size())[rank()]


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= size()
    return values


def any_of(value: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes."""
    return value if size() == 1 else float(mean(torch.tensor(float(value), device=device))) > 0


def first_alone(action: Callable[[], T]) -> T:
    """Do something in process 0, and only then in the others."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    result = action()
    if size() > 1 and rank() == 0:
        dist.barrier()
    return result
