"""Progress bars around the long preparations of a run: decoding pictures, working out features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")
_LEAST = 4  # shorter work is over before a bar can be read


class Track(Protocol):
    """Gives the items one by one, and shows how far it is; `label` says what they are."""

    def __call__(self, items: Sequence[T], label: str) -> Iterable[T]: ...


def untracked(items: Sequence[T], label: str) -> Iterable[T]:
    """A Track that shows nothing."""
    return items


def tracked_on(console: Console | None) -> Track:
    """A Track with bars on `console`; None shows nothing."""
    if console is None:
        return untracked

    def tracked(items: Sequence[T], label: str) -> Iterable[T]:
        return items if len(items) < _LEAST else track(items, label, console=console)

    return tracked
