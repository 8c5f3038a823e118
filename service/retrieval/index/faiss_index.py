"""FAISS behind a small interface: slots are appended, never removed, and searched with a bitmap of allowed slots.

What FAISS gets wrong is kept out here: no remove_ids, no IDMap (ids go wrong after removals), no IndexRefine (refuses
filters), padding with -1, and no thread safety between adding and searching (the collection's lock sees to that).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from service.retrieval.errors import StoreClosed
from service.retrieval.index.matrix import LEAST_QUERIES, scan_blocks
from service.retrieval.index.slots import Bits, Slot
from service.retrieval.records import BuiltKind, Vector

Codes = NDArray[np.uint8]
SQ8_SAMPLE = 65_536
_POINTS_PER_LIST = 40
_CLUSTERING_STEPS = 10


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
        library: Any = faiss
        self._rounding: Vector | None = None
        self._plain: Any = library.SearchParametersIVF(nprobe=self.nprobe) if kind == "ivf_sq8" else None

    @classmethod
    def train(
        cls,
        kind: BuiltKind,
        sample: Vector,
        *,
        dim: int,
        rows: int,
        nprobe: int | None,
        threads: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> VectorIndex:
        """An empty index for about `rows` vectors like those of `sample`, which must be a random one.

        stop: asked between the steps of a long training. Raises StoreClosed if it says so.
        """
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
            _cluster(made, sample, stop)
            made.train(sample)  # finds the lists trained, and trains the codes
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

    @property
    def faiss(self) -> Any:
        """The index itself, for comparisons; nothing may be added to it here."""
        return self._faiss

    def probe(self, lists: int | None) -> None:
        """Look into that many lists from now on; None takes the default share. Not while others search."""
        self._nprobe = lists
        self._plain = _plain_parameters(self)

    def reserve(self, rows: int) -> None:
        """Room for that many rows, so that adding them leaves no half-used memory. Lists of ivf_sq8: see `tighten`."""
        if self.kind != "ivf_sq8":
            size = self._faiss.codes.size()
            self._faiss.codes.resize(max(size, rows * self._faiss.sa_code_size()))
            self._faiss.codes.resize(size)

    def tighten(self) -> None:
        """Copy the lists of an ivf_sq8 index to what they need: grown by doubling they keep a third for nothing."""
        if self.kind != "ivf_sq8":
            return
        library: Any = faiss
        old = self._faiss.invlists
        new = library.ArrayInvertedLists(old.nlist, old.code_size)
        for place in range(old.nlist):
            if size := old.list_size(place):
                new.add_entries(place, size, old.get_ids(place), old.get_codes(place))
        self._faiss.replace_invlists(new, True)
        new.this.disown()

    def add(self, vectors: Vector) -> None:
        """Append float32 [n, D]; their slots are the next n."""
        if len(vectors):
            faiss.omp_set_num_threads(self._threads)
            self._faiss.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def scan(self, queries: Vector, k: int, allowed: Bits | None) -> tuple[NDArray[np.float32], Slot]:
        """Approximate scores [Q, k], falling, and slots [Q, k]; -1 where there are fewer.

        For `flat` the scores are inner products with float32 rounding only.
        """
        if self.kind != "ivf_sq8" and len(queries) >= LEAST_QUERIES:
            return self._scan_blocks(queries, k, allowed)
        faiss.omp_set_num_threads(self._threads)
        library: Any = faiss  # its stubs know neither the array nor the keyword form of these constructors
        parameters = self._plain
        if allowed is not None:
            selector = library.IDSelectorBitmap(allowed)
            if self.kind == "ivf_sq8":
                parameters = library.SearchParametersIVF(sel=selector, nprobe=self.nprobe)
            else:
                parameters = library.SearchParameters(sel=selector)
        return self._faiss.search(queries, min(k, self.count), params=parameters)

    def doubt(self, queries: Vector) -> Vector:
        """By how much two scores [Q] of an index of bytes may be in the wrong order: six standard deviations.

        Each number is rounded to one of 255 steps, so it is wrong by up to half a step, evenly distributed.
        """
        if self._rounding is None:
            self._rounding = (np.square(self._ranges()[1] / 255) / 12).astype(np.float32)
        return 6 * np.sqrt(2 * (np.square(queries) @ self._rounding))

    def _scan_blocks(self, queries: Vector, k: int, allowed: Bits | None) -> tuple[Vector, Slot]:
        if self.kind == "flat":
            held = self._flat()
            return scan_blocks(queries, self.count, k, lambda start, stop: held[start:stop], allowed=allowed)
        # FAISS decodes code c of column d as low[d] + (c + 0.5) / 255 * width[d]; here the query takes the scale.
        low, width = self._ranges()
        codes: Codes = faiss.rev_swig_ptr(self._faiss.codes.data(), self.count * self.dim)
        codes = codes.reshape(self.count, self.dim)
        scaled = (queries * (width / 255)).astype(np.float32, copy=False)
        scores, slots = scan_blocks(
            scaled, self.count, k, lambda start, stop: codes[start:stop].astype(np.float32), allowed=allowed
        )
        offsets = (queries @ (low + width / 510)).astype(np.float32, copy=False)
        return scores + offsets[:, None], slots

    def _ranges(self) -> tuple[Vector, Vector]:
        """Least value and width of each column, as trained."""
        trained: Vector = faiss.vector_to_array(self._faiss.sq.trained)
        return trained[: self.dim], trained[self.dim :]

    def _flat(self) -> Vector:
        return faiss.rev_swig_ptr(self._faiss.get_xb(), self.count * self.dim).reshape(self.count, self.dim)

    def vectors_at(self, slots: Slot) -> Vector:
        """Copies of stored float32 vectors; of a flat index only."""
        if self.kind != "flat":
            raise TypeError(f"a {self.kind} index does not keep float32 vectors")
        return self._flat().take(slots, axis=0)

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


def _cluster(made: Any, sample: Vector, stop: Callable[[], bool]) -> None:
    """Train the lists of an ivf index as FAISS would, but one step at a time: it cannot be interrupted itself."""
    parameters = made.cp  # spherical, as FAISS chooses for inner products
    parameters.niter = 1
    parameters.min_points_per_centroid = 1
    parameters.seed = 1
    clustering = faiss.Clustering(made.d, made.nlist, parameters)
    for _ in range(_CLUSTERING_STEPS):
        if stop():
            raise StoreClosed("the store is closing: an index that was being trained is left unfinished")
        clustering.train(sample, made.quantizer)  # pyright: ignore  (goes on from the centroids of the step before)


def _plain_parameters(index: VectorIndex) -> Any:
    library: Any = faiss
    return library.SearchParametersIVF(nprobe=index.nprobe) if index.kind == "ivf_sq8" else None
