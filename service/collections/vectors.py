"""Vectors that callers bring or ask to combine: checked, and of length 1 whatever they were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InputError
from service.base64_text import NotBase64, decode_base64
from service.faults import NoDirection

Vector = NDArray[np.float32]
# What is left of vectors that should cancel out: float32 rounding, and the last bits of batches of other sizes.
_CANCELLED = 1e-5
_LONGEST = 1_000_000  # characters; more are no vector, and not worth decoding on the event loop


class InvalidVector(InputError):
    """Not a vector of the collection's dimension."""

    code = "invalid_vector"


def given_vector(value: Sequence[float] | str, dim: int) -> Vector:
    """A unit vector, float32 [dim], from floats or from base64 of little-endian float32.

    Raises:
        InvalidVector: another dimension, not base64, NaN or infinity.
        NoDirection: all zeros.
    """
    if isinstance(value, str):
        numbers = _from_base64(value, dim)
    elif len(value) == dim:
        numbers = np.asarray(value, dtype=np.float64)
    else:  # before they are converted: millions of numbers take a while
        raise InvalidVector(f"the vector has {len(value)} numbers, the collection's have {dim}")
    if not np.isfinite(numbers).all():
        raise InvalidVector("the vector holds NaN or infinity")
    return unit(numbers)


def unit(numbers: NDArray[np.float64]) -> Vector:
    """Scaled by its largest number first, so that no finite length overflows or vanishes. Raises NoDirection."""
    largest = float(np.abs(numbers).max())
    if largest == 0.0:
        raise NoDirection("the vector is zero: it points nowhere")
    scaled = numbers / largest
    return (scaled / np.linalg.norm(scaled)).astype(np.float32)


def combine(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """The unit vector of the weighted sum of unit vectors [D].

    Raises:
        NoDirection: nothing is left of them.
    """
    return unit(weighted_sum(vectors, weights))


def weighted_sum(vectors: Sequence[Vector], weights: Sequence[float]) -> NDArray[np.float64]:
    """The sum of unit vectors [D], the largest weight taken as 1.

    Raises:
        NoDirection: nothing is left of them.
    """
    scale = max(abs(weight) for weight in weights)
    if scale == 0.0:
        raise NoDirection("all weights are zero: the combination points nowhere")
    shares = np.array(weights, dtype=np.float64) / scale
    total = shares @ np.stack(vectors).astype(np.float64)
    if np.linalg.norm(total) <= _CANCELLED * np.abs(shares).sum():
        raise NoDirection("the parts cancel each other out: the combination points nowhere")
    return total


def given_size(value: Sequence[float] | str) -> int:
    """How many numbers a given vector has. Raises InvalidVector: text that is no base64."""
    if not isinstance(value, str):
        return len(value)
    return len(value) * 3 // 16 if len(value) > _LONGEST else len(_decoded(value)) // 4


def _from_base64(text: str, dim: int) -> NDArray[np.float64]:
    if len(text) > 32 * dim + 1000:  # twice what it may be, and a head: not worth decoding
        raise InvalidVector(
            f"the vector as text has {len(text)} characters; base64 of {dim} float32 has {4 * -(-4 * dim // 3)}"
        )
    data = _decoded(text)
    if len(data) != 4 * dim:
        raise InvalidVector(f"the vector as text has {len(data)} bytes; {dim} float32 have {4 * dim}")
    return np.frombuffer(data, dtype="<f4").astype(np.float64)


def _decoded(text: str) -> bytes:
    try:
        return decode_base64(text)
    except NotBase64 as error:
        raise InvalidVector(f"the vector is not base64 of little-endian float32: {error}") from None
