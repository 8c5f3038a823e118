"""Epochs over cached vectors inside a fit, for heads that have weights to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def epochs(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[NDArray[np.int64]], Tensor],
    *,
    rows: int,
    count: int,
    batch: int,
    rate: float,
    seed: int,
    eps: float = 1e-8,
) -> Iterator[int]:
    """The number of each epoch, 1 to `count`, after its steps of AdamW; the rate falls to 0 as a cosine.

    loss: a scalar of rows int64 [b]. Each epoch takes all `rows` in an order of its own, which depends on (seed, epoch)
    only.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, eps=eps)
    steps = count * -(-rows // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
    for epoch in range(1, count + 1):
        order = np.random.default_rng((seed, epoch)).permutation(rows)
        for start in range(0, rows, batch):
            optimizer.zero_grad()
            loss(order[start : start + batch]).backward()
            optimizer.step()
            schedule.step()
        yield epoch
