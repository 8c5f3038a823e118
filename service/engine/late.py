"""Graphs that are opened by the first request that needs them; others wait for the same opening."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from service.faults import DeadlinePassed, ServiceNotReady
from service.timing import Deadline

T = TypeVar("T")
_TRY_AGAIN_S = 10.0  # what could not be opened is not opened again for every request


class Late(Generic[T]):
    """What `open_it` makes, when it is first asked for. Belongs to an event loop.

    name: of the graphs, for messages. close_it: ends what was made, with the reason.
    """

    def __init__(
        self, name: str, open_it: Callable[[], Awaitable[T]], close_it: Callable[[T, str], Awaitable[None]]
    ) -> None:
        self.opened: T | None = None
        self._name = name
        self._open_it = open_it
        self._close_it = close_it
        self._closed: str | None = None
        self._opening: asyncio.Future[T] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed_at = -_TRY_AGAIN_S

    async def get(self, deadline: Deadline) -> T:
        """Open it, or wait until it is open.

        Raises:
            ArtifactError: it cannot be served (integrity, a crash in the probe, provider, goldens).
            ServiceNotReady: the model was unloaded.
            DeadlinePassed: opening goes on, a later request will find it.
        """
        if self._closed:
            raise ServiceNotReady(f"{self._name} is not running: {self._closed}")
        if self.opened is not None:
            return self.opened
        if self._opening is None or (self._opening.done() and time.monotonic() > self._failed_at + _TRY_AGAIN_S):
            self._opening = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._open(self._opening), name=f"open {self._name}")
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await asyncio.shield(self._opening)
        except TimeoutError as error:
            raise DeadlinePassed(f"the deadline passed while {self._name} was being opened") from error

    async def close(self, reason: str) -> None:
        """Stop it and fail whatever waits; what is still being opened is dropped."""
        self._closed = reason
        if self._opening is not None and not self._opening.done():
            _fail(self._opening, ServiceNotReady(f"{self._name} is not running: {reason}"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.opened is not None:
            await self._close_it(self.opened, reason)

    async def _open(self, waiting: asyncio.Future[T]) -> None:
        try:
            self.opened = await self._open_it()
        except Exception as error:
            self._failed_at = time.monotonic()
            if not waiting.done():
                _fail(waiting, error)
            return
        if not waiting.done():
            waiting.set_result(self.opened)


def _fail(waiting: asyncio.Future[T], error: Exception) -> None:
    waiting.set_exception(error)
    waiting.exception()  # whoever still waits gets it too; without this a failure that nobody awaits complains
