"""The budget of one request: its deadline, and where its time went."""

from __future__ import annotations

import time
from typing import Self

from service.faults import DeadlinePassed


class Timings:
    """Named durations of one request, in seconds.

    A stage that many items pass at once counts as its slowest item, so that the figures add up to what the
    caller waited.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float, *, ended: float | None = None) -> None:
        """ended: on the clock of perf_counter; now, if it is not said."""
        self.seconds[name] = max(seconds, self.seconds.get(name, 0.0))

    def header(self) -> str:
        """Value of a Server-Timing header; durations in milliseconds."""
        return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in self.seconds.items())


class Deadline:
    """A moment on the monotonic clock, or never."""

    def __init__(self, at: float | None = None) -> None:
        self.at = at

    @classmethod
    def after(cls, seconds: float) -> Self:
        return cls(time.monotonic() + seconds)

    @property
    def expired(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    def remaining_s(self) -> float | None:
        return None if self.at is None else max(self.at - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raise DeadlinePassed if it has passed."""
        if self.expired:
            raise DeadlinePassed("the request's deadline passed before its work was done")


class Budget(Deadline):
    """What a request may still spend, and the record of what it spent; wherever a deadline is taken, a budget is."""

    def __init__(self, at: float | None = None, timings: Timings | None = None) -> None:
        super().__init__(at)
        self.timings = timings or Timings()

    @classmethod
    def of(cls, seconds: float, timings: Timings) -> Budget:
        """So many seconds from now on."""
        return cls(time.monotonic() + seconds, timings)
