"""Float32 vectors of an index that itself keeps only bytes: by slot, in a file mapped into memory.

Rescoring reads some dozen rows for each query. From SQLite each costs a page of 16 KiB and its checksum (30 us); from a
mapping it costs a copy of one row (0.2 us). The kernel keeps of it in memory what is used, and gives it back if needed.

The file is a copy: each row is checked against a sum kept in memory whenever it is read, and what is not right is read
from the truth instead. It is written with `pwrite`, so a full disk is an error and not a signal.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.retrieval.index.slots import Slot
from service.retrieval.records import Vector

Sums = NDArray[np.uint64]
_LEAST_ROWS = 1024


class MappedVectors:
    """Append-only rows [n, D]. `append` is for one thread, with nobody reading `count`; `rows` for any number.

    Reading must not depend on a lock: an older mapping stays valid while an array looks into it, also once the file is
    deleted.
    """

    def __init__(self, path: Path, dim: int, *, sums: Sums | None = None) -> None:
        """A new file; or, with the sums of the rows that it must hold, one that was written before.

        Raises:
            OSError
            ValueError: the file is shorter than its sums.
        """
        self.path = path
        self._dim = dim
        self.count = 0 if sums is None else len(sums)
        self._sums = np.zeros(0, np.uint64) if sums is None else sums
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if sums is None else 0)
        self._descriptor = os.open(path, flags, 0o644)
        try:
            rows = os.fstat(self._descriptor).st_size // (4 * dim)
            if rows < self.count:
                raise ValueError(f"{path.name} holds {rows} rows, {self.count} were written")
            self._rows = self._grown(max(_LEAST_ROWS, self.count))
        except BaseException:
            os.close(self._descriptor)
            raise

    def __del__(self) -> None:
        if hasattr(self, "_rows"):
            os.close(self._descriptor)

    @property
    def sums(self) -> Sums:
        return self._sums[: self.count]

    @property
    def nbytes(self) -> int:
        """Memory of the sums; the rows are the kernel's to keep or to drop."""
        return self._sums.nbytes

    def append(self, vectors: Vector) -> None:
        """Raises OSError; the rows before stay as they were."""
        if not len(vectors):
            return
        after = self.count + len(vectors)
        if after > len(self._rows):
            self._rows = self._grown(max(after, 3 * self.count // 2))
        data = memoryview(np.ascontiguousarray(vectors, dtype="<f4").view(np.uint8).reshape(-1).data)
        place = 4 * self._dim * self.count
        while data:
            written = os.pwrite(self._descriptor, data, place)
            data, place = data[written:], place + written
        self._sums[self.count : after] = row_sums(vectors)
        self.count = after

    def rows(self, slots: Slot) -> tuple[Vector, NDArray[np.bool_]]:
        """Copies of rows [n, D] that were appended before, and which of them are what was written."""
        found = self._rows.take(slots, axis=0)
        return found, row_sums(found) == self._sums[slots]

    def sync(self) -> None:
        """Onto the disk, for a snapshot that counts on it. Raises OSError."""
        os.fdatasync(self._descriptor)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    def _grown(self, capacity: int) -> Vector:
        """A mapping of that many rows; there is room for as many sums then."""
        size = 4 * self._dim * capacity
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)
        mapping = mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ)
        mapping.madvise(mmap.MADV_RANDOM)
        self._sums = np.concatenate([self.sums, np.zeros(capacity - self.count, np.uint64)])
        return np.frombuffer(mapping, dtype="<f4").reshape(capacity, self._dim)


def row_sums(vectors: Vector) -> Sums:
    """Of each row's bits, as 64-bit words (32-bit ones of an odd width), modulo 2^64: one flipped bit changes it."""
    word = np.uint32 if vectors.shape[1] % 2 else np.uint64
    return np.ascontiguousarray(vectors, dtype="<f4").view(word).sum(axis=1, dtype=np.uint64)
