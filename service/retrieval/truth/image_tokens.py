"""Position vectors of pictures that a collection may keep beside its rows, for a reranker.

A blob is float16 [P, width], little-endian, row by row; the width is the collection's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.retrieval.errors import InvalidItem
from service.retrieval.truth.beside import BesideKind

MAX_TOKEN_BYTES = 2**24
IMAGE_TOKENS = BesideKind(
    tables="image_tokens",
    totals="image_token_totals",
    column="positions",
    counted="pictures",
    one="position vectors",
    many="sets of position vectors",
)


def pack_tokens(tokens: NDArray[np.float32]) -> bytes:
    """float32 [P, width] as a blob. Raises InvalidItem: a number is too large for half precision, or is none."""
    with np.errstate(over="ignore"):
        halves = tokens.astype("<f2")
    if not np.isfinite(halves).all():
        raise InvalidItem("the position vectors of this picture do not fit half precision, in which they are kept")
    if halves.nbytes > MAX_TOKEN_BYTES:
        raise InvalidItem(
            f"the position vectors of this picture take {halves.nbytes} bytes, the limit is {MAX_TOKEN_BYTES}"
        )
    return halves.tobytes()


def unpack_tokens(blob: bytes, width: int) -> NDArray[np.float32]:
    """float32 [P, width] of a blob whose length was checked when it was stored."""
    return np.frombuffer(blob, dtype="<f2").astype(np.float32).reshape(-1, width)
