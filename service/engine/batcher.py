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
from service.engine.admission import Admission, Ticket
from service.engine.stacking import EqualShapes, Stacking
from service.faults import DeadlinePassed, RunFailed, ServiceNotReady
from service.timing import Budget, Deadline

Rows = NDArray[Any]
Run = Callable[[Any], Rows]
_LEAST_WINDOW = 16
_BACKGROUND_SHARE = 4  # a run of background items takes at most a fourth of the items that a run may have


class BatchObserver(Protocol):
    """What a batcher reports; service.telemetry is one."""

    def batch(self, graph: str, size: int, seconds: float) -> None: ...
    def queue(self, graph: str, depth: int) -> None: ...


@dataclass(eq=False)
class _Pending:
    item: Any
    budget: Budget
    future: asyncio.Future[Rows]
    entered: float = field(default_factory=time.perf_counter)


class Batcher:
    """One queue and one worker thread in front of `run`, which maps a stack [B, ...] to rows [B, ...].

    An item is an array, or what `stacking` takes in its place. `stacking` says which items may share a run, and how
    many; at most `max_batch` do, the oldest first. `admit` takes places for a whole request before any of its work is
    done; see Admission. Background items need none: they run when nothing else waits, a few at a time, so that nobody
    who comes meanwhile waits long. An item whose caller is gone, or whose deadline has passed, is in no run that begins
    after that.

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
        max_wait_s: float,
        observer: BatchObserver,
        stacking: Stacking[Any] | None = None,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        # Enough for one run and for the next, which is made ready meanwhile, also where a run takes one item.
        window = max(2 * max_batch, _LEAST_WINDOW)
        self.admission = Admission(name, window=window, short=max_batch, max_items=max_items, max_wait_s=max_wait_s)
        self.broken: str | None = None
        self._run = run
        self._stacking: Stacking[Any] = stacking or EqualShapes()
        self._observer = observer
        self._queue: deque[_Pending] = deque()
        self._background: deque[_Pending] = deque()
        self._work = asyncio.Event()
        self._current: list[_Pending] = []
        self._run_started: float | None = None  # written by the worker thread: true even when nobody waits any more
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"run-{name}")
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"batcher {name}")

    def admit(self, items: int, deadline: Deadline, *, are_slow: bool = False) -> Ticket:
        """Places for all items of a request; a context manager that gives them back. See Admission.admit.

        Raises:
            ServiceOverloaded: it would wait too long.
            ServiceNotReady: the worker is broken.
        """
        if self.broken:
            raise ServiceNotReady(f"{self.name} is being restarted: {self.broken}")
        return self.admission.admit(items, deadline, are_slow=are_slow)

    async def submit(self, item: Any, budget: Budget, *, background: bool = False) -> Rows:
        """The row for `item`. A caller that stops waiting (cancelled) is skipped if its turn has not come.

        Raises:
            DeadlinePassed: the deadline passed in the queue.
            RunFailed: the graph failed on this item, or gave a value that is not finite.
            ServiceNotReady: the worker broke down.
        """
        if self.broken:
            raise ServiceNotReady(f"{self.name} is being restarted: {self.broken}")
        pending = _Pending(item, budget, asyncio.get_running_loop().create_future())
        (self._background if background else self._queue).append(pending)
        self._report_queue()
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
        self._fail(self._current, ServiceNotReady(f"{self.name} is not running: {self.broken}"))
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
                pending.budget.timings.add("queue", started - pending.entered)
            try:
                await self._answer(batch)
            except Exception as error:  # not ONNX Runtime's own: the session cannot be trusted any more
                self.broken = f"{type(error).__name__} in a run"
                self._fail(batch, RunFailed(f"{self.name} failed: {type(error).__name__}"))
                self._fail_waiting()
                return
            self._observer.batch(self.name, len(batch), time.perf_counter() - started)
            self._report_queue()

    def _report_queue(self) -> None:
        self._observer.queue(self.name, len(self._queue) + self.admission.waiting)

    def _take(self) -> list[_Pending]:
        few = max(1, self.max_batch // _BACKGROUND_SHARE)
        for queue, most in ((self._queue, self.max_batch), (self._background, few)):
            batch: list[_Pending] = []
            rest: deque[_Pending] = deque()
            while queue:
                pending = queue.popleft()
                if _is_over(pending):
                    continue
                if not batch or (len(batch) < self._most(batch[0], most) and self._joins(batch[0], pending)):
                    batch.append(pending)
                else:
                    rest.append(pending)
            queue.extend(rest)
            if batch:
                return batch
        return []

    def _most(self, first: _Pending, limit: int) -> int:
        most = self._stacking.most(first.item)
        return limit if most is None else min(limit, most)

    def _joins(self, first: _Pending, other: _Pending) -> bool:
        return self._stacking.joins(first.item, other.item)

    async def _answer(self, batch: list[_Pending]) -> None:
        """Run a batch and resolve its futures; in halves when ONNX Runtime refuses it."""
        stack = self._stacking.stack([pending.item for pending in batch])
        started = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_watched, stack)
        except GraphError as error:
            if len(batch) == 1:
                self._fail(batch, RunFailed(f"{self.name} failed on this item: {error}"))
                return
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                if waiting := [pending for pending in half if not _is_over(pending)]:
                    await self._answer(waiting)
            return
        if len(rows) != len(batch):
            raise RuntimeError(f"{self.name} gave {len(rows)} rows for {len(batch)} items")
        seconds = time.perf_counter() - started
        for pending, row in zip(batch, rows, strict=True):
            pending.budget.timings.add("infer", seconds)
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
        error = ServiceNotReady(f"{self.name} is not running: {self.broken}")
        self._fail([*self._queue, *self._background], error)
        self._queue.clear()
        self._background.clear()

    @staticmethod
    def _fail(batch: list[_Pending], error: Exception) -> None:
        for pending in batch:
            if not pending.future.done():
                pending.future.set_exception(error)


def _is_over(pending: _Pending) -> bool:
    """Nobody waits for it any more; one whose deadline has passed is told so here."""
    if not pending.future.done() and pending.budget.expired:
        pending.future.set_exception(DeadlinePassed("the deadline passed while the item was queued"))
    return pending.future.done()
