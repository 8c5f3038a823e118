"""Vectors that callers bring: their length is compared before their numbers are read."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pytest

from service.collections.encoding import _known_parts
from service.collections.plans import GivenVector
from service.collections.vectors import InvalidVector, given_vector
from service.retrieval import CollectionSpec


class Unread(Sequence[float]):
    """A list of numbers that nobody may look at."""

    def __len__(self) -> int:
        return 4_000_000

    @overload
    def __getitem__(self, place: int) -> float: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[float]: ...
    def __getitem__(self, place: int | slice) -> float | Sequence[float]:
        raise AssertionError("a number was read")

    def __iter__(self) -> Iterator[float]:
        raise AssertionError("a number was read")


def test_a_vector_of_another_length_is_refused_unread() -> None:
    with pytest.raises(InvalidVector, match="has 4000000 numbers, the collection's have 3"):
        given_vector(Unread(), 3)


def test_a_vector_of_the_right_length_is_scaled_to_length_1() -> None:
    assert np.allclose(given_vector([3.0, 0.0, 4.0], 3), [0.6, 0.0, 0.8])


@pytest.mark.parametrize(("count", "is_much"), [(8, False), (64, True)])
def test_many_given_vectors_are_read_away_from_the_event_loop(count: int, is_much: bool) -> None:
    async def run() -> bool:
        others: list[str] = []
        asyncio.get_running_loop().call_soon(others.append, "ran")
        spec = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=512)
        found = await _known_parts([GivenVector([1.0] * 512)] * count, spec)
        assert len(found) == count
        return bool(others)

    assert asyncio.run(run()) == is_much
