"""FAISS behind one small door: slots are appended, never removed, and searched with a bitmap of allowed slots.

What FAISS gets wrong is kept out here: no remove_ids, no IDMap (ids go wrong after removals), no IndexRefine (refuses
filters), padding with -1, and no thread safety between adding and searching (the collection's lock sees to that).
"""

from __future__ import annotations

import math
import os
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from service.retrieval.records import BuiltKind, Vector
from service.retrieval.slots import Bits, Slot

SQ8_SAMPLE = 65_536
_POINTS_PER_LIST = 40


def lists_for(rows: int) -> int:
    """Lists of an ivf_sq8 index of that many rows."""
    return max(1, min(65_536, int(2 * math.sqrt(rows))))


def sample_size(kind: BuiltKind, rows: int) -> int:
    """Random rows that training wants; more would only cost time."""
    if kind == "flat":
        return 0
    return min(rows, SQ8_SAMPLE if kind == "sq8" else max(SQ8_SAMPLE, _POINTS_PER_LIST * lists_for(rows)))


class VectorIndex:
    """Vectors by slot, compared by inner product. Not thread-safe between `add` and anything else."""

    def __init__(self, kind: BuiltKind, faiss_index: Any, *, nprobe: int | None = None, threads: int = 0) -> None:
        self.kind: BuiltKind = kind
        self._faiss = faiss_index
        self._nprobe = nprobe
        self._threads = threads or os.cpu_count() or 1

    @classmethod
    def train(
        cls, kind: BuiltKind, sample: Vector, *, dim: int, rows: int, nprobe: int | None, threads: int
    ) -> VectorIndex:
        """An empty index for about `rows` vectors like those of `sample`, which must be a random one."""
        faiss.omp_set_num_threads(threads or os.cpu_count() or 1)
        made: Any
        if kind == "flat":
            made = faiss.IndexFlatIP(dim)
        elif kind == "sq8":
            made = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            made.train(sample)
        else:
            made = faiss.IndexIVFScalarQuantizer(
                faiss.IndexFlatIP(dim),
                dim,
                min(lists_for(rows), len(sample)),
                faiss.ScalarQuantizer.QT_8bit,
                faiss.METRIC_INNER_PRODUCT,
            )
            made.cp.min_points_per_centroid = 1
            made.cp.seed = 1
            made.train(sample)
        return cls(kind, made, nprobe=nprobe, threads=threads)

    @property
    def count(self) -> int:
        return self._faiss.ntotal

    @property
    def dim(self) -> int:
        return self._faiss.d

    @property
    def exact(self) -> bool:
        return self.kind == "flat"

    @property
    def nbytes(self) -> int:
        """Memory of the codes and, for ivf_sq8, of ids and centroids."""
        if self.kind == "ivf_sq8":
            return self.count * (self._faiss.code_size + 8) + self._faiss.nlist * self.dim * 4
        return self.count * self._faiss.sa_code_size()

    @property
    def nprobe(self) -> int:
        """Lists that a search of an ivf_sq8 index looks into: an eighth unless set."""
        return min(self._faiss.nlist, self._nprobe or max(16, self._faiss.nlist // 8))

    def add(self, vectors: Vector) -> None:
        """Append float32 [n, D]; their slots are the next n."""
        if len(vectors):
            faiss.omp_set_num_threads(self._threads)
            self._faiss.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def scan(self, queries: Vector, k: int, allowed: Bits | None) -> tuple[NDArray[np.float32], Slot]:
        """Approximate scores [Q, k], falling, and slots [Q, k]; -1 where there are fewer.

        For `flat` the scores are inner products with float32 rounding only.
        """
        faiss.omp_set_num_threads(self._threads)
        made: Any = faiss  # its stubs know neither the array nor the keyword form of these constructors
        selector = None if allowed is None else made.IDSelectorBitmap(allowed)
        if self.kind == "ivf_sq8":
            parameters = made.SearchParametersIVF(sel=selector, nprobe=self.nprobe)
        else:
            parameters = None if selector is None else made.SearchParameters(sel=selector)
        return self._faiss.search(queries, min(k, self.count), params=parameters)

    def vectors_at(self, slots: Slot) -> Vector:
        """Copies of stored float32 vectors; of a flat index only."""
        if self.kind != "flat":
            raise TypeError(f"a {self.kind} index does not keep float32 vectors")
        return faiss.rev_swig_ptr(self._faiss.get_xb(), self.count * self.dim).reshape(self.count, self.dim)[slots]

    def decoded(self, slots: Slot) -> Vector:
        """What the index believes the vectors are: exact for flat, rounded to 8 bits for sq8."""
        if self.kind == "flat":
            return self.vectors_at(slots)
        if self.kind == "ivf_sq8":
            self._faiss.make_direct_map(True)
        out = np.empty((len(slots), self.dim), np.float32)
        for place, slot in enumerate(slots.tolist()):
            out[place] = self._faiss.reconstruct(slot)
        return out

    def rounded(self, vectors: Vector) -> Vector:
        """What these vectors would become in this index."""
        if self.kind == "flat" or not len(vectors):
            return vectors
        return self._faiss.sa_decode(self._faiss.sa_encode(np.ascontiguousarray(vectors)))

    def to_bytes(self) -> NDArray[np.uint8]:
        return faiss.serialize_index(self._faiss)

    @classmethod
    def from_bytes(cls, kind: BuiltKind, data: NDArray[np.uint8], *, nprobe: int | None, threads: int) -> VectorIndex:
        """From bytes whose checksum was verified: FAISS itself believes anything."""
        return cls(kind, faiss.deserialize_index(data), nprobe=nprobe, threads=threads)
