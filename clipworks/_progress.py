"""A progress bar where rich is installed and someone asked for one; silence otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

# False: silence; True: a bar; a function: told (finished, total), one call at a time, from any thread.
Progress = bool | Callable[[int, int], None]


@contextmanager
def progress_bar(label: str, total: int, *, shown: Progress) -> Generator[Callable[[int], None]]:
    """Yields `advance(n)`, which may be called from any thread. The bar goes to stderr."""
    if callable(shown):
        yield _counting(shown, total)
        return
    if not shown:
        yield _ignore
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.progress import TimeRemainingColumn as Eta
    except ImportError:
        yield _ignore
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Eta())
    speed = TextColumn("{task.fields[rate]}")
    with Bars(*columns, speed, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(count: int) -> None:
            per_s = progress.tasks[0].speed
            progress.update(task, advance=count, rate=f"{per_s:.{0 if per_s >= 10 else 1}f}/s" if per_s else "")

        yield advance


def _counting(tell: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    lock = threading.Lock()
    finished = 0

    def advance(count: int) -> None:
        nonlocal finished
        with lock:
            finished += count
            tell(finished, total)

    return advance


def _ignore(count: int) -> None:
    return
