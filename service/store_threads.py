"""Threads for calls into the collection store, which block: searches, writes and slow work never share a pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, TypeVar

from service.faults import DeadlineExceeded, Overloaded
from service.timing import Deadline, Timings

Lane = Literal["read", "write", "slow", "upkeep"]
_T = TypeVar("_T")
# Many writers, because all that wait together share one sync of the disk.
_WRITERS = 16
_SLOW = 2
_MAX_CALLS = 256


class StoreThreads:
    """Four pools; each takes at most _MAX_CALLS calls, running or waiting. Belongs to one event loop."""

    def __init__(self, *, readers: int) -> None:
        self._pools = {
            lane: ThreadPoolExecutor(max_workers=size, thread_name_prefix=f"store-{lane}")
            for lane, size in (("read", readers), ("write", _WRITERS), ("slow", _SLOW), ("upkeep", 1))
        }
        self._calls = dict.fromkeys(self._pools, 0)

    async def run(
        self, lane: Lane, call: Callable[[], _T], *, deadline: Deadline, timings: Timings | None = None, stage: str = ""
    ) -> _T:
        """Run `call` in a thread of `lane`; its time, waiting included, counts as `stage`.

        A call that still waits when its deadline passes, or its caller is gone, is never begun. One that has begun
        runs to its end, and its result is dropped: a write is whole or not at all.

        Raises:
            DeadlineExceeded, Overloaded, and whatever `call` raises.
        """
        if self._calls[lane] >= _MAX_CALLS:
            raise Overloaded(f"{self._calls[lane]} calls of the collection store wait already")
        started = time.perf_counter()

        def begin() -> _T:
            deadline.check()
            return call()

        loop = asyncio.get_running_loop()
        self._calls[lane] += 1
        future = self._pools[lane].submit(begin)
        future.add_done_callback(lambda _: self._ended(lane, loop))
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed before the collection store was done") from None
        finally:
            if timings is not None:
                timings.add(stage, time.perf_counter() - started)

    def close(self) -> None:
        """Calls that wait are dropped; those that run go on."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        """Called in the thread that ran the call, maybe long after its request was answered."""

        def count() -> None:
            self._calls[lane] -= 1

        with suppress(RuntimeError):  # the loop is closed: nobody counts any more
            loop.call_soon_threadsafe(count)
