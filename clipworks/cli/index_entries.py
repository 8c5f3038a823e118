"""Entries of a source of pictures: pictures to load, problems, and files that were left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clipworks.cli.picture_files import LeftOut, Skipped

# What the indexer itself writes into the metadata of an item.
RESERVED = frozenset({"path", "source", "member", "row", "sha256", "size", "mtime"})


@dataclass(frozen=True)
class Loaded:
    data: bytes
    metadata: dict[str, Any]


@dataclass(frozen=True)
class PictureEntry:
    """One picture; `load` reads it and what is known about it.

    load: takes the fields that the collection declares, whose csv cells get their type. It raises OSError,
    UnreadableInput, and ValueError for a cell that has no value of the type.
    place: its path below the source, with slashes; empty for a picture inside a table.
    """

    id: str
    source: str
    load: Callable[[Mapping[str, str]], Loaded]
    place: str = ""


@dataclass(frozen=True)
class EntryProblem:
    """Something of a source that cannot be indexed."""

    name: str
    reason: str


@dataclass
class SourceListing:
    """All pictures of some sources, and everything else that is in them.

    sources: those whose items may be pruned. complete: everything could be looked at, so what is not listed is gone.
    present: (source, path below it) of what was left out and exists all the same. columns: names in tables.
    """

    entries: list[PictureEntry] = field(default_factory=list[PictureEntry])
    problems: list[EntryProblem] = field(default_factory=list[EntryProblem])
    skipped: Skipped = field(default_factory=Skipped)
    sources: set[str] = field(default_factory=set[str])
    present: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    columns: set[str] = field(default_factory=set[str])
    complete: bool = True

    def leave_out(self, source: str, each: LeftOut, *, shown: str) -> None:
        self.skipped.each.append(LeftOut(shown, each.reason))
        self.present.add((source, each.below))
