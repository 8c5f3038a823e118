"""Pictures whose vectors of a model are near: a copy that is mirrored, cropped or coloured anew has another hash.

Vectors are kept as whole numbers: NORM times a unit vector, rounded. Every sum of products of two of them is then a
whole number below 2^24, which float32 holds exactly: a cosine is the same in whatever order or blocks it was summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from training.building.duplicates import BEST
from training.building.pair_table import PairTable

NEAR_VECTOR = "near duplicate by vectors"
NORM = 4000  # (NORM + sqrt(dim) / 2)^2 < 2^24 up to 8,000 dimensions
DTYPE = np.dtype("<i2")
_SUFFIX, _KEPT = ".vectors", "vectors.kept"
_BLOCK, _COLUMNS = 512, 4096  # pictures that are compared with others at a time, and those others


def rounded(vector: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
    """A unit vector, float [dim], as it is kept: int16 [dim]; two bytes a dimension."""
    return np.rint(np.asarray(vector, dtype=np.float64) * NORM).astype(DTYPE)


def vectors_path(facts: Path) -> Path:
    """Where the vectors of a unit lie: int16 [pairs, dim]; the rows of pairs without one are holes of the file."""
    return facts.with_suffix(_SUFFIX)


def write_vector(stream: BinaryIO, place: int, vector: NDArray[np.int16]) -> None:
    stream.seek(place * vector.nbytes)
    stream.write(vector.tobytes())


@dataclass(frozen=True, kw_only=True)
class _Block:
    """ids: int64 [n] of pairs. whole: int16 [n, dim]. vectors: the same, float32. squares: float64 [n], of norms."""

    ids: NDArray[np.int64]
    whole: NDArray[np.int16]
    vectors: NDArray[np.float32] = field(init=False)
    squares: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        vectors = self.whole.astype(np.float32)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "squares", np.einsum("nd,nd->n", vectors, vectors).astype(np.float64))

    def some(self, places: NDArray[np.int64]) -> _Block:
        return _Block(ids=self.ids[places], whole=self.whole[places])


def drop_near_vectors(
    table: PairTable,
    facts: Sequence[Path],
    folder: Path,
    *,
    cosine: float,
    dim: int,
    block: int = _BLOCK,
    columns: int = _COLUMNS,
) -> None:
    """Largest pictures first, each stays unless its cosine with a picture that stays is at least `cosine`.

    Exact: each picture is compared with all that stay, which lie in a file in `folder` meanwhile. Memory is some blocks
    of vectors, whatever the number of pictures; time grows with its square.

    facts: of each unit; their vectors lie beside them (`vectors_path`). block, columns: of no effect but on cost.

    Raises:
        OSError: vectors are not there, or the file cannot be written.
    """
    path = folder / _KEPT
    path.unlink(missing_ok=True)
    try:
        with table.db, path.open("w+b") as kept:
            rows = table.db.execute(f"SELECT id, unit, place FROM pairs WHERE state = '' ORDER BY {BEST}")
            gone = _gone(_blocks(rows, facts, dim, block), kept, cosine, dim, columns)
            table.db.execute("CREATE TEMP TABLE far(id INTEGER PRIMARY KEY, twin INTEGER)")
            table.db.executemany("INSERT INTO far VALUES(?, ?)", gone)
            table.db.execute(
                "UPDATE pairs SET state = ?, twin = far.twin FROM far WHERE far.id = pairs.id", (NEAR_VECTOR,)
            )
        table.db.execute("DROP TABLE temp.far")
    finally:
        path.unlink(missing_ok=True)


def _blocks(rows: Iterator[tuple[int, int, int]], facts: Sequence[Path], dim: int, size: int) -> Iterator[_Block]:
    while found := list(islice(rows, size)):
        whole = np.empty((len(found), dim), dtype=DTYPE)
        for row, (_, unit, place) in enumerate(found):
            with vectors_path(facts[unit]).open("rb") as stream:
                stream.seek(place * dim * DTYPE.itemsize)
                whole[row] = np.frombuffer(stream.read(dim * DTYPE.itemsize), dtype=DTYPE)
        yield _Block(ids=np.array([number for number, _, _ in found], dtype=np.int64), whole=whole)


def _gone(blocks: Iterator[_Block], kept: BinaryIO, cosine: float, dim: int, columns: int) -> Iterator[tuple[int, int]]:
    """(id, id of the best picture that stays and is near) of each that goes; `kept` takes the others."""
    for block in blocks:
        twins = np.full(len(block.ids), -1, dtype=np.int64)
        for other in _kept(kept, dim, columns):
            late, early = _near(block, other, cosine)
            first = np.unique(late, return_index=True)  # in the order of what stays
            new = twins[first[0]] < 0
            twins[first[0][new]] = other.ids[early[first[1][new]]]
        _greedy(block, twins, cosine)
        stays = np.nonzero(twins < 0)[0]
        _keep(kept, block.some(stays))
        yield from ((int(block.ids[place]), int(twins[place])) for place in np.nonzero(twins >= 0)[0])


def _greedy(block: _Block, twins: NDArray[np.int64], cosine: float) -> None:
    """Twins inside of a block: places ascend, so an earlier one is decided."""
    free = np.nonzero(twins < 0)[0]
    some = block.some(free)
    late, early = _near(some, some, cosine)
    for one, other in zip(late.tolist(), early.tolist(), strict=True):
        if other < one and twins[free[one]] < 0 and twins[free[other]] < 0:
            twins[free[one]] = some.ids[other]


def _near(ones: _Block, others: _Block, cosine: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places with at least this cosine, ascending, int64 [found] each."""
    products = ones.vectors @ others.vectors.T
    lengths = np.sqrt(ones.squares[:, None] * others.squares[None])
    late, early = np.nonzero(products >= cosine * lengths)
    return late, early


def _record(dim: int) -> np.dtype[np.void]:
    return np.dtype([("id", "<i8"), ("vector", DTYPE, (dim,))])


def _kept(stream: BinaryIO, dim: int, columns: int) -> Iterator[_Block]:
    record = _record(dim)
    stream.seek(0)
    while data := stream.read(columns * record.itemsize):
        found = np.frombuffer(data, dtype=record)
        yield _Block(ids=found["id"], whole=found["vector"])


def _keep(stream: BinaryIO, block: _Block) -> None:
    records = np.empty(len(block.ids), dtype=_record(block.whole.shape[1]))
    records["id"], records["vector"] = block.ids, block.whole
    stream.seek(0, 2)
    stream.write(records.tobytes())
