"""The batcher's promises, on plain functions in place of a graph: company, order, limits, failures."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from model_store.errors import GraphError
from service.engine.batcher import Batcher
from service.engine.stacking import EqualPictures, PictureWithTexts, SharedTexts
from service.faults import DeadlinePassed, RunFailed, ServiceNotReady
from service.timing import Budget

Rows = np.ndarray


class Record:
    """Keeps what the batcher reports."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def batch(self, graph: str, size: int, seconds: float) -> None:
        self.sizes.append(size)

    def queue(self, graph: str, depth: int) -> None:
        pass


def double(stack: Rows) -> Rows:
    return stack.astype(np.float32) * 2


def within_loop(
    test: Callable[[Batcher, Record], Awaitable[None]], run: Callable[[Rows], Rows] = double, **limits: int
) -> Record:
    record = Record()

    async def main() -> None:
        batcher = Batcher(
            "graph", run, observer=record, **({"max_batch": 4, "max_items": 100, "max_wait_s": 60} | limits)
        )
        try:
            await test(batcher, record)
        finally:
            await batcher.close()

    asyncio.run(main())
    return record


def submit(batcher: Batcher, value: float, shape: tuple[int, ...] = (3,), **options: Any) -> Awaitable[Rows]:
    deadline = options.pop("deadline", Budget())
    return batcher.submit(np.full(shape, value, np.float32), deadline, **options)


