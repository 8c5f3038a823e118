"""Training batches that depend on nothing but (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.augment import CaptionAugment, ImageAugment
from training.data.rows import Row, caption_ids

Tokenize = Callable[[Sequence[str]], NDArray[np.int64]]
_BATCH_STREAM, _EPOCH_STREAM = 0, 1


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of captioned images; the last incomplete batch of an epoch is dropped.

    `pixels` uint8 [N, S, S, 3] belong to `rows`. Batch fields: image uint8 [B, size, size, 3], text int64 [B, L],
    caption_id int64 [B] (equal for equal case-folded captions, before augmentation).
    """

    rows: Sequence[Row]
    pixels: NDArray[np.uint8]
    image_augment: ImageAugment
    caption_augment: CaptionAugment
    tokenize: Tokenize
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.rows) < self.batch_size:
            raise ValueError(f"{len(self.rows)} training rows do not fill one batch of {self.batch_size}")
        object.__setattr__(self, "_caption_ids", caption_ids([row.caption for row in self.rows]))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.batch_size

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, _EPOCH_STREAM, epoch)).permutation(len(self.rows))
        picks = order[position * self.batch_size : (position + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, _BATCH_STREAM, step))
        images = np.stack([self.image_augment(self.pixels[i], rng) for i in picks])
        texts = self.tokenize([self.caption_augment(self.rows[i].caption, rng) for i in picks])
        ids: NDArray[np.int64] = object.__getattribute__(self, "_caption_ids")
        return {
            "image": torch.from_numpy(images),
            "text": torch.from_numpy(texts),
            "caption_id": torch.from_numpy(ids[picks]),
        }
