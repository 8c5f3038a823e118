"""Bitmaps of filters over slots, remembered and kept up to date."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.retrieval.index.slots import Bits, Slots, set_bits

# A digest, a mask's object and its place in the dictionary.
_ENTRY_BYTES = 512


@dataclass(frozen=True)
class SlotMask:
    """Slots whose rows match a filter, for all rows up to `last_rid`; dead ones may be among them.

    Rows never change, so a bit once known stays right, and only rows with larger numbers are missing.
    """

    bits: Bits
    last_rid: int
    generation: int
    unknown: tuple[str, ...] = ()  # fields of the filter that no row up to `last_rid` has

    @property
    def nbytes(self) -> int:
        """With what the cache itself needs for an entry."""
        return len(self.bits) + sum(map(len, self.unknown)) + _ENTRY_BYTES


class MaskCache:
    """By digest of the filter, least recently used first out.

    Guarded by the collection's gate, and emptied when the index is replaced.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._masks: OrderedDict[bytes, SlotMask] = OrderedDict()
        self._bytes = 0
        self.generation = 0

    @property
    def nbytes(self) -> int:
        return self._bytes

    def get(self, key: bytes) -> SlotMask | None:
        found = self._masks.get(key)
        if found:
            self._masks.move_to_end(key)
        return found

    def peek(self, key: bytes) -> SlotMask | None:
        """The same without counting as a use; needs no gate."""
        return self._masks.get(key)

    def put(self, key: bytes, mask: SlotMask) -> None:
        before = self._masks.pop(key, None)
        self._bytes += mask.nbytes - (before.nbytes if before else 0)
        self._masks[key] = mask
        while len(self._masks) > 1 and self._bytes > self._max_bytes:
            self._bytes -= self._masks.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """The slots are others now; masks that were taken out before are of an older generation."""
        self._masks.clear()
        self._bytes = 0
        self.generation += 1


@dataclass(frozen=True)
class Looked:
    """What a look at some rows found: those that match, growing, how far it went, fields that none of them has."""

    rids: NDArray[np.int64]
    last_rid: int
    unknown: tuple[str, ...]


def extended(mask: SlotMask | None, slots: Slots, looked: Looked, *, generation: int) -> SlotMask:
    """A new mask with more matching rows: the old one may be in use by a search."""
    bits = np.zeros((slots.count + 7) // 8, np.uint8)
    if mask:
        bits[: len(mask.bits)] = mask.bits
    set_bits(bits, slots.slots_of(looked.rids))
    return SlotMask(bits, looked.last_rid, generation, looked.unknown)
