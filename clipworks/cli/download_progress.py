"""Progress of a download on stderr: a bar with rate and time left on a terminal, a line for each tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from clipworks.cli import output

Show = Callable[[int, int], None]
_LINES = 10


@contextmanager
def download_progress(name: str) -> Generator[Show]:
    """A function to call with done and total bytes while something called `name` is downloaded.

    What was there when it is first called, of a download that goes on, counts in neither the rate nor the time left.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(name)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(name, total=None)
        first = True

        def show(done_bytes: int, total_bytes: int) -> None:
            nonlocal first
            if first:
                progress.reset(bar, total=total_bytes, completed=done_bytes)
                first = False
            progress.update(bar, completed=done_bytes)

        yield show


def _lines(name: str) -> Show:
    started_s = time.monotonic()
    began_bytes = said = -1

    def show(done_bytes: int, total_bytes: int) -> None:
        nonlocal began_bytes, said
        if began_bytes < 0:
            began_bytes = done_bytes
        tenth = done_bytes * _LINES // max(total_bytes, 1)
        if tenth <= said:
            return
        said = tenth
        output.say(f"{name}: {decimal(done_bytes)} of {decimal(total_bytes)}{_pace(done_bytes, total_bytes)}")

    def _pace(done_bytes: int, total_bytes: int) -> str:
        rate = (done_bytes - began_bytes) / max(time.monotonic() - started_s, 1e-3)
        if rate <= 0 or done_bytes >= total_bytes:
            return ""
        return f", {decimal(int(rate))}/s, {(total_bytes - done_bytes) / rate:.0f} s left"

    return show
