"""Tip-Adapter: the shots kept as they are, and a picture drawn to the classes of those that it is near to.

Zhang et al., 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (ECCV), equations 3 to 6.
Two things differ. The shots of a class are averaged where the paper sums them, so that a class with fewer shots is not
held back (see `cache_of`). A shot is one vector of the picture as it is, where the authors' code averages ten crops.
"""

from __future__ import annotations

from typing import Any

from training.methods.parts.cache_heads import CacheHead, CacheOptions, best_knobs, cache_of, grid
from training.methods.parts.class_heads import F32, I64, ClassHead
from training.methods.parts.few_shot import HeadMethod


def create(options: dict[str, Any]) -> TipAdapterMethod:
    return TipAdapterMethod(CacheOptions.parse(options, method="tip_adapter"))


class TipAdapterMethod(HeadMethod):
    kinds = (CacheHead,)
    knobs = ("alpha", "beta")

    def __init__(self, options: CacheOptions) -> None:
        super().__init__(options)
        self.tip = options

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        cache = cache_of(self.zero_shot, shots, truth)
        chosen, curve = best_knobs(cache, grid(self.tip), validation, expected)
        return cache.at(chosen), {"alpha": chosen[0], "beta": chosen[1], "accuracy_by_alpha": curve}
