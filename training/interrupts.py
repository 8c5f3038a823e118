"""Ctrl-C during training: the first ends the run after its present step, with a checkpoint; a second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


class TrainingStopped(Exception):
    """The run was asked to stop; `folder` holds its checkpoint after `step` steps of `total`."""

    def __init__(self, folder: Path, step: int, total: int) -> None:
        super().__init__(f"stopped after step {step} of {total}; the checkpoint is in {folder}")
        self.folder, self.step, self.total = folder, step, total


@dataclass
class Asked:
    """Whether somebody asked the run to stop."""

    stop: bool = False


@contextmanager
def asked_to_stop(*, listen: bool) -> Iterator[Asked]:
    """Notes the first SIGINT or SIGTERM; the second has its usual effect. Only a main thread can listen.

    listen: False for one of several processes: they must take every step together.
    """
    asked = Asked()
    if not listen or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    usual = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}

    def note(which: int, frame: FrameType | None) -> None:
        asked.stop = True
        for each, handler in usual.items():
            signal.signal(each, handler)

    for which in usual:
        signal.signal(which, note)
    try:
        yield asked
    finally:
        for which, handler in usual.items():
            signal.signal(which, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is over, in a main thread; elsewhere nothing is held.

    A mask would not do: the kernel gives the signal to another thread, and Python handles it in the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def deliver() -> None:
        for which in came:
            signal.raise_signal(which)

    with ExitStack() as after:
        after.callback(deliver)
        for which in (signal.SIGINT, signal.SIGTERM):
            after.callback(signal.signal, which, signal.getsignal(which))
            signal.signal(which, lambda number, _: came.append(number))
        yield
