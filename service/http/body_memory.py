"""The memory that all request bodies share: who holds how much of it, and who makes room for another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from service.http.errors import BodyRefused

# So much of each body is not counted: a short request is never refused because of long ones.
FREE_BYTES = 64 * 1024
_PACE_AFTER_S = 0.5  # a reservation that brings nothing keeps others out for no longer than this


class BodyLimits(Protocol):
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def body_timeout_s(self) -> float: ...


class BodyMemory:
    """Bytes of all bodies that are being received or worked on, with their parsed values, and who holds them.

    One caller may hold all of it while nobody else wants any. When another finds no room, the caller who holds the most
    gives up its newest body that no work was done for: one that still arrives, or that waits to be parsed.
    """

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self.held_bytes = 0
        self._idle: dict[BodyShare, None] = {}
        self._held_by: dict[str, int] = {}

    def share(self) -> BodyShare:
        """What one request holds; released at its end."""
        return BodyShare(self, self._clock)

    def take(self, share: BodyShare, count: int) -> bool:
        """Whether there is room; a body that comes too slowly to be complete in time gives its share away first."""
        while self.held_bytes + count > self.max_bytes:
            slow = next((each for each in self._idle if each is not share and each.is_behind()), None)
            giving = slow or self._of_the_greediest(share.caller, count)
            if giving is None:
                return False
            giving.give_way()
        self._hold(share.caller, count)
        return True

    def give_back(self, share: BodyShare, count: int) -> None:
        self._hold(share.caller, -count)

    def follow(self, share: BodyShare, *, idle: bool) -> None:
        """idle: no work was done for it yet, so it may be told to give way."""
        if idle:
            self._idle[share] = None
        else:
            self._idle.pop(share, None)

    def _hold(self, caller: str, count: int) -> None:
        self.held_bytes += count
        held = self._held_by.pop(caller, 0) + count
        if held:
            self._held_by[caller] = held

    def _of_the_greediest(self, caller: str, count: int) -> BodyShare | None:
        """The newest idle body of the caller that holds the most, if that is more than `caller` would hold then."""
        most, greediest = max(((held, who) for who, held in self._held_by.items()), default=(0, caller))
        if greediest == caller or most <= self._held_by.get(caller, 0) + count:
            return None
        return next((each for each in reversed(self._idle) if each.caller == greediest and each.holds), None)


class BodyShare:
    """The part of the memory for bodies that one request holds."""

    def __init__(self, memory: BodyMemory, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._clock = clock
        self._held_bytes = 0
        self._received_bytes = 0
        self._expected_bytes = 0
        self._timeout_s = 1.0
        self._since = 0.0
        self._idle_task: asyncio.Task[object] | None = None
        self._gave_way = False
        self.caller = ""

    @property
    def holds(self) -> bool:
        return self._held_bytes > 0

    @contextmanager
    def idle(self) -> Generator[None]:
        """While the current task only waits, for the rest of the body or its turn: it may be told to give way.

        Raises:
            BodyRefused: 429, it was.
        """
        task = self._idle_task = asyncio.current_task()
        self._memory.follow(self, idle=True)
        try:
            yield
        except asyncio.CancelledError:
            if self._gave_way and task is not None and task.uncancel() == 0:
                raise no_room() from None
            raise
        finally:
            self._memory.follow(self, idle=False)
            self._idle_task = None

    def begin(self, declared_bytes: int | None, limits: BodyLimits, *, caller: str) -> None:
        """Reserve a body of known length; one in chunks is counted as it comes.

        Raises:
            BodyRefused: 429.
        """
        self.caller = caller
        self._expected_bytes = limits.max_body_bytes if declared_bytes is None else declared_bytes
        self._timeout_s = limits.body_timeout_s
        self._since = self._clock()
        self._grow(declared_bytes or 0)

    def receive(self, count: int) -> None:
        """Raises BodyRefused: 429, a body in chunks has outgrown what is left."""
        self._received_bytes += count
        self._grow(self._received_bytes)

    def end(self) -> None:
        """It is complete, or given up; what came is held until `release`."""
        self._expected_bytes = 0

    def hold_values(self, count: int) -> None:
        """Hold also what the values of the body take once they are parsed; no more than all that there is.

        Raises:
            BodyRefused: 429.
        """
        more = min(count, self._memory.max_bytes - self._held_bytes)
        if not self._memory.take(self, more):
            raise no_room()
        self._held_bytes += more

    def release(self) -> None:
        self._memory.give_back(self, self._held_bytes)
        self._held_bytes = 0

    def is_behind(self) -> bool:
        seconds = self._clock() - self._since
        return seconds > _PACE_AFTER_S and self._received_bytes < self._expected_bytes * seconds / self._timeout_s

    def give_way(self) -> None:
        self._gave_way = True
        if self._idle_task is not None:
            self._idle_task.cancel()
        self._memory.follow(self, idle=False)
        self.release()

    def _grow(self, count: int) -> None:
        more = max(count - FREE_BYTES, 0) - self._held_bytes
        if more <= 0:
            return
        if not self._memory.take(self, more):
            raise no_room()
        self._held_bytes += more


def no_room() -> BodyRefused:
    message = "the server holds as many bytes of request bodies as it may (CLIPWORKS_MAX_BODIES_BYTES); try again"
    return BodyRefused(429, "overloaded", message, headers={"Retry-After": "1"})
