"""What one request may bring: bytes, items, and the length of every list, each with the setting that lifts it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.faults import TooManyItems


@dataclass(frozen=True)
class ListLimit:
    """Most elements of a list; `setting` names what changes that, None: nothing does."""

    most: int
    setting: str | None = None
    remedy: str = ""


@dataclass(frozen=True)
class IngressLimits:
    """Bounds of one request; `lists` bounds each list of a body by the name of its field.

    parsing: large bodies are parsed one after the other, so that the event loop competes with one thread only.
    """

    max_body_bytes: int
    max_image_bytes: int
    max_items: int
    body_timeout_s: float
    max_parsed_bytes: int = 128 * 2**20
    lists: Mapping[str, ListLimit] = field(default_factory=dict[str, ListLimit])
    parsing: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)

    def check_list(self, name: str, count: int) -> None:
        """Raises TooManyItems for a list or an object of more than its elements; `name` is its field."""
        limit = self.lists.get(name)
        if limit is not None and count > limit.most:
            setting = f" ({limit.setting})" if limit.setting else ""
            raise TooManyItems(f"{name} has {count} elements, the limit is {limit.most}{setting}{limit.remedy}")
