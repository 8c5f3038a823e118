"""Admission control of one encoder: requests that would wait too long are refused, the others take turns."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from model_store.errors import ClipworksError
from service.faults import DeadlinePassed, ServiceNotReady, ServiceOverloaded
from service.timing import Budget, Deadline

# What was measured counts for less the longer ago it was; busy seconds after which it has a weight of 1/e.
_MEMORY_S = 5.0
# Of two requests that want to wait equally long, one that comes back in less than this would only knock again.
_LEAST_RETRY_S = 1.0
# Long requests leave this share of the places to short ones, which come at any moment.
_LONG_SHARE = 0.75
# Of the measured rate, which is an estimate, so much is counted on: waits then stay below max_wait_s, most of the time.
_SAFE_SHARE = 0.85


class ServiceRate:
    """Items finished per second in which there was something to do, an exponentially weighted mean of recent work.

    Idle time does not count, so that the rate of yesterday's load is still known today. A lone item shows how long one
    takes, which is less than a full machine can do: the rate then errs on the low side, and grows with the load.
    """

    def __init__(self, *, memory_s: float = _MEMORY_S) -> None:
        self._memory_s = memory_s
        self._items = 0.0
        self._busy_s = 0.0

    def worked(self, seconds: float) -> None:
        """So much time went by with items in work."""
        kept = math.exp(-seconds / self._memory_s)
        self._items *= kept
        self._busy_s = self._busy_s * kept + seconds

    def finished(self, items: float = 1) -> None:
        self._items += items

    @property
    def per_s(self) -> float | None:
        """None until something was finished."""
        return self._items / self._busy_s if self._items and self._busy_s else None


@dataclass(eq=False)
class _Waiting:
    ticket: Ticket
    turn: asyncio.Future[None]


class Admission:
    """The door and the waiting room in front of one encoder's decoding, batching and running.

    A request is let in if its items are expected to begin within `max_wait_s` and to be done before its deadline, by
    the rate at which items of its kind were finished lately; otherwise it is refused at once, before any of its work is
    done. `max_items` is the upper bound whatever the rate. A request that comes while nothing is in work is always let
    in. Until something was measured, no more than `window` items are.

    Requests of more than `short` items, or of slow ones, are long. Each kind has a rate of its own, measured while the
    other takes its share of the machine, so that a few slow images say nothing about how long a small one waits.

    At most `window` items are in work at one time; the others wait here, undecoded. Long requests wait in a line of
    their own and take turns with the short ones, so that neither stops the other. Both are served in
    their order. A short request that would not be done `max_wait_s` after it came is refused after all when its turn
    comes: the machine has become slower than it was when it was let in. It only is where there are those behind it who
    can still be answered in time.

    All methods belong to the event loop's thread.
    """

    def __init__(
        self,
        name: str,
        *,
        window: int,
        short: int,
        max_items: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._rates = {False: ServiceRate(), True: ServiceRate()}  # of what is finished, by whether the request is long
        self._window = window
        self._long_window = max(1, int(window * _LONG_SHARE))
        self._short = short
        self._max_items = max_items
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._admitted = 0
        self._unfinished = {False: 0, True: 0}  # admitted and not done, by whether the request is long
        self._working = {False: 0, True: 0}  # of them, those that have begun
        self._lines: dict[bool, deque[_Waiting]] = {False: deque(), True: deque()}
        self._long_next = False
        self._seen = clock()

    @property
    def waiting(self) -> int:
        """Items that have not begun."""
        return len(self._lines[False]) + len(self._lines[True])

    def rate(self, *, is_long: bool = False) -> ServiceRate:
        """Of a kind of requests. Until long ones were measured they are taken to be as fast as short ones."""
        own = self._rates[is_long]
        return self._rates[False] if is_long and own.per_s is None else own

    def expected_wait_s(self, *, is_long: bool = False) -> float:
        """How long a request of this kind would wait before its own work; 0 where nothing was measured yet."""
        self._advance()
        rate = self._safe_rate(is_long)
        return self._unfinished[is_long] / rate if rate else 0.0

    def admit(self, items: int, deadline: Deadline, *, are_slow: bool = False) -> Ticket:
        """Places for all items of a request; `are_slow`: one of them takes much longer than most do.

        Raises:
            ServiceOverloaded: it would wait too long; says when to come again.
        """
        is_long = are_slow or items > self._short
        if items and self._admitted:
            self._refuse_if_late(items, is_long, deadline)
        self._advance()
        self._admitted += items
        self._unfinished[is_long] += items
        return Ticket(self, items, is_long=is_long)

    def still_s(self, ahead: int = 0) -> float | None:
        """How long one more item would have to wait behind `ahead` more, if it would be refused for that; else None."""
        if not self._admitted and not ahead:
            return None
        self._advance()
        rate = self._safe_rate(False)
        wait_s = (self._unfinished[False] + ahead) / rate if rate else 0.0
        is_full = self._admitted + ahead >= self._max_items if rate else self._unfinished[False] + ahead >= self._window
        return wait_s if wait_s > self._max_wait_s or is_full else None

    def _refuse_if_late(self, items: int, is_long: bool, deadline: Deadline) -> None:
        wait_s, rate = self.expected_wait_s(is_long=is_long), self._safe_rate(is_long)
        done_s = (self._unfinished[is_long] + items) / rate if rate else 0.0
        remaining_s = deadline.remaining_s()
        if self._admitted + items > self._max_items:
            why = f"the limit is {self._max_items} (CLIPWORKS_MAX_QUEUE_ITEMS)"
        elif rate is None:
            is_too_much = self._unfinished[is_long] + items > self._window
            why = "and how fast they are done is not known yet" if is_too_much else None
        elif wait_s > self._max_wait_s:
            limit = f"the limit is {self._max_wait_s:g} s (CLIPWORKS_MAX_WAIT_S)"
            why = f"the wait would be {wait_s:.1f} s, {limit}"
        elif remaining_s is not None and done_s > remaining_s:
            why = f"this request would take {done_s:.1f} s, its deadline leaves {remaining_s:.1f} s"
        else:
            why = None
        if why:
            raise ServiceOverloaded(
                f"{self._admitted} items are in work for {self.name}, {why}",
                retry_after_s=max(wait_s, _LEAST_RETRY_S),
                still_s=self.still_s,
            )

    def _safe_rate(self, is_long: bool) -> float | None:
        rate = self.rate(is_long=is_long).per_s
        return None if rate is None else _SAFE_SHARE * rate

    def now(self) -> float:
        return self._clock()

    def _advance(self) -> None:
        now = self._clock()
        for is_long, rate in self._rates.items():
            if self._unfinished[is_long]:
                rate.worked(now - self._seen)
        self._seen = now

    def _has_room(self, is_long: bool) -> bool:
        if self._working[False] + self._working[True] >= self._window:
            return False
        return not is_long or self._working[True] < self._long_window

    async def begin(self, ticket: Ticket) -> None:
        """Wait until an item may begin.

        Raises:
            ServiceOverloaded: it has waited too long, and no other item of its request has begun.
        """
        is_long = ticket.is_long
        line = self._lines[is_long]
        if not line and self._has_room(is_long):
            self._working[is_long] += 1
            ticket.has_begun = True
            return
        waiting = _Waiting(ticket, asyncio.get_running_loop().create_future())
        line.append(waiting)
        self._call_next()
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled() and not waiting.turn.exception():
                # its turn came at the same moment
                self.end(is_long, was_done=False)
            raise

    def end(self, is_long: bool, *, was_done: bool, broken_s: float = 0.0) -> None:
        """An item that had begun is over; `was_done`: the machine did for it what it could.

        broken_s: it was refused after so long in work. Broken items are cheap: counted as whole ones they would promise
        more than the machine can do, not counted at all, less. So they count for their time, at the rate that is known.
        """
        self._advance()
        at_once = self._working[False] + self._working[True]
        self._working[is_long] -= 1
        if was_done:
            rate = self._rates[is_long]
            rate.finished(min(1.0, (rate.per_s or 0.0) * broken_s / at_once) if broken_s else 1)
            self._forget(is_long, 1)
        self._call_next()

    def leave(self, is_long: bool, items: int) -> None:
        """The request is over; so many of its items were never done."""
        self._advance()
        self._forget(is_long, items)

    def _forget(self, is_long: bool, items: int) -> None:
        self._admitted -= items
        self._unfinished[is_long] -= items

    def _call_next(self) -> None:
        """Begin as many as there is room for, those that are still waited for."""
        while (is_long := self._next_line()) is not None:
            line = self._lines[is_long]
            waiting = line.popleft()
            ticket = waiting.ticket
            if self._is_late(ticket) and self._ends_in_time(line):
                waiting.turn.set_exception(self._too_late(ticket))
                continue
            self._working[is_long] += 1
            self._long_next = not is_long
            ticket.has_begun = True
            waiting.turn.set_result(None)

    def _ends_in_time(self, line: deque[_Waiting]) -> bool:
        """Whether the newest of a line is not late; those whose callers are gone do not count."""
        while line and line[-1].turn.done():
            line.pop()
        return bool(line) and not self._is_late(line[-1].ticket)

    def _is_late(self, ticket: Ticket) -> bool:
        """The items of one long request wait for each other: that says nothing about the rate."""
        if ticket.is_long or ticket.has_begun:
            return False
        rate = self._rates[False].per_s
        ahead_s = (self._working[False] + 1) / rate if rate else 0.0
        return self._clock() - ticket.since + ahead_s > self._max_wait_s

    def _too_late(self, ticket: Ticket) -> ServiceOverloaded:
        waited_s = self._clock() - ticket.since
        return ServiceOverloaded(
            f"{self._admitted} items are in work for {self.name}, and it has become slower: "
            f"this request has waited {waited_s:.1f} s, the limit is {self._max_wait_s:g} s (CLIPWORKS_MAX_WAIT_S)",
            retry_after_s=max(self.expected_wait_s(), _LEAST_RETRY_S),
            still_s=self.still_s,
        )

    def _next_line(self) -> bool | None:
        """Whose turn it is: the long ones' (True), the short ones' (False), or nobody's."""
        for is_long in (self._long_next, not self._long_next):
            line = self._lines[is_long]
            while line and line[0].turn.done():  # its caller is gone
                line.popleft()
            if line and self._has_room(is_long):
                return is_long
        return None


