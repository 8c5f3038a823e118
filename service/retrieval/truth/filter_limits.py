"""Limits of a filter's size, counted from the outside in before anything is built of it.

SQLite takes 32,766 values and expressions 1,000 deep in one statement; these limits keep a filter well below both.
"""

from __future__ import annotations

import math
from typing import Any, cast

from service.retrieval.errors import InvalidFilter

MAX_DEPTH = 8
MAX_CONDITIONS = 128
MAX_CHOICES = 1000
MAX_VALUES = 10_000
MAX_STRING_BYTES = 4096
MAX_BYTES = 1 << 20
_SMALL = 128  # names, values, and as many characters of them


def check_size(filter: dict[Any, Any]) -> int:
    """The number of conditions of a filter: operators, and objects without any, which cost as much.

    Also that each value is one that the store can hold. Other mistakes are left to whoever reads the filter.

    Raises:
        InvalidFilter: over a limit, with the place and the limit; NaN, a whole number beyond 64 bits.
    """
    count = _Count()
    count.filter(filter, "filter", 1)
    return max(1, count.conditions)


def is_small(filter: Any) -> bool:
    """Whether a filter can be checked and built in well under a millisecond; looks at no more of it than that."""
    left = _SMALL
    waiting: list[Any] = [filter]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (dict, list)):
            inner = cast("dict[Any, Any] | list[Any]", each)
            left -= len(inner)
            if left >= 0 and isinstance(inner, dict):
                waiting += [*inner.keys(), *inner.values()]
            elif left >= 0:
                waiting += inner
        elif isinstance(each, str):
            left -= len(each) // _SMALL
        if left < 0:
            return False
    return True


class _Count:
    def __init__(self) -> None:
        self.conditions = self._values = self._bytes = 0

    def filter(self, filter: dict[Any, Any], path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"nested deeper than {MAX_DEPTH}, which is the limit", path=path)
        if not filter:
            self._condition(path)
        for key, value in filter.items():
            if isinstance(key, str):
                self._add_bytes(len(key), path)
            here = f"{path}.{str(key)[:80]}"
            if key in ("$and", "$or") and isinstance(value, list):
                for place, part in enumerate(cast("list[Any]", value)):
                    if isinstance(part, dict):
                        self.filter(cast("dict[Any, Any]", part), f"{here}[{place}]", depth + 1)
                    else:
                        return  # refused by whoever reads it
            elif key == "$not" and isinstance(value, dict):
                self.filter(cast("dict[Any, Any]", value), here, depth + 1)
            elif isinstance(value, dict):
                for name, wanted in cast("dict[Any, Any]", value).items():
                    self._operator(wanted, here if name == "$eq" else f"{here}.{str(name)[:80]}")
            else:
                self._operator(value, here)

    def _operator(self, wanted: Any, path: str) -> None:
        self._condition(path)
        if not isinstance(wanted, list):
            self._value(wanted, path)
            return
        choices = cast("list[Any]", wanted)
        if len(choices) > MAX_CHOICES:
            raise InvalidFilter(f"{len(choices)} choices, the limit is {MAX_CHOICES}", path=path)
        for place, choice in enumerate(choices):
            self._value(choice, f"{path}[{place}]")

    def _condition(self, path: str) -> None:
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            what = f"more than {MAX_CONDITIONS} conditions (an empty object counts as one), which is the limit"
            raise InvalidFilter(what, path=path)

    def _value(self, value: Any, path: str) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise InvalidFilter(f"more than {MAX_VALUES} values in all, which is the limit", path=path)
        if isinstance(value, str):
            self._string(value, path)
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise InvalidFilter("an integer beyond 64 bits", path=path)
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidFilter("NaN and Infinity are no values", path=path)

    def _string(self, value: str, path: str) -> None:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidFilter("a string that is not valid Unicode", path=path) from None
        if size > MAX_STRING_BYTES:
            raise InvalidFilter(f"a string of {size} bytes, the limit is {MAX_STRING_BYTES}", path=path)
        self._add_bytes(size, path)

    def _add_bytes(self, size: int, path: str) -> None:
        self._bytes += size
        if self._bytes > MAX_BYTES:
            raise InvalidFilter(
                f"more than {MAX_BYTES} bytes of names and strings in all, which is the limit", path=path
            )


def kind_of(value: Any) -> str:
    """A value's kind in words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else "something else"
