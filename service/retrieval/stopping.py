"""A stop sign for work on the store: its deadline has passed, or nobody waits for the result any more."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import apsw

from service.retrieval.errors import Interrupted

# Steps of SQLite's machine between two looks at the sign, which take Python's lock. Most take nanoseconds, but one
# may parse the 64 KiB of an item's metadata: so a scan ends within tenths of a second.
_STEPS = 20_000


class Stop:
    """Asked by the thread that works, set by any other one.

    at: a moment of time.monotonic(), or None for never.
    """

    def __init__(self, at: float | None = None) -> None:
        self.at = at
        self._cancelled = False

    def cancel(self) -> None:
        """Nobody waits any more, or the server ends."""
        self._cancelled = True

    @property
    def is_due(self) -> bool:
        return self._cancelled or (self.at is not None and time.monotonic() >= self.at)

    def remaining_s(self) -> float | None:
        """None: as long as it takes."""
        if self._cancelled:
            return 0.0
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def check(self) -> None:
        """Raises Interrupted."""
        if self.is_due:
            raise Interrupted("stopped before it was done: the deadline passed, or nobody waits for it any more")

    @contextmanager
    def watching(self, connection: apsw.Connection) -> Generator[None]:
        """End whatever statement runs on the connection once the stop is due: SQLite raises InterruptError."""
        self.check()
        connection.set_progress_handler(lambda: self.is_due, _STEPS)
        try:
            yield
        finally:
            connection.set_progress_handler(None)


class _Never(Stop):
    """For callers without a deadline; costs nothing."""

    def cancel(self) -> None:
        raise TypeError("this stop is shared by everybody")

    @contextmanager
    def watching(self, connection: apsw.Connection) -> Generator[None]:
        yield


NEVER = _Never()