class Ticket:
    """The places of one request; a context manager that gives them back, also those whose work never began."""

    def __init__(self, admission: Admission, items: int, *, is_long: bool) -> None:
        self._admission = admission
        self._left = items
        self.is_long = is_long
        self.since = admission.now()
        self.has_begun = False

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave(self.is_long, self._left)
        self._left = 0

    def turn(self, budget: Budget) -> Turn:
        """`async with` it around the work of one item. Raises DeadlinePassed: its turn came too late."""
        return Turn(self, budget)

    def now(self) -> float:
        """On the clock of the admission."""
        return self._admission.now()

    async def begin(self) -> None:
        await self._admission.begin(self)

    def end(self, *, was_done: bool, broken_s: float = 0.0) -> None:
        if was_done:
            self._left -= 1
        self._admission.end(self.is_long, was_done=was_done, broken_s=broken_s)


class Turn:
    """One item's time in work; begins when there is room and not after its deadline."""

    def __init__(self, ticket: Ticket, budget: Budget) -> None:
        self._ticket = ticket
        self._budget = budget
        self._began = 0.0

    async def __aenter__(self) -> None:
        entered = time.perf_counter()
        await self._ticket.begin()
        self._budget.timings.add("turn", time.perf_counter() - entered)
        self._began = self._ticket.now()
        if self._budget.expired:
            self._ticket.end(was_done=False)
            self._budget.check()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_own_fault = isinstance(error, ClipworksError) and not isinstance(error, (DeadlinePassed, ServiceNotReady))
        broken_s = max(self._ticket.now() - self._began, 1e-9) if is_own_fault else 0.0
        self._ticket.end(was_done=error is None or is_own_fault, broken_s=broken_s)
