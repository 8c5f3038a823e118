"""Retry rules: which answers are worth another try, and how long to wait before it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({429, 503})
# Only without an error of the server in them: then a proxy in front of it has answered.
RETRIED_OF_PROXIES = frozenset({502, 504})


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Asks again after 429, 503, a proxy's 502 or 504, and broken connections; never after a timeout of this side or
    the server's own 504, which may mean that the work goes on.

    attempts: requests in all; 1 never retries.
    first_pause_s: the pause before retry k is random between half and all of first_pause_s * 2 ** (k - 1), at most
        max_pause_s, so that clients that were refused together do not come back together.
    max_retry_after_s: a server that asks for more than this is taken at its word: no retry.
    """

    attempts: int = 5
    first_pause_s: float = 0.2
    max_pause_s: float = 10.0
    max_retry_after_s: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first_pause_s, self.max_pause_s, self.max_retry_after_s) < 0:
            raise ValueError("attempts must be at least 1 and no pause negative")

    def pause_s(self, attempt: int, retry_after: str | None, *, chance: random.Random) -> float | None:
        """Seconds to wait after attempt number `attempt` (1-based), or None to give up."""
        if attempt >= self.attempts:
            return None
        backoff_s = min(self.first_pause_s * 2 ** (attempt - 1), self.max_pause_s) * chance.uniform(0.5, 1.0)
        asked_s = seconds_of(retry_after)
        if asked_s is None:
            return backoff_s
        return None if asked_s > self.max_retry_after_s else asked_s + backoff_s


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header (seconds or an HTTP date) as seconds from now; None when absent or meaningless."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
