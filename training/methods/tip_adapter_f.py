"""Tip-Adapter-F: the cache of Tip-Adapter with keys that are trained.

Zhang et al., 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (ECCV), section 3.2. The
authors' code keeps the epoch that is best on the TEST pictures, so the published numbers are flattered; here it is the
epoch that is best on validation, and epoch 0, before any step, is one of them. They train on augmented crops; here the
vectors are cached, so a shot in a batch is exactly one of the keys, which makes its own class easy to get right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch.nn import functional

from training.methods.parts.cache_heads import ALPHAS, CacheHead, CacheOptions, best_knobs, cache_of, grid
from training.methods.parts.class_heads import F32, I64, ClassHead, accuracy
from training.methods.parts.descent import epochs
from training.methods.parts.few_shot import HeadMethod, checked_grid


def _some_weight(alpha: tuple[float, ...]) -> tuple[float, ...]:
    if not any(alpha):
        raise ValueError("keys that have no weight cannot be trained: one alpha must be above 0")
    return alpha


class TrainedCacheOptions(CacheOptions):
    """epochs, batch, rate, eps: of AdamW on the keys; the authors' are the defaults.

    alpha: as there, but one must be above 0, for keys without a weight cannot be trained.
    """

    alpha: Annotated[tuple[float, ...], AfterValidator(checked_grid), AfterValidator(_some_weight)] = ALPHAS

    epochs: int = Field(default=20, ge=0)
    batch: int = Field(default=256, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    eps: float = Field(default=1e-4, gt=0)


def create(options: dict[str, Any]) -> TipAdapterFMethod:
    return TipAdapterFMethod(TrainedCacheOptions.parse(options, method="tip_adapter_f"))


class TipAdapterFMethod(HeadMethod):
    kinds = (CacheHead,)
    knobs = ("alpha", "beta", "epoch")

    def __init__(self, options: TrainedCacheOptions) -> None:
        super().__init__(options)
        self.tip = options

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        """Trained at the alpha and beta that are best before training; for the chosen keys both are set again."""
        cache, among = cache_of(self.zero_shot, shots, truth), grid(self.tip)
        trained_at, _ = best_knobs(cache, [knobs for knobs in among if knobs[0] > 0], validation, expected)
        start = cache.at(trained_at)
        chosen, kept, curve = 0, cache.keys, [accuracy(start, validation, expected)]
        for epoch, keys in trained_keys(start, shots, truth, self.tip, seed=self.seed):
            curve.append(accuracy(replace(start, keys=keys), validation, expected))
            if curve[epoch] > curve[chosen]:
                chosen, kept = epoch, keys
        trained = replace(cache, keys=kept)
        knobs, by_alpha = best_knobs(trained, among, validation, expected)
        return trained.at(knobs), {
            **dict(zip(self.knobs, (*knobs, chosen), strict=True)),
            "trained_at": {"alpha": trained_at[0], "beta": trained_at[1]},
            "accuracy_by_epoch": {str(epoch): share for epoch, share in enumerate(curve)},
            "accuracy_by_alpha": by_alpha,
        }


def trained_keys(
    head: CacheHead, shots: F32, truth: I64, options: TrainedCacheOptions, *, seed: int
) -> Iterator[tuple[int, F32]]:
    """(epoch, keys [K, D]) after each epoch of cross-entropy on the shots [n, D], classes int64 [n]; values stay."""
    graph, x, y = head.module(), torch.from_numpy(shots), torch.from_numpy(truth)
    graph.keys.requires_grad_(True)
    for epoch in epochs(
        [graph.keys],
        lambda rows: functional.cross_entropy(graph(x[rows]), y[rows]),
        rows=len(x),
        count=options.epochs,
        batch=options.batch,
        rate=options.rate,
        eps=options.eps,
        seed=seed,
    ):
        yield epoch, graph.keys.detach().numpy().copy()