class Gate:
    """A run that waits until it is let go, so that a queue can form behind it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.seen: list[float] = []

    def __call__(self, stack: Rows) -> Rows:
        self.entered.set()
        self.open.wait(10)
        self.seen += [float(row.flat[0]) for row in stack]
        return double(stack)


async def behind(gate: Gate, batcher: Batcher) -> Awaitable[Rows]:
    """Occupy the worker with one item."""
    first = asyncio.ensure_future(submit(batcher, 0))
    await asyncio.to_thread(gate.entered.wait, 10)
    return first


def test_everyone_gets_their_own_row_and_batches_grow_while_busy() -> None:
    async def test(batcher: Batcher, record: Record) -> None:
        rows = await asyncio.gather(*(submit(batcher, i) for i in range(11)))
        assert [float(row[0]) for row in rows] == [2.0 * i for i in range(11)]

    sizes = within_loop(test).sizes
    assert sum(sizes) == 11
    assert max(sizes) == 4


def test_only_equal_shapes_are_stacked() -> None:
    async def test(batcher: Batcher, record: Record) -> None:
        shapes = [(2,), (3,), (2,), (3,), (2,)]
        rows = await asyncio.gather(*(submit(batcher, i, shape) for i, shape in enumerate(shapes)))
        assert [row.shape for row in rows] == shapes

    assert sorted(within_loop(test).sizes) == [2, 3]


def test_pictures_share_a_run_up_to_so_many_pixels() -> None:
    gate, record = Gate(), Record()

    async def main() -> None:
        pictures = EqualPictures(2 * 4 * 6)
        batcher = Batcher("graph", gate, max_batch=5, max_items=100, max_wait_s=60, observer=record, stacking=pictures)
        first = await behind(gate, batcher)
        shapes = [(4, 6, 3)] * 5 + [(8, 12, 3)] * 2 + [(2, 3, 3)] * 7
        rows = [asyncio.ensure_future(submit(batcher, i, shape)) for i, shape in enumerate(shapes)]
        await asyncio.sleep(0)
        gate.open.set()
        assert [float((await row).flat[0]) for row in rows] == [2.0 * i for i in range(len(shapes))]
        await first
        await batcher.close()

    asyncio.run(main())
    # Two of the middle size, one of the large (which is over the limit by itself), as many small ones as may be.
    assert record.sizes == [1, 2, 2, 1, 1, 1, 5, 2]


def test_background_items_wait_for_the_others() -> None:
    gate = Gate()

    async def test(batcher: Batcher, record: Record) -> None:
        first = await behind(gate, batcher)
        late = [asyncio.ensure_future(submit(batcher, i, background=True)) for i in (10, 11)]
        await asyncio.sleep(0)
        early = asyncio.ensure_future(submit(batcher, 1))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, early, *late)

    within_loop(test, gate)
    assert gate.seen == [0, 1, 10, 11]


def test_cancelled_and_expired_items_never_reach_the_model() -> None:
    gate = Gate()

    async def test(batcher: Batcher, record: Record) -> None:
        first = await behind(gate, batcher)
        gone = asyncio.ensure_future(submit(batcher, 1))
        stale = asyncio.ensure_future(submit(batcher, 2, deadline=Budget.after(0.01)))
        kept = asyncio.ensure_future(submit(batcher, 3))
        await asyncio.sleep(0.05)
        gone.cancel()
        gate.open.set()
        await asyncio.gather(first, kept)
        with pytest.raises(DeadlinePassed):
            await stale

    within_loop(test, gate)
    assert gate.seen == [0, 3]


def test_one_bad_item_fails_alone() -> None:
    def refuse_odd_thirteen(stack: Rows) -> Rows:
        if (stack == 13).any():
            raise GraphError("thirteen")
        return double(stack)

    async def test(batcher: Batcher, record: Record) -> None:
        values = [5, 13, 6, 7]
        rows = await asyncio.gather(*(submit(batcher, v) for v in values), return_exceptions=True)
        assert isinstance(rows[1], RunFailed)
        assert [float(rows[i][0]) for i in (0, 2, 3)] == [10, 12, 14]
        assert float((await submit(batcher, 8))[0]) == 16

    within_loop(test, refuse_odd_thirteen)


def test_halves_of_a_failed_run_leave_out_who_is_gone_or_too_late() -> None:
    entered, open_again = threading.Event(), threading.Event()
    seen: list[float] = []

    def refuse_company(stack: Rows) -> Rows:
        if len(stack) > 1:
            entered.set()
            open_again.wait(10)
            raise GraphError("company")
        seen.append(float(stack.flat[0]))
        return double(stack)

    async def test(batcher: Batcher, record: Record) -> None:
        deadlines = [Budget(), Budget(), Budget.after(0.2), Budget()]
        rows = [asyncio.ensure_future(submit(batcher, i, deadline=each)) for i, each in enumerate(deadlines)]
        await asyncio.to_thread(entered.wait, 10)
        rows[1].cancel()
        await asyncio.sleep(0.3)
        open_again.set()
        assert [float((await rows[i])[0]) for i in (0, 3)] == [0, 6]
        with pytest.raises(DeadlinePassed):
            await rows[2]

    within_loop(test, refuse_company)
    assert seen == [0, 3]


def test_a_value_that_is_not_finite_fails_its_item_only() -> None:
    def divide(stack: Rows) -> Rows:
        with np.errstate(divide="ignore"):
            return 1 / stack

    async def test(batcher: Batcher, record: Record) -> None:
        bad, good = await asyncio.gather(submit(batcher, 0), submit(batcher, 4), return_exceptions=True)
        assert isinstance(bad, RunFailed)
        assert float(good[0]) == 0.25

    within_loop(test, divide)


def test_a_foreign_error_breaks_the_worker_loudly() -> None:
    def broken(stack: Rows) -> Rows:
        raise ZeroDivisionError

    async def test(batcher: Batcher, record: Record) -> None:
        with pytest.raises(RunFailed, match="ZeroDivisionError"):
            await submit(batcher, 1)
        assert batcher.broken
        with pytest.raises(ServiceNotReady):
            await submit(batcher, 2)
        with pytest.raises(ServiceNotReady):
            batcher.admit(1, Budget())

    within_loop(test, broken)


def test_closing_answers_everybody_and_the_heartbeat_goes_on() -> None:
    gate = Gate()

    async def test(batcher: Batcher, record: Record) -> None:
        running = await behind(gate, batcher)
        waiting = asyncio.ensure_future(submit(batcher, 1))
        await asyncio.sleep(0.02)
        await batcher.close("hung")
        for pending in (running, waiting):
            with pytest.raises(ServiceNotReady, match="hung"):
                await pending
        assert batcher.running_s() > 0.01
        gate.open.set()
        while batcher.running_s():
            await asyncio.sleep(0.01)

    started = time.monotonic()
    within_loop(test, gate)
    assert time.monotonic() - started < 5


def test_pictures_share_a_run_with_the_very_same_texts_and_no_more_of_them_than_was_said() -> None:
    ids, equal, many = (np.full((count, 4), 1, dtype=np.int64) for count in (3, 3, 20))
    gate, runs = threading.Event(), list[tuple[int, int]]()

    def counted(stack: tuple[Rows, Rows]) -> Rows:
        gate.wait(10)
        vectors, texts = stack
        runs.append((len(vectors), len(texts)))
        return vectors[:, :1] + np.zeros((1, len(texts)), dtype=np.float32)

    async def main() -> None:
        batcher = Batcher(
            "graph", counted, max_batch=8, max_items=100, max_wait_s=60, observer=Record(), stacking=SharedTexts(8)
        )
        asked = [*[ids] * 5, *[equal] * 2, many]
        sent = [
            asyncio.ensure_future(batcher.submit(PictureWithTexts(np.full(2, n, np.float32), each), Budget()))
            for n, each in enumerate(asked)
        ]
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*sent)
        assert [(row[0], len(row)) for row in found] == [(n, len(each)) for n, each in enumerate(asked)]
        await batcher.close()

    asyncio.run(main())
    # Two pictures of three texts fit into eight, and a picture with twenty runs all the same.
    assert sorted(runs) == [(1, 3), (1, 20), (2, 3), (2, 3), (2, 3)]
