"""The labels of a request as a conditional head takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NAME_BYTES = 64


@dataclass(frozen=True, eq=False)
class LabelTokens:
    """Ids of the texts of labels, in blocks int64 [at most one run's texts, L]; `counts` of them for each label.

    weak: indices of labels of which the model knows nothing.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    blocks: tuple[NDArray[np.int64], ...]
    weak: frozenset[int]

    @property
    def weak_names(self) -> list[str]:
        return [self.names[index] for index in sorted(self.weak)]

    @property
    def size_bytes(self) -> int:
        return sum(block.nbytes for block in self.blocks) + _NAME_BYTES * (len(self.names) + len(self.weak))

    def of_labels(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits [labels] from those of all texts: a label's is the mean over its own."""
        if len(logits) == len(self.names):
            return logits.astype(np.float64)
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        return np.add.reduceat(logits.astype(np.float64), starts) / np.array(self.counts)
