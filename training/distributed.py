"""Several processes as one: each takes its part of a batch, and what comes out is what one process would have got.

Started by `torchrun`; with one process every function here does nothing. Gradients are averaged over processes, and so
is the loss: what is right for one process must be the mean over processes of what each works out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

P = TypeVar("P")
T = TypeVar("T")


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if count() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of the processes that `torchrun` started, for a block; alone without it. On GPUs, one each.

    device: "auto", "cpu" or "cuda".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or count() > 1:
        yield
        return
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 runs a block before the others do: what it leaves on disk they find."""
    if rank() != 0:
        distributed.barrier()
    yield
    if rank() == 0 and count() > 1:
        distributed.barrier()


def part_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's rows of a batch that all processes have drawn alike.

    Raises:
        ValueError: the batch does not divide evenly.
    """
    return {name: tensor[own_rows(len(tensor), process=rank(), processes=count())] for name, tensor in batch.items()}


def own_rows(rows: int, *, process: int, processes: int) -> slice:
    """Which of a batch's rows are one process's.

    Raises:
        ValueError: the batch does not divide evenly.
    """
    if rows % processes:
        raise ValueError(f"a batch of {rows} does not divide among {processes} processes: set optim.batch_size")
    share = rows // processes
    return slice(process * share, (process + 1) * share)


def mean(value: Tensor) -> Tensor:
    """Over processes; no gradient."""
    return summed(value) / count() if count() > 1 else value


def summed(value: Tensor) -> Tensor:
    """Over processes; no gradient."""
    if count() == 1:
        return value
    total = value.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def launched_first() -> bool:
    """Whether this process speaks for all: process 0 of those that `torchrun` started, before and after they join."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0


def divided(parts: Sequence[P], work: Callable[[P], T]) -> list[T]:
    """`work` of every part, in order: each process does every n-th of them, and all processes get all results.

    All of them must call it with the same parts, and `work` must not speak to other processes.
    """
    if count() == 1:
        return [work(part) for part in parts]
    own = [work(part) for part in parts[rank() :: count()]]
    everybody: list[list[T]] = [[] for _ in range(count())]
    distributed.all_gather_object(everybody, own)
    return [everybody[at % count()][at // count()] for at in range(len(parts))]


def gathered(value: T) -> list[T]:
    """What each process has, in their order; small things, through pickle."""
    if count() == 1:
        return [value]
    box: list[Any] = [None] * count()
    distributed.all_gather_object(box, value)
    return box


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """How contrastive losses see the rows of all processes.

    local_loss: each process works out the loss of its own rows only, against all columns: less memory and time on many
    processes. with_gradient: gradients flow back to the process that a row came from. Without it, a row's gradient is
    taken where it is from, which is all of it only if every process works out the whole loss.

    Raises:
        ValueError: a local loss without gathered gradients, which lacks what other processes' rows say of this one's.
    """

    local_loss: bool = False
    with_gradient: bool = True

    def __post_init__(self) -> None:
        if self.local_loss and not self.with_gradient:
            raise ValueError("local_loss without gather_with_grad gives wrong gradients: set both, or neither")

    def vectors(self, own: Tensor) -> Tensor:
        """[b, D] of this process -> [B, D] of all, in the order of the batch; differentiable."""
        if count() == 1:
            return own
        if self.with_gradient:
            return _Gathered.apply(own)  # pyright: ignore[reportReturnType]
        parts = list(_all(own.detach()).split(len(own)))
        parts[rank()] = _Scaled.apply(own)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return torch.cat(parts)

    def facts(self, own: Tensor) -> Tensor:
        """Ids or flags [b] of this process -> [B] of all."""
        return _all(own) if count() > 1 else own

    def rows(self, own: int) -> slice | None:
        """Which rows of the gathered batch this process works the loss out for; None: all."""
        return slice(rank() * own, (rank() + 1) * own) if self.local_loss and count() > 1 else None


def _all(own: Tensor) -> Tensor:
    parts = [torch.empty_like(own) for _ in range(count())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)


class _Gathered(torch.autograd.Function):
    """Rows of all processes; backwards, each row gets the sum of what every process's loss says of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.own = len(own)
        return _all(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = summed(gradients[0])
        return total[rank() * ctx.own : (rank() + 1) * ctx.own]


class _Scaled(torch.autograd.Function):
    """The same rows; backwards times the number of processes, which the mean over processes takes away again."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return own.view_as(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * count()
