"""Finds what holds the event loop of an app in this process: disk writes, sleeps, and long work in one callback."""

from __future__ import annotations

import asyncio
import builtins
import gc
import io
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SERVICE = str(Path(__file__).parents[3] / "service")
_MAX_CPU_S = 1.0  # of the thread's own time, so that a loaded machine does not count; nor does collecting garbage
_MAX_SLEEP_S = 0.001


class LoopWatch:
    """`held` names each call, and who of the service made it, since it was last cleared."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self._collecting_since = 0.0
        self._collected_s = 0.0

    def collect(self, phase: str, _: object) -> None:
        """For gc.callbacks: a process of thousands of tests has more garbage to look through than a server."""
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._collected_s += time.thread_time() - self._collecting_since

    def note(self, what: str) -> None:
        frames = [each for each in traceback.extract_stack() if each.filename.startswith(_SERVICE)]
        if frames:
            self.held.append(f"{what} at {frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}")

    def guard(self, what: str, call: Callable[..., Any], is_bad: Callable[..., bool]) -> Callable[..., Any]:
        """`call`, which is noted when it is bad and the thread is one of an event loop."""

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None and is_bad(*args, **kwargs):
                self.note(what)
            return call(*args, **kwargs)

        return guarded

    @contextmanager
    def watching(self) -> Generator[None]:
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            started, collected_s = time.thread_time(), self._collected_s
            run(handle)
            is_ours = threading.current_thread() is not threading.main_thread()  # there tests have loops of their own
            seconds = time.thread_time() - started - (self._collected_s - collected_s)
            if is_ours and seconds > _MAX_CPU_S:
                self.held.append(f"{seconds:.2f} s of work in {handle!r}")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.Handle, "_run", timed)
            patch.setattr(os, "fsync", self.guard("fsync", os.fsync, lambda descriptor: True))
            patch.setattr(os, "replace", self.guard("rename", os.replace, lambda *paths: True))
            patch.setattr(time, "sleep", self.guard("sleep", time.sleep, lambda seconds: seconds > _MAX_SLEEP_S))
            patch.setattr(builtins, "open", self.guard("writing a file", open, _writes))
            patch.setattr(io, "open", self.guard("writing a file", io.open, _writes))  # as pathlib calls it
            gc.callbacks.append(self.collect)
            yield
            gc.callbacks.remove(self.collect)


def _writes(file: object, mode: str = "r", *args: Any, **kwargs: Any) -> bool:
    return any(letter in mode for letter in "wax+") and file not in (os.devnull,)
