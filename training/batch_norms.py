"""Batch norms of several processes: over the rows of all, or over each one's own with the statistics averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training import distributed


class JointBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes, with the parameters, buffers and names of the norm that it replaces.

    torch's SyncBatchNorm does this on GPUs only; this one is plain tensor operations, for CPUs. Gradients follow the
    convention of `training.distributed`: the mean over processes is that of one process with all rows.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        # timm's norms go on with a drop and an activation.
        following = [part for part in norm.children() if isinstance(norm, BatchNormAct2d)]
        self.after = nn.Sequential(*following)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same; B may differ between processes."""
        joint = self.training and distributed.count() > 1
        return self.after(self._joint(input) if joint else super().forward(input))

    def _joint(self, x: Tensor) -> Tensor:
        rows = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        exact = x.float()
        number = distributed.summed(torch.tensor([x.numel() / x.shape[1]], device=x.device))
        mean = _Sum.apply(exact.sum(rows)) / number  # pyright: ignore[reportOperatorIssue]
        centred = exact - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(rows)) / number  # pyright: ignore[reportOperatorIssue]
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * number / (number - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    def _follow(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the norm that this one replaces has looked."""


class _Sum(torch.autograd.Function):
    """The sum over processes; backwards, what the losses of all processes say of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return distributed.summed(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return distributed.summed(gradients[0])


def norms_in_training(modules: Sequence[nn.Module]) -> list[_BatchNorm]:
    """Batch norms that look at the batch: in train mode, so none of a locked tower."""
    found = (norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training)
    return list(dict.fromkeys(found))


def synchronise(modules: Sequence[nn.Module], *, device: str) -> None:
    """Let the batch norms that are trained see the rows of all processes; parameters and state keep their names.

    On GPUs they become torch's SyncBatchNorm (or timm's, with its activation), on CPUs `JointBatchNorm`.
    """
    for module in modules:
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm) and child.training:
                    setattr(parent, name, convert_sync_batchnorm(child) if device == "cuda" else JointBatchNorm(child))


def average_statistics(modules: Sequence[nn.Module]) -> None:
    """Replace the running statistics of norms that see their own process's rows by their mean over processes."""
    if distributed.count() == 1:
        return
    apart = [one for one in norms_in_training(modules) if not isinstance(one, JointBatchNorm | nn.SyncBatchNorm)]
    found = [each for norm in apart for each in (norm.running_mean, norm.running_var) if each is not None]
    if not found:
        return
    means = distributed.mean(torch.cat(found)).split([len(each) for each in found])
    for statistic, mean in zip(found, means, strict=True):
        statistic.copy_(mean)


@contextmanager
def statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Norms work as in training, but their running statistics stay: for a pass that another one repeats."""
    norms = [norm for norm in norms_in_training(modules) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
