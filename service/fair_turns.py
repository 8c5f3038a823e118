"""Turns on a few slots, shared fairly: they go round the waiting callers, and nobody has them all."""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.faults import ServiceOverloaded


@dataclass(eq=False)
class _Waiting:
    keys: Sequence[Hashable]
    round: int
    turn: asyncio.Future[None]


class FairTurns:
    """`slots` turns at a time, at most `each` of them to any one key. Belongs to one event loop.

    A key is whatever must not take everything: a caller, a collection. Each call of a key is for a round of its own,
    and rounds are served in order, first come, first served in each, among those whose keys have a turn left. So a key
    with many calls waits for itself, and others do not wait for it.
    """

    def __init__(self, slots: int, *, each: int, max_waiting: int, max_waiting_in_all: int | None = None) -> None:
        self._slots, self._each = slots, each
        self._max_waiting, self._max_waiting_in_all = max_waiting, max_waiting_in_all
        self._running = 0
        self._round = 0
        self._last_round: dict[Hashable, int] = {}  # of keys for which a call waits
        self._held: Counter[Hashable] = Counter()
        self._queued: Counter[Hashable] = Counter()
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def turn(self, keys: Sequence[Hashable]) -> AsyncGenerator[None]:
        """Wait for a turn, and have it as long as the block.

        Raises:
            ServiceOverloaded: as many calls wait as may, in all or with one of these keys.
        """
        if self._is_full():
            raise ServiceOverloaded(
                f"{self._max_waiting_in_all} calls wait already",
                still_s=lambda ahead: 1.0 if self._is_full(ahead) else None,
            )
        if any(self._queued[key] >= self._max_waiting for key in keys):
            raise ServiceOverloaded(f"{self._max_waiting} calls of this caller or collection wait already")
        before = max((self._last_round.get(key, 0) for key in keys), default=0)
        waiting = _Waiting(keys, max(self._round, before) + 1, asyncio.get_running_loop().create_future())
        self._last_round.update(dict.fromkeys(keys, waiting.round))
        bisect.insort(self._waiting, waiting, key=lambda each: each.round)
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
            is_gone = waiting.turn.done()  # cancelled just now, and leaves by itself
            if not is_gone and all(self._held[key] < self._each for key in waiting.keys):
                self._leave(waiting)
                self._round = max(self._round, waiting.round)
                self._running += 1
                self._held.update(waiting.keys)
                waiting.turn.set_result(None)

    def _leave(self, waiting: _Waiting) -> None:
        self._waiting.remove(waiting)
        self._queued -= Counter(waiting.keys)
        for key in waiting.keys:
            if key not in self._queued:
                self._last_round.pop(key, None)

    def _is_full(self, ahead: int = 0) -> bool:
        return self._max_waiting_in_all is not None and len(self._waiting) + ahead >= self._max_waiting_in_all
