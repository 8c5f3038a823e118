"""Slots of an index: the row in each, and whether it is still alive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Slot = NDArray[np.int64]


class Slots:
    """Append-only: slot numbers are places in the index and never move; a dead slot only loses its bit.

    Row numbers grow with slots (see tables.py), so a row's slot is found by bisection, without a table.
    Not thread-safe: the collection's lock guards it.
    """

    def __init__(self, rids: NDArray[np.int64] | None = None) -> None:
        self._rids = np.zeros(1024, np.int64)
        self._bits = np.zeros(128, np.uint8)
        self.count = 0
        self.dead = 0
        if rids is not None:
            self.append(rids)

    @property
    def live(self) -> int:
        return self.count - self.dead

    @property
    def rids(self) -> NDArray[np.int64]:
        return self._rids[: self.count]

    @property
    def bits(self) -> Bits:
        """One bit for each slot, lowest first, set where it is alive."""
        return self._bits[: (self.count + 7) // 8]

    @property
    def nbytes(self) -> int:
        return self._rids.nbytes + self._bits.nbytes

    def append(self, rids: NDArray[np.int64]) -> None:
        """New slots, alive. Raises ValueError if the numbers do not grow."""
        if len(rids) and (np.any(np.diff(rids) <= 0) or (self.count and rids[0] <= self._rids[self.count - 1])):
            raise ValueError("row numbers must grow")
        after = self.count + len(rids)
        if after > len(self._rids):
            capacity = -(-max(after, 3 * self.count // 2) // 8) * 8
            self._rids = np.concatenate([self.rids, np.zeros(capacity - self.count, np.int64)])
            self._bits = np.concatenate([self._bits, np.zeros(capacity // 8 - len(self._bits), np.uint8)])
        self._rids[self.count : after] = rids
        set_bits(self._bits, np.arange(self.count, after))
        self.count = after

    def kill(self, rids: NDArray[np.int64]) -> None:
        """Raises KeyError if a row has no slot."""
        slots = self.slots_of(rids)
        if len(slots) != len(rids):
            raise KeyError("a removed row has no slot")
        before = count_bits(self._bits)
        np.bitwise_and.at(self._bits, slots >> 3, ~_masks(slots))
        self.dead += before - count_bits(self._bits)

    def slots_of(self, rids: NDArray[np.int64]) -> Slot:
        """Slots of those rows that have one, dead or alive."""
        places = np.searchsorted(self.rids, rids)
        places = np.minimum(places, max(self.count - 1, 0))
        return places[self.rids[places] == rids] if self.count else np.zeros(0, np.int64)

    def is_live(self, slots: Slot) -> NDArray[np.bool_]:
        return (self._bits[slots >> 3] & _masks(slots)) != 0

    def live_slots(self) -> Slot:
        return slots_in(self.bits)


def set_bits(bits: Bits, slots: Slot) -> None:
    np.bitwise_or.at(bits, slots >> 3, _masks(slots))


def slots_in(bits: Bits) -> Slot:
    """Slots whose bit is set, growing."""
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.int64)


def count_bits(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _masks(slots: Slot) -> Bits:
    return np.left_shift(np.uint8(1), (slots & 7).astype(np.uint8))
