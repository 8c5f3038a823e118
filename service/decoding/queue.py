"""Queue of images to decode: fair between requests by the pixels they cost, within a limit of memory."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

_OVERHEAD_PX = 250_000  # what any image costs beside its pixels, in pixels
_PATIENCE_S = 2.0  # a large image lets smaller ones pass for so long
SMALL_PX = 4_000_000  # decoded within a tenth of a second, in 64 MB
HUGE_PX = 30_000_000  # takes a second or several


class Waiting(Protocol):
    @property
    def is_over(self) -> bool:
        """Nobody waits for it any more."""
        ...


J = TypeVar("J", bound=Waiting)


@dataclass(order=True)
class _Entry(Generic[J]):
    start: float
    number: int
    flow: Hashable = field(compare=False)
    pixels: int = field(compare=False)
    job: J = field(compare=False)
    passed_since: float | None = field(default=None, compare=False)


class FairQueue(Generic[J]):
    """Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) of jobs that cost pixels.

    Each flow (a request) gets an equal share of what is decoded: 256 large images of one do not hold up the small one
    of another. Within a flow the order is that of arrival. Virtual time also advances with the work itself, shared by
    the flows and one to come, so that a stream of new requests cannot hold up an old one for ever.

    At most `max_pixels` are in work at one time; a job that is larger is taken when nothing else is in work. Jobs of up
    to SMALL_PX do not count: each is taken at once, beside whatever is in work. At most `max_huge` jobs of more than
    HUGE_PX are in work at one time.
    """

    def __init__(self, *, max_pixels: int, max_huge: int) -> None:
        self.max_pixels = max_pixels
        self.max_huge = max_huge
        self.in_work_pixels = 0
        self.in_work_huge = 0
        self._heap: list[_Entry[J]] = []
        self._numbers = itertools.count()
        self._now = 0.0  # virtual time, in pixels
        self._ends: dict[Hashable, float] = {}
        self._waiting: Counter[Hashable] = Counter()  # jobs of each flow in the heap

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, flow: Hashable, pixels: int, job: J) -> None:
        start = max(self._now, self._ends.get(flow, 0.0))
        self._ends[flow] = start + pixels + _OVERHEAD_PX
        heapq.heappush(self._heap, _Entry(start, next(self._numbers), flow, pixels, job))
        self._waiting[flow] += 1

    def take(self) -> tuple[J, int] | None:
        """The next job and its pixels, which count as in work until `done`; None: none, or none that fits now."""
        passed: list[_Entry[J]] = []
        found = None
        is_kept_free = False  # for one that has let others pass for long enough
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            if entry.job.is_over:
                self._forget(entry.flow)
                continue
            is_one_too_many = entry.pixels > HUGE_PX and self.in_work_huge >= self.max_huge
            has_room = not self.in_work_pixels or self.in_work_pixels + entry.pixels <= self.max_pixels
            if entry.pixels <= SMALL_PX or (has_room and not is_kept_free and not is_one_too_many):
                found = entry
                continue
            passed.append(entry)
            if not is_one_too_many:
                entry.passed_since = entry.passed_since or time.monotonic()
                is_kept_free |= time.monotonic() - entry.passed_since > _PATIENCE_S
        for entry in passed:
            heapq.heappush(self._heap, entry)
        if found is None:
            return None
        self._count(found.pixels, 1)
        self._now = max(self._now, found.start) + (found.pixels + _OVERHEAD_PX) / (len(self._waiting) + 1)
        self._forget(found.flow)
        self._ends = {flow: end for flow, end in self._ends.items() if end > self._now}
        return found.job, found.pixels

    def done(self, pixels: int) -> None:
        self._count(pixels, -1)

    def _count(self, pixels: int, by: int) -> None:
        if pixels > SMALL_PX:
            self.in_work_pixels += by * pixels
        if pixels > HUGE_PX:
            self.in_work_huge += by

    def empty(self) -> list[J]:
        """All that still waited, taken out."""
        jobs = [entry.job for entry in self._heap]
        self._heap.clear()
        self._waiting.clear()
        return jobs

    def _forget(self, flow: Hashable) -> None:
        self._waiting[flow] -= 1
        if not self._waiting[flow]:
            del self._waiting[flow]
