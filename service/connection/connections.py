"""All open connections of a server: how many there may be, who makes room for whom, and what lies unread."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol

log = logging.getLogger("clipworks.http")

Stage = Literal["idle", "head", "busy"]
Reason = Literal["idle", "unread", "slow", "refused"]

# Connections over the limit that are being told so; beyond them a newcomer is cut without a word.
SPARE_CONNECTIONS = 64
_LOG_EVERY_S = 10.0
# A client is not cut for being slow before this time, and none is looked for again sooner than this.
_PATIENCE_S = 2.0
_LOOK_AGAIN_S = 0.1


class Connection(Protocol):
    """What is asked of a connection here."""

    address: str

    def unsent_bytes(self) -> int: ...
    def is_behind(self) -> bool:
        """Its body arrives too slowly to be complete within its time."""
        ...

    def cut(self) -> None: ...


class Connections:
    """Bookkeeping of one server's connections; all of it on the event loop, and cheap for each request."""

    def __init__(
        self,
        *,
        limit: int,
        limit_per_address: int,
        max_unsent_bytes: int,
        count: Callable[[Reason], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self._limit_per_address = limit_per_address
        self._max_unsent_bytes = max_unsent_bytes
        self._count = count
        self._clock = clock
        # In the order in which they came to this stage: the first is the oldest.
        self._stages: dict[Stage, dict[Connection, None]] = {"idle": {}, "head": {}, "busy": {}}
        self._stage: dict[Connection, Stage] = {}
        self._unread: dict[Connection, float] = {}
        self._addresses: Counter[str] = Counter()
        self._spare: set[Connection] = set()
        self._nobody_until = 0.0
        self._log_after: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._stage)

    def admit(self, new: Connection) -> Literal["in", "over", "out"]:
        """Take in a connection, at the cost of another that nobody would miss if all places are taken.

        "over": it is one too many and must be told so; "out": too many are being told so already.
        """
        crowded = bool(self._limit_per_address) and self._addresses[new.address] >= self._limit_per_address
        if crowded or (len(self._stage) >= self.limit and not self._make_room()):
            self._count("refused")
            what = f"from {new.address}" if crowded else "open"
            self._say(
                "refused", f"{self._limit_per_address if crowded else self.limit} connections {what}, refusing more"
            )
            if len(self._spare) >= SPARE_CONNECTIONS:
                return "out"
            self._spare.add(new)
            return "over"
        self._addresses[new.address] += 1
        self._stage[new] = "idle"
        self._stages["idle"][new] = None
        return "in"

    def move(self, connection: Connection, stage: Stage) -> None:
        """idle: nothing of a request has come; head: its headers are coming; busy: it is being answered."""
        before = self._stage.get(connection)
        if before is not None:
            del self._stages[before][connection]
            self._stage[connection] = stage
            self._stages[stage][connection] = None

    def forget(self, connection: Connection) -> None:
        """It is closed; may be called again."""
        self._spare.discard(connection)
        self._unread.pop(connection, None)
        stage = self._stage.pop(connection, None)
        if stage is not None:
            del self._stages[stage][connection]
            self._addresses[connection.address] -= 1
            if not self._addresses[connection.address]:
                del self._addresses[connection.address]

    def leaves_unread(self, connection: Connection) -> None:
        """More of its answer lies in memory than a socket takes; cuts those that stalled longest if it is too much."""
        self._unread.setdefault(connection, self._clock())
        unsent = sum(each.unsent_bytes() for each in self._unread)
        while unsent > self._max_unsent_bytes and len(self._unread) > 1:
            slowest = next(iter(self._unread))
            unsent -= slowest.unsent_bytes()
            self._cut(slowest, "unread", "clients do not read their answers, closing the slowest")

    def reads(self, connection: Connection) -> None:
        """Its client goes on reading."""
        self._unread.pop(connection, None)

    def cut(self, connection: Connection, reason: Reason, message: str) -> None:
        """Close it at once, for a reason that is counted and logged."""
        self._cut(connection, reason, message)

    def _make_room(self) -> bool:
        """Cut the connection that is missed least: idle, half a head, unread answer, body that comes too slowly."""
        for stage in ("idle", "head"):
            oldest = next(iter(self._stages[stage]), None)
            if oldest is not None:
                self._cut(oldest, "idle", f"{self.limit} connections open, closing idle ones")
                return True
        now = self._clock()
        if now < self._nobody_until:
            return False
        stalled = next((each for each, since in self._unread.items() if now - since >= _PATIENCE_S), None)
        if stalled is not None and stalled in self._stage:
            self._cut(stalled, "unread", f"{self.limit} connections open, closing those that do not read")
            return True
        slow = next((each for each in self._stages["busy"] if each.is_behind()), None)
        if slow is not None:
            self._cut(slow, "slow", f"{self.limit} connections open, closing those that send slowly")
            return True
        self._nobody_until = now + _LOOK_AGAIN_S
        return False

    def _cut(self, connection: Connection, reason: Reason, message: str) -> None:
        self.forget(connection)
        self._count(reason)
        self._say(reason, message)
        connection.cut()

    def _say(self, what: str, message: str) -> None:
        """A flood of connections must not become a flood of lines."""
        now = self._clock()
        if now >= self._log_after.get(what, 0.0):
            self._log_after[what] = now + _LOG_EVERY_S
            log.warning(message)
