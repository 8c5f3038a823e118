"""Limits of one request: bytes, items, the length of every list, and turns for parsing large bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.faults import Overloaded, TooManyItems

_LARGE_BYTES = 2**20
_MAX_WAITING = 256


@dataclass(frozen=True)
class ListLimit:
    """Most elements of a list; `setting` names what changes that, None: nothing does."""

    most: int
    setting: str | None = None
    remedy: str = ""


class ParsingTurns:
    """Bodies that take a while to parse do so one after the other, each in a thread, those of over 1 MiB in a line of
    their own: the event loop competes with two threads at most, and the largest hold up none of ordinary size.
    """

    def __init__(self) -> None:
        self._turns = {False: asyncio.Lock(), True: asyncio.Lock()}
        self._waiting = {False: 0, True: 0}

    @asynccontextmanager
    async def turn(self, size_bytes: int) -> AsyncGenerator[None]:
        """Wait for one. Raises Overloaded: too many wait already."""
        is_large = size_bytes > _LARGE_BYTES
        if self._waiting[is_large] >= _MAX_WAITING:
            raise Overloaded(
                f"{_MAX_WAITING} bodies wait to be parsed",
                still_s=lambda ahead: 1.0 if self._waiting[is_large] + ahead >= _MAX_WAITING else None,
            )
        self._waiting[is_large] += 1
        try:
            await self._turns[is_large].acquire()
        finally:
            self._waiting[is_large] -= 1
        try:
            yield
        finally:
            self._turns[is_large].release()


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
