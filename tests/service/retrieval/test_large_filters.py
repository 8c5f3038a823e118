"""Filters of many names, values or characters are checked and built away from the event loop."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from service.collections.checks import check_filter
from service.collections.plans import FieldRefused


def leaves_the_loop(filter: Any) -> bool:
    """Whether something else ran on the event loop while the filter was checked."""

    async def run() -> bool:
        others: list[str] = []
        asyncio.get_running_loop().call_soon(others.append, "ran")
        collection: Any = SimpleNamespace(spec=SimpleNamespace(metadata_schema={}))
        with suppress(FieldRefused):
            await check_filter(collection, filter)
        return bool(others)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("filter", "is_large"),
    [
        (None, False),
        ({"a": 1, "b": {"$in": ["x", "y"]}}, False),
        ({"$or": [{f"a{n}": {"$in": list(range(n, n + 78))}} for n in range(128)]}, True),
        ({"a": {"$in": list(range(500))}}, True),
        ({"$and": [{f"{n}" * 16: n} for n in range(100)]}, True),
        ({"$or": [{"$or": [{"a": {"$in": [1, 2, 3]}}] * 10}] * 10}, True),
        ({"a": "x" * 100_000}, True),
        ({"x" * 100_000: 1}, True),
        ({"a": {"$in": [{}] * 800}}, True),
    ],
)
def test_only_a_small_filter_is_built_on_the_event_loop(filter: Any, is_large: bool) -> None:
    assert leaves_the_loop(filter) == is_large
