"""Greedy dynamic batching for one graph: run at once when idle, let the next batch grow while busy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.errors import GraphError
from service.faults import DeadlineExceeded, NotReady, Overloaded, RunFailed
from service.stacking import EqualShapes, Stacking
from service.timing import Deadline, Timings

Rows = NDArray[Any]
Run = Callable[[Rows], Rows]


class BatchObserver(Protocol):
    """What a batcher reports; service.telemetry is one."""

    def batch(self, graph: str, size: int, seconds: float) -> None: ...
    def queue(self, graph: str, depth: int) -> None: ...


@dataclass(eq=False)
class _Pending:
    array: Rows
    deadline: Deadline
    timings: Timings
    future: asyncio.Future[Rows]
    entered: float = field(default_factory=time.perf_counter)


class Batcher:
    """One queue and one worker thread in front of `run`, which maps a stack [B, ...] to rows [B, ...].

    `stacking` says which arrays may share a run, and how many; at most `max_batch` do, the oldest first. Admission
    counts items: `reserve` takes places for a whole request before any of its work is done. Background items run when
    nothing else waits.

    A run that raises GraphError is repeated in halves, so that a bad row fails alone. Any other exception marks the
    batcher broken: it refuses work until it is replaced. All methods belong to the event loop's thread.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        *,
        max_batch: int,
        max_items: int,
        observer: BatchObserver,
        stacking: Stacking | None = None,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self.max_items = max_items
        self.broken: str | None = None
        self._run = run
        self._stacking = stacking or EqualShapes()
        self._observer = observer
        self._admitted = 0
        self._queue: deque[_Pending] = deque()
        self._background: deque[_Pending] = deque()
        self._work = asyncio.Event()
        self._current: list[_Pending] = []
        self._run_started: float | None = None  # written by the worker thread: true even when nobody waits any more
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"run-{name}")
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"batcher {name}")

    def reserve(self, items: int) -> None:
        """Take places for `items`; give them back with `release` when the request is over.

        Raises:
            Overloaded: they do not fit now.
            NotReady: the worker is broken.
        """
        if self.broken:
            raise NotReady(f"{self.name} is being restarted: {self.broken}")
        if self._admitted + items > self.max_items and self._admitted:
            raise Overloaded(f"{self._admitted} items are in work for {self.name}, the limit is {self.max_items}")
        self._admitted += items

    def release(self, items: int) -> None:
        self._admitted -= items

    async def submit(self, array: Rows, deadline: Deadline, timings: Timings, *, background: bool = False) -> Rows:
        """The row for `array`. A caller that stops waiting (cancelled) is skipped if its turn has not come.

        Raises:
            DeadlineExceeded: the deadline passed in the queue.
            RunFailed: the graph failed on this item, or gave a value that is not finite.
            NotReady: the worker broke down.
        """
        if self.broken:
            raise NotReady(f"{self.name} is being restarted: {self.broken}")
        pending = _Pending(array, deadline, timings, asyncio.get_running_loop().create_future())
        (self._background if background else self._queue).append(pending)
        self._observer.queue(self.name, len(self._queue))
        self._work.set()
        return await pending.future

    def running_s(self) -> float:
        """How long the present run has been going on, 0 when idle; goes on counting after `close`."""
        started = self._run_started
        return 0.0 if started is None else time.monotonic() - started

    async def close(self, reason: str = "the model was unloaded") -> None:
        """Stop the worker and fail whatever still waits. A hung native call is left behind."""
        self.broken = self.broken or reason
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._fail(self._current, NotReady(f"{self.name} is not running: {self.broken}"))
        self._fail_waiting()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        while True:
            await self._work.wait()
            batch = self._take()
            if not batch:
                self._work.clear()
                continue
            self._current = batch
            started = time.perf_counter()
            for pending in batch:
                pending.timings.add("queue", started - pending.entered)
            try:
                await self._answer(batch)
            except Exception as error:  # not ONNX Runtime's own: the session cannot be trusted any more
                self.broken = f"{type(error).__name__} in a run"
                self._fail(batch, RunFailed(f"{self.name} failed: {type(error).__name__}"))
                self._fail_waiting()
                return
            self._observer.batch(self.name, len(batch), time.perf_counter() - started)
            self._observer.queue(self.name, len(self._queue))

    def _take(self) -> list[_Pending]:
        for queue in (self._queue, self._background):
            batch: list[_Pending] = []
            rest: deque[_Pending] = deque()
            while queue:
                pending = queue.popleft()
                if pending.future.done():
                    continue
                if pending.deadline.expired:
                    pending.future.set_exception(DeadlineExceeded("the deadline passed while the item was queued"))
                elif not batch or (len(batch) < self._most(batch[0]) and self._joins(batch[0], pending)):
                    batch.append(pending)
                else:
                    rest.append(pending)
            queue.extend(rest)
            if batch:
                return batch
        return []

    def _most(self, first: _Pending) -> int:
        most = self._stacking.most(first.array)
        return self.max_batch if most is None else min(self.max_batch, most)

    def _joins(self, first: _Pending, other: _Pending) -> bool:
        return self._stacking.joins(first.array, other.array)

    async def _answer(self, batch: list[_Pending]) -> None:
        """Run a batch and resolve its futures; in halves when ONNX Runtime refuses it."""
        stack = self._stacking.stack([pending.array for pending in batch])
        started = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_watched, stack)
        except GraphError as error:
            if len(batch) == 1:
                self._fail(batch, RunFailed(f"{self.name} failed on this item: {error}"))
                return
            middle = len(batch) // 2
            await self._answer(batch[:middle])
            await self._answer(batch[middle:])
            return
        if len(rows) != len(batch):
            raise RuntimeError(f"{self.name} gave {len(rows)} rows for {len(batch)} items")
        seconds = time.perf_counter() - started
        for pending, row in zip(batch, rows, strict=True):
            pending.timings.add("infer", seconds)
            if pending.future.done():
                continue
            if np.isfinite(row).all():
                pending.future.set_result(row)
            else:
                pending.future.set_exception(RunFailed(f"{self.name} gave a value that is not finite for this item"))

    def _run_watched(self, stack: Rows) -> Rows:
        self._run_started = time.monotonic()
        try:
            return self._run(stack)
        finally:
            self._run_started = None

    def _fail_waiting(self) -> None:
        error = NotReady(f"{self.name} is not running: {self.broken}")
        self._fail([*self._queue, *self._background], error)
        self._queue.clear()
        self._background.clear()

    @staticmethod
    def _fail(batch: list[_Pending], error: Exception) -> None:
        for pending in batch:
            if not pending.future.done():
                pending.future.set_exception(error)
