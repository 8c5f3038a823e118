"""Blocking work in a thread whose caller never leaves before it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T]) -> _T:
    """As asyncio.to_thread, but who is cancelled meanwhile still waits for the end of the thread.

    So what the caller holds, a turn or a lock, does not go to another while the work goes on.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
