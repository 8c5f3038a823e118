"""A lock that many searches share and one change takes alone."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class ReadWriteLock:
    """Waiting writers go before new readers, so a stream of searches cannot starve a write. Not re-entrant.

    FAISS crashes when an index is searched while rows are added (and its bindings release the GIL), so this lock is
    what keeps the process alive, not a refinement.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False

    @contextmanager
    def read(self) -> Generator[None]:
        self.acquire_read()
        try:
            yield
        finally:
            self.release_read()

    def acquire_read(self) -> None:
        with self._turn:
            while self._writing or self._writers_waiting:
                self._turn.wait()
            self._readers += 1

    def release_read(self) -> None:
        with self._turn:
            self._readers -= 1
            if not self._readers and self._writers_waiting:  # readers only ever wait for writers
                self._turn.notify_all()

    @contextmanager
    def write(self) -> Generator[None]:
        with self._turn:
            self._writers_waiting += 1
            try:
                while self._writing or self._readers:
                    self._turn.wait()
            finally:
                self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._turn:
                self._writing = False
                self._turn.notify_all()
