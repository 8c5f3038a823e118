"""Limits of one request: bytes, items, the length of every list, and turns for parsing large bodies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from service.fair_turns import FairTurns
from service.faults import TooManyItems

MAX_QUERY_FIELDS = 1000
MAX_LENGTH_DIGITS = 19  # of a Content-Length; llhttp allows any number of leading zeros, Python 4,300 digits in all
_LARGE_BYTES = 2**20
_MAX_WAITING = 256
_MAX_WAITING_EACH = 64  # of one caller


@dataclass(frozen=True)
class ListLimit:
    """Most elements of a list; `setting` names what changes that, None: nothing does."""

    most: int
    setting: str | None = None
    remedy: str = ""


class ParsingTurns:
    """Bodies that take a while to parse do so one after the other, each in a thread, those of over 1 MiB in a line of
    their own: the event loop competes with two threads at most, and the largest hold up none of ordinary size. Turns go
    round the callers, and none has more than a fourth of the places of a line.
    """

    def __init__(self) -> None:
        self._small, self._large = (
            FairTurns(1, each=1, max_waiting=_MAX_WAITING_EACH, max_waiting_in_all=_MAX_WAITING) for _ in range(2)
        )

    def turn(self, size_bytes: int, *, caller: str) -> AbstractAsyncContextManager[None]:
        """Wait for one, and have it as long as the block. Raises ServiceOverloaded: too many wait already."""
        return (self._large if size_bytes > _LARGE_BYTES else self._small).turn([caller])


@dataclass(frozen=True)
class IngressLimits:
    """Bounds of one request; `lists` bounds each list of a body by the name of its field."""

    max_body_bytes: int
    max_image_bytes: int
    max_items: int
    body_timeout_s: float
    max_parsed_bytes: int = 128 * 2**20
    lists: Mapping[str, ListLimit] = field(default_factory=dict[str, ListLimit])
    parsing: ParsingTurns = field(default_factory=ParsingTurns, compare=False)

    def check_list(self, name: str, count: int) -> None:
        """Raises TooManyItems for a list or an object of more than its elements; `name` is its field."""
        limit = self.lists.get(name)
        if limit is not None and count > limit.most:
            setting = f" ({limit.setting})" if limit.setting else ""
            raise TooManyItems(f"{name} has {count} elements, the limit is {limit.most}{setting}{limit.remedy}")
