"""Bitmaps of filters over slots, remembered and kept up to date."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.retrieval.slots import Bits, Slots, set_bits


@dataclass
class Mask:
    """Slots whose rows match a filter, for all rows up to `last_rid`; dead ones may be among them.

    Rows never change, so a bit once known stays right, and only rows with larger numbers are missing.
    """

    bits: Bits
    last_rid: int
    generation: int


class MaskCache:
    """Least recently used masks first out. Guarded by the collection's gate, and emptied when the index is replaced."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._masks: OrderedDict[str, Mask] = OrderedDict()
        self.generation = 0

    def get(self, key: str) -> Mask | None:
        found = self._masks.get(key)
        if found:
            self._masks.move_to_end(key)
        return found

    def put(self, key: str, mask: Mask) -> None:
        self._masks[key] = mask
        self._masks.move_to_end(key)
        while len(self._masks) > 1 and sum(len(mask.bits) for mask in self._masks.values()) > self._max_bytes:
            self._masks.popitem(last=False)

    def clear(self) -> None:
        """The slots are others now; masks that were taken out before are of an older generation."""
        self._masks.clear()
        self.generation += 1


def extended(mask: Mask | None, slots: Slots, rids: NDArray[np.int64], last_rid: int, *, generation: int) -> Mask:
    """A new mask with more matching rows: the old one may be in use by a search."""
    bits = np.zeros((slots.count + 7) // 8, np.uint8)
    if mask:
        bits[: len(mask.bits)] = mask.bits
    set_bits(bits, slots.slots_of(rids))
    return Mask(bits, last_rid, generation)
