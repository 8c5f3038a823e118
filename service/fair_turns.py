"""Who of several waiting callers may use one of a few slots next, so that nobody has them all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.faults import Overloaded


@dataclass(eq=False)
class _Waiting:
    keys: Sequence[Hashable]
    turn: asyncio.Future[None]


class FairTurns:
    """`slots` turns at a time, at most `each` of them to any one key. Belongs to one event loop.

    A key is whatever must not take everything: a caller, a collection. First come, first served among those whose keys
    have a turn left, so a key with many calls waits for itself and not the others for it.
    """

    def __init__(self, slots: int, *, each: int, max_waiting: int) -> None:
        self._slots, self._each, self._max_waiting = slots, each, max_waiting
        self._running = 0
        self._held: Counter[Hashable] = Counter()
        self._queued: Counter[Hashable] = Counter()
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def turn(self, keys: Sequence[Hashable]) -> AsyncGenerator[None]:
        """Wait for a turn, and have it as long as the block.

        Raises:
            Overloaded: as many calls with one of these keys wait as may.
        """
        if any(self._queued[key] >= self._max_waiting for key in keys):
            raise Overloaded(f"{self._max_waiting} calls of this caller or collection wait already")
        waiting = _Waiting(keys, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._queued.update(keys)
        self._next()
        try:
            await waiting.turn
            yield
        finally:
            if waiting in self._waiting:
                self._leave(waiting)
            else:
                self._running -= 1
                self._held -= Counter(keys)
            self._next()

    def _next(self) -> None:
        for waiting in list(self._waiting):
            if self._running >= self._slots:
                return
            if all(self._held[key] < self._each for key in waiting.keys):
                self._leave(waiting)
                self._running += 1
                self._held.update(waiting.keys)
                waiting.turn.set_result(None)

    def _leave(self, waiting: _Waiting) -> None:
        self._waiting.remove(waiting)
        self._queued -= Counter(waiting.keys)
