"""Averages gradients over processes in buckets, each on its way while backward still works the earlier layers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.distributed import count

BUCKET_BYTES = 25 * 2**20  # as torch's DistributedDataParallel


@dataclass
class _Bucket:
    parameters: list[nn.Parameter]
    missing: set[nn.Parameter] = field(default_factory=set)
    flat: Tensor | None = None
    work: Any = None


class GradientExchange:
    """Replaces gradients by their mean over processes: `start` before the last backward pass of a step, `finish` after.

    Gradients of earlier passes (of parts of a batch) are included, and parameters that got none are left out; the same
    ones must have one in every process. Buckets are sent in one fixed order, the last parameters first, because that is
    the order in which backward reaches them. With one process nothing happens.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._buckets: list[_Bucket] = []
        self._of: dict[nn.Parameter, _Bucket] = {}
        self._next: int | None = None  # the bucket to be sent next; None: nothing is sent during backward
        if count() == 1:
            return
        filled = bucket_bytes
        for parameter in reversed(parameters):
            if not parameter.requires_grad:
                continue
            alike = self._buckets and self._buckets[-1].parameters[0].dtype == parameter.dtype
            if filled >= bucket_bytes or not alike:
                self._buckets.append(_Bucket([]))
                filled = 0
            self._buckets[-1].parameters.append(parameter)
            self._of[parameter] = self._buckets[-1]
            filled += parameter.numel() * parameter.element_size()
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def start(self) -> None:
        """The next backward pass completes the gradients."""
        if not self._buckets:
            return
        for bucket in self._buckets:
            bucket.missing = set(bucket.parameters)
        self._next = 0

    def finish(self) -> None:
        """Send what is left, and put every mean in its place."""
        for bucket in self._buckets[self._next or 0 :]:
            _send(bucket)
        self._next = None
        for bucket in self._buckets:
            _receive(bucket)

    def _arrived(self, parameter: nn.Parameter) -> None:
        if self._next is None:
            return
        self._of[parameter].missing.discard(parameter)
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            _send(self._buckets[self._next])
            self._next += 1


def _gradients(bucket: _Bucket) -> list[Tensor]:
    return [parameter.grad for parameter in bucket.parameters if parameter.grad is not None]


def _send(bucket: _Bucket) -> None:
    if gradients := _gradients(bucket):
        bucket.flat = torch.cat([gradient.flatten() for gradient in gradients])
        bucket.work = distributed.all_reduce(bucket.flat, async_op=True)


def _receive(bucket: _Bucket) -> None:
    if bucket.flat is None:
        return
    bucket.work.wait()
    gradients = _gradients(bucket)
    parts = (bucket.flat / count()).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    bucket.flat = bucket.work = None
