"""Tasks in processes of their own, or in this one; what a parent leaves behind ends by itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

Result = TypeVar("Result")


def each_done(
    work: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], *, workers: int
) -> Iterator[tuple[int, Result]]:
    """(number, result) of each task `work(*task)`, as they are done. Ends with the first error, and with Ctrl-C.

    Raises:
        ValueError: a process was killed; and what `work` raises.
    """
    if workers <= 1 or len(tasks) <= 1:
        for number, task in enumerate(tasks):
            yield number, work(*task)
        return
    context = multiprocessing.get_context("spawn")  # threads of a model do not survive a fork
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_begin)
    try:
        numbers = {pool.submit(work, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BrokenProcessPool as error:
        raise ValueError("a worker was killed, perhaps for want of memory; try fewer (--workers)") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Ctrl-C is the parent's to hear; its death is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
