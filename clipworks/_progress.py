"""A progress bar where rich is installed and someone asked for one; silence otherwise."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool) -> Generator[Callable[[int], None]]:
    """Yields `advance(n)`, which may be called from any thread. The bar goes to stderr."""
    if not shown:
        yield _ignore
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Eta
    except ImportError:
        yield _ignore
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Eta())
    speed = TextColumn("{task.fields[rate]}")
    with Progress(*columns, speed, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(count: int) -> None:
            per_s = progress.tasks[0].speed
            progress.update(task, advance=count, rate=f"{per_s:.0f}/s" if per_s else "")

        yield advance


def _ignore(count: int) -> None:
    return
