"""JSON text -> values: what they will cost is counted in the text first, so that no body makes millions of objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic_core

from service.faults import TooManyItems
from service.http.body_memory import FREE_BYTES
from service.http.errors import Refusal

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 2**18
_QUOTE, _COMMA, _COLON = ord('"'), ord(","), ord(":")
_NOT_STRUCTURE = bytes(code for code in range(256) if code not in b'"[]{},:')
_IS_OPENING = np.isin(np.arange(256), list(b"[{"))
# What a value costs, as bytes: at least those that CPython keeps for it and its place in a list or an object, and more
# where time is what counts, since nothing else runs while the parser does. Measured: a number takes 45 ns, a string 100
# to 210 ns, a name not seen before 300 to 430 ns, a container 160 to 240 ns. So 128 MiB of any are a fifth of a second.
_NUMBER_BYTES, _STRING_BYTES, _NAME_BYTES, _CONTAINER_BYTES = 48, 128, 256, 256


@dataclass(frozen=True)
class JsonCounts:
    """What a JSON text holds: `names` are those of fields, `containers` lists and objects."""

    numbers: int
    strings: int
    names: int
    containers: int

    @property
    def parsed_bytes(self) -> int:
        """What its values cost, beside the characters of its strings: no less than the memory that they take."""
        return (
            _NUMBER_BYTES * self.numbers
            + _STRING_BYTES * self.strings
            + _NAME_BYTES * self.names
            + _CONTAINER_BYTES * self.containers
        )


def check_json(raw: bytes, *, max_parsed_bytes: int) -> int:
    """What the values of a JSON text will cost, as bytes; 0 for one that is so short that nobody counts its memory.

    Raises:
        TooManyItems: more than `max_parsed_bytes`; none of them has been made.
    """
    if len(raw) <= FREE_BYTES and (len(raw) + 1) * _CONTAINER_BYTES <= max_parsed_bytes:
        return 0  # no character makes more than one value
    counts = count_values(raw, max_parsed_bytes=max_parsed_bytes)
    if counts.parsed_bytes > max_parsed_bytes:
        raise TooManyItems(
            f"the body holds {counts.numbers} numbers, {counts.strings} strings, {counts.names} names, "
            f"{counts.containers} lists and objects, or more: parsed, they count as {counts.parsed_bytes} bytes, the "
            f"limit is {max_parsed_bytes} (CLIPWORKS_MAX_PARSED_BYTES); send less in one request, vectors as base64"
        )
    return counts.parsed_bytes


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text that was checked; it may begin with a byte order mark. Raises Refusal: 400."""
    try:
        return pydantic_core.from_json(raw.removeprefix(_BOM), allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, "invalid_json", f"the body is not valid JSON: {error}") from None


def count_values(raw: bytes, *, max_parsed_bytes: int) -> JsonCounts:
    """Count the values of a JSON text; ends early when they are over the limit.

    A text that is not JSON is counted right up to the place where a parser stops.
    """
    quotes = commas = colons = opened = 0
    inside = False
    for structure in _structures(raw):
        is_quote = structure == _QUOTE
        within = np.bitwise_xor.accumulate(is_quote) ^ inside if len(structure) else is_quote
        outside = structure[~(within | is_quote)]
        inside = bool(within[-1]) if len(structure) else inside
        quotes += int(np.count_nonzero(is_quote))
        commas += int(np.count_nonzero(outside == _COMMA))
        colons += int(np.count_nonzero(outside == _COLON))
        opened += int(np.count_nonzero(_IS_OPENING[outside]))
        counts = _counts(quotes, commas, colons, opened)
        if counts.parsed_bytes > max_parsed_bytes:
            return counts
    return _counts(quotes, commas, colons, opened)


def _counts(quotes: int, commas: int, colons: int, opened: int) -> JsonCounts:
    """Each value but the first of a list or an object has a comma before it; names have a colon behind them."""
    texts = (quotes + 1) // 2
    names = min(colons, texts)
    strings = texts - names
    numbers = commas + 1 - strings
    return JsonCounts(numbers=max(0, numbers), strings=strings, names=names, containers=opened)


def _structures(raw: bytes) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Chunk by chunk the characters that JSON is built with, escaped quotes left out."""
    rest = b""
    for start in range(0, len(raw), _CHUNK_BYTES):
        # A run of backslashes is read in pairs from its start; what is left over escapes the character behind it.
        chunk = (rest + raw[start : start + _CHUNK_BYTES]).replace(b"\\\\", b"")
        rest = b""
        if chunk.endswith(b"\\"):
            chunk, rest = chunk[:-1], b"\\"
        yield np.frombuffer(chunk.replace(b'\\"', b"").translate(None, _NOT_STRUCTURE), dtype=np.uint8)
