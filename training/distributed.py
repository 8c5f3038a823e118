"""Several processes as one: each takes its part of a batch, and what comes out is what one process would have got.

Started by `torchrun`; with one process every function here does nothing. Gradients are averaged over processes, and so
is the loss: what is right for one process must be the mean over processes of what each works out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

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
    found: dict[str, Tensor] = {}
    for name, tensor in batch.items():
        if len(tensor) % count():
            raise ValueError(
                f"a batch of {len(tensor)} does not divide among {count()} processes: set optim.batch_size"
            )
        share = len(tensor) // count()
        found[name] = tensor[rank() * share : (rank() + 1) * share]
    return found


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes, in one exchange; the same ones must be there everywhere."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if count() == 1 or not gradients:
        return
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = mean(torch.cat([gradient.flatten() for gradient in alike]))
        for gradient, part in zip(alike, flat.split([gradient.numel() for gradient in alike]), strict=True):
            gradient.copy_(part.view_as(gradient))


def average_statistics(modules: Iterable[nn.Module]) -> None:
    """Replace the running statistics of norms in train mode by their mean over processes.

    In the step itself a batch norm sees its own process's rows only, as in torch's DistributedDataParallel: with such
    norms, two processes are not one.
    """
    if count() == 1:
        return
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
                for statistic in (norm.running_mean, norm.running_var):
                    if statistic is not None:
                        statistic.copy_(mean(statistic))


def mean(value: Tensor) -> Tensor:
    """Over processes; no gradient."""
    if count() == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / count()


def from_first(value: T) -> T:
    """What process 0 has."""
    if count() == 1:
        return value
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


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
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[rank() * ctx.own : (rank() + 1) * ctx.own]


class _Scaled(torch.autograd.Function):
    """The same rows; backwards times the number of processes, which the mean over processes takes away again."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return own.view_as(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * count()
