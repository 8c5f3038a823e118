"""Position vectors of pictures that a collection may keep beside its rows, for a reranker.

A blob is two uint16, rows and columns of the grid, then float16 [rows, columns, width], all little-endian; the width is
the collection's.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from service.retrieval.errors import InvalidItem
from service.retrieval.truth.beside import BesideKind

MAX_POSITIONS_BYTES = 2**24
POSITIONS = BesideKind(
    tables="positions",
    totals="position_totals",
    column="grid",
    counted="pictures",
    one="position vectors",
    many="sets of position vectors",
)
_SHAPE = struct.Struct("<HH")


def pack_positions(positions: NDArray[np.float32]) -> bytes:
    """A blob of positions float32 [rows, columns, width]. Raises InvalidItem: half precision cannot hold a number."""
    with np.errstate(over="ignore"):
        halves = positions.astype("<f2")
    if not np.isfinite(halves).all():
        raise InvalidItem("the position vectors of this picture do not fit half precision, in which they are kept")
    return _SHAPE.pack(*positions.shape[:2]) + halves.tobytes()


def unpack_positions(blob: bytes, width: int) -> NDArray[np.float32]:
    """float32 [rows, columns, width] of a blob whose form was checked when it was stored."""
    rows, columns = _SHAPE.unpack_from(blob)
    return np.frombuffer(blob, "<f2", offset=_SHAPE.size).astype(np.float32).reshape(rows, columns, width)


def problem_of_positions(blob: bytes, width: int) -> str | None:
    """What is wrong with the form of a blob, in a sentence."""
    if len(blob) > MAX_POSITIONS_BYTES:
        return f"position vectors of a picture take {len(blob)} bytes, the limit is {MAX_POSITIONS_BYTES}"
    if len(blob) < _SHAPE.size:
        return "position vectors have no shape"
    rows, columns = _SHAPE.unpack_from(blob)
    wanted = _SHAPE.size + 2 * width * rows * columns
    if not rows * columns or len(blob) != wanted:
        return f"position vectors of {rows} x {columns} places must have {wanted} bytes, got {len(blob)}"
    return None
