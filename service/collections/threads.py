"""Threads for calls into the collection store, which block: reads, scans, writes, slow work and files share none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, TypeVar

from service.fair_turns import FairTurns
from service.faults import DeadlinePassed, ServiceOverloaded
from service.retrieval.errors import Interrupted
from service.retrieval.stopping import Stop
from service.timing import Budget

Lane = Literal["read", "scan", "write", "slow", "upkeep", "media"]
_T = TypeVar("_T")
# Many writers, because all that wait together share one sync of the disk.
_WRITERS = 16
_SLOW = 2
_MEDIA = 4  # files of the media root: a slow disk there keeps nobody else waiting
_MAX_CALLS = 256
_PASSED = "the request's deadline passed before the collection store was done"


class StoreThreads:
    """Six pools; each takes at most _MAX_CALLS calls, running or waiting. Belongs to one event loop.

    scanners: calls that look at many rows, which no collection and no caller has more than half of.
    """

    def __init__(self, *, readers: int, scanners: int) -> None:
        self._pools = {
            lane: ThreadPoolExecutor(max_workers=size, thread_name_prefix=f"store-{lane}")
            for lane, size in (
                ("read", readers),
                ("scan", scanners),
                ("write", _WRITERS),
                ("slow", _SLOW),
                ("upkeep", 1),
                ("media", _MEDIA),
            )
        }
        self._calls = dict.fromkeys(self._pools, 0)
        self._turns = FairTurns(scanners, each=max(1, scanners // 2), max_waiting=_MAX_CALLS // 4)
        self._stops: set[Stop] = set()

    async def run(
        self,
        lane: Lane,
        call: Callable[[Stop], _T],
        *,
        budget: Budget,
        stage: str = "",
    ) -> _T:
        """Run `call` in a thread of `lane`; its time, waiting included, counts as `stage`.

        A call that still waits when its deadline passes, or its caller is gone, is never begun. One that has begun is
        told so by the stop that it is given: a read or a scan ends at once; a write is whole or not at all.

        Raises:
            DeadlinePassed, ServiceOverloaded, and whatever `call` raises.
        """
        if self._calls[lane] >= _MAX_CALLS:
            raise ServiceOverloaded(f"{self._calls[lane]} calls of the collection store wait already")
        started = time.perf_counter()
        stop = Stop(budget.at)

        def begin() -> _T:
            stop.check()
            return call(stop)

        try:
            async with asyncio.timeout(budget.remaining_s()):
                return await asyncio.wrap_future(self._submit(lane, begin, stop))
        except (TimeoutError, Interrupted):
            raise DeadlinePassed(_PASSED) from None
        finally:
            stop.cancel()
            if stage:
                budget.timings.add(stage, time.perf_counter() - started)

    async def scan(
        self,
        call: Callable[[Stop], _T],
        *,
        shares: Sequence[Hashable],
        budget: Budget,
        stage: str = "",
    ) -> _T:
        """Run a call that looks at many rows, when it is the turn of all `shares`: its caller and its collection.

        The turn ends with the answer; the thread does within tenths of a second after. Raises as `run`.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(budget.remaining_s()), self._turns.turn(shares):
                return await self.run("scan", call, budget=budget)
        except TimeoutError:
            raise DeadlinePassed(_PASSED) from None
        finally:
            if stage:
                budget.timings.add(stage, time.perf_counter() - started)

    def close(self) -> None:
        """Calls that wait are dropped; those that run are told to stop, and writes go on to their end."""
        for stop in self._stops.copy():
            stop.cancel()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, lane: Lane, begin: Callable[[], _T], stop: Stop) -> Future[_T]:
        loop = asyncio.get_running_loop()
        self._calls[lane] += 1
        self._stops.add(stop)

        def ended(_: Future[_T]) -> None:
            """Called in the thread that ran the call, maybe long after its request was answered."""
            with suppress(RuntimeError):  # the loop is closed: nobody counts any more
                loop.call_soon_threadsafe(count)

        def count() -> None:
            self._calls[lane] -= 1
            self._stops.discard(stop)

        future = self._pools[lane].submit(begin)
        future.add_done_callback(ended)
        return future
