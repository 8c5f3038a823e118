"""The cache of Tip-Adapter: a head that remembers its shots, and how near a picture is to those of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from training.methods.parts.class_heads import F32, I64, ClassHead, LinearHead, accuracy, best_of
from training.methods.parts.few_shot import checked_grid
from training.methods.parts.shots import ShotOptions

ALPHAS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
BETAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
Knobs = tuple[float, float]


class CacheOptions(ShotOptions):
    """alpha: weights of the cache that validation chooses from; 0 is zero-shot alone. beta: how fast nearness falls.

    A weight means the same at every number of shots, because a class's shots are averaged: k times the paper's.
    """

    alpha: Annotated[tuple[float, ...], AfterValidator(checked_grid)] = ALPHAS
    beta: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(checked_grid)] = BETAS


@dataclass(frozen=True, kw_only=True)
class CacheHead(ClassHead):
    """logits [n, C] = x @ weight + bias + exp(-beta (1 - x @ keys.T)) @ values, of unit vectors x [n, D].

    keys [K, D]: the shots. values [K, C]: what each adds to the logits, so alpha is in them. beta: a number, [].
    """

    keys: F32
    values: F32
    beta: F32

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = (len(self.values), len(self.weight)), (len(self.keys), len(self.bias)), ()
        found = self.keys.shape, self.values.shape, self.beta.shape
        if found != wanted:
            raise ValueError(f"keys, values and beta have shapes {found}, expected {wanted}")

    def __call__(self, vectors: NDArray[np.floating]) -> F32:
        x = vectors.astype(np.float32)
        return x @ self.weight + self.bias + np.exp(self.beta * (x @ self.keys.T - np.float32(1))) @ self.values

    def module(self) -> CacheGraph:
        return CacheGraph(self)

    def at(self, knobs: Knobs) -> CacheHead:
        """With (alpha, beta): the values times alpha, and another beta."""
        alpha, beta = knobs
        return replace(self, values=np.float32(alpha) * self.values, beta=np.array(beta, dtype=np.float32))


class CacheGraph(nn.Module):
    """A `CacheHead` in torch, unit vectors [B, D] -> logits [B, C]; frozen unless its user lets the keys move."""

    weight: nn.Parameter
    bias: nn.Parameter
    keys: nn.Parameter
    values: nn.Parameter
    beta: nn.Parameter

    def __init__(self, head: CacheHead) -> None:
        super().__init__()
        for name, array in head.arrays().items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False))
        self.eval()

    def forward(self, vectors: Tensor) -> Tensor:
        near = torch.exp(self.beta * (vectors @ self.keys.T - 1))
        return vectors @ self.weight + self.bias + near @ self.values


def cache_of(zero_shot: LinearHead, shots: F32, truth: I64) -> CacheHead:
    """zero-shot logits + the mean nearness to the shots of each class, at alpha 1 and beta 1.

    Unit shots [n, D] of classes int64 [n]; Zhang et al., 2022, "Tip-Adapter", equations 3 to 6, but for the mean: the
    paper sums, and so gives a class with fewer shots smaller logits. Rows lie by class, so that a class after all
    others is added by appending its rows. A class without a shot is left to zero-shot.
    """
    order = np.argsort(truth, kind="stable")
    keys, ordered = np.ascontiguousarray(shots[order], dtype=np.float32), truth[order]
    counts = np.bincount(truth, minlength=len(zero_shot.bias))
    values = np.zeros((len(keys), len(counts)), dtype=np.float32)
    values[np.arange(len(keys)), ordered] = 1 / counts[ordered]
    return CacheHead(
        weight=zero_shot.weight, bias=zero_shot.bias, keys=keys, values=values, beta=np.array(1, dtype=np.float32)
    )


def grid(options: CacheOptions) -> list[Knobs]:
    """Every (alpha, beta) of the options."""
    return [(alpha, beta) for alpha in options.alpha for beta in options.beta]


def best_knobs(
    cache: CacheHead, among: Sequence[Knobs], validation: F32, expected: I64
) -> tuple[Knobs, dict[str, float]]:
    """(alpha, beta) at which the cache is most often right on validation, and each alpha's accuracy at its best beta.

    Of equals it is the smallest alpha, and then the smallest beta.
    """
    found = {knobs: accuracy(cache.at(knobs), validation, expected) for knobs in among}
    by_alpha = {alpha: max(each for knobs, each in found.items() if knobs[0] == alpha) for alpha, _ in among}
    return best_of(found), {f"{alpha:g}": share for alpha, share in sorted(by_alpha.items())}
