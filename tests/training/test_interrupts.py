"""Signals that come while a checkpoint is put in place wait, whatever other threads there are, and none is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from training.interrupts import signals_held


@pytest.fixture(autouse=True)
def another_thread() -> Iterator[None]:
    """The kernel may give it the signal of the process; torch has such threads."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def send(which: signal.Signals) -> None:
    """Long enough for Python to see it."""
    os.kill(os.getpid(), which)
    for _ in range(20):
        time.sleep(0.005)


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    steps: list[str] = []

    def work() -> None:
        with signals_held():
            send(signal.SIGINT)
            steps.append("whole block")
        steps.append("after it")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert steps == ["whole block"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_fails_in_the_block_loses_no_signal() -> None:
    came: list[int] = []

    def work() -> None:
        with signals_held():
            send(signal.SIGTERM)
            assert came == []
            raise OSError("full")

    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with pytest.raises(OSError, match="full"):
            work()
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
