"""Picture files in folders, by one rule for every command: which are taken, and what is left out for which reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import typer

from clipworks.cli.failures import UsageError
from clipworks.cli.file_names import text_of
from clipworks.errors import UnreadableInput

MAX_FILE_BYTES = 256 * 2**20
# Pictures to people, but of formats that no setting makes readable.
_OTHER_FORMATS = frozenset(
    (
        *(".tif", ".tiff", ".jxl", ".jp2", ".j2k", ".psd", ".svg", ".ico", ".tga", ".exr", ".hdr"),
        *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    )
)

Reason = Literal[
    "hidden", "excluded", "linked folder", "not a file", "format that is not read", "not a picture", "read already"
]
EXPLAINED: Mapping[Reason, str] = MappingProxyType(
    {
        "hidden": "hidden (--hidden takes them)",
        "excluded": "excluded",
        "linked folder": "linked folder (--follow-links reads them)",
        "not a file": "device, pipe or socket",
        "format that is not read": "picture of a format that is not read (convert it to JPEG or PNG)",
        "not a picture": "not a picture by its name",
        "read already": "linked folder that is read already",
    }
)

Hidden = Annotated[bool, typer.Option("--hidden", help="Take hidden files and folders (.name) too.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave out files and folders of this name or path; may be repeated."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Take only files of this name or path; may be repeated."),
]
FollowLinks = Annotated[
    bool,
    typer.Option("--follow-links", help="Read linked folders too, each folder once. Linked files are always read."),
]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a folder is wanted. A pattern without a slash is for names, one with a slash for paths below the folder;
    `*` stands for anything, slashes too."""

    hidden: bool = False
    follow_links: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def leaves_out(self, below: str, *, is_folder: bool) -> Reason | None:
        """`below`: the path below the folder, with slashes."""
        name = below.rpartition("/")[2]
        if name.startswith(".") and not self.hidden:
            return "hidden"
        if _matches(self.exclude, below, name):
            return "excluded"
        if self.include and not is_folder and not _matches(self.include, below, name):
            return "excluded"
        return None


@dataclass(frozen=True)
class PictureFile:
    """`below`: its path below the folder that was searched, with slashes."""

    path: Path
    below: str


@dataclass(frozen=True)
class LeftOut:
    below: str
    reason: Reason


@dataclass(frozen=True)
class Unreadable:
    """A folder or a link that could not be looked at, so that nobody knows what is behind it."""

    below: str
    why: str


Found = PictureFile | LeftOut | Unreadable


@dataclass
class Skipped:
    """Counts and names of what was left out."""

    each: list[LeftOut] = field(default_factory=list[LeftOut])

    def by_reason(self) -> dict[Reason, list[str]]:
        found: dict[Reason, list[str]] = {}
        for one in self.each:
            found.setdefault(one.reason, []).append(one.below)
        return found

    def describe(self) -> str:
        """`2 not a picture by its name (notes.md, x.pdf), 1 hidden ...`; empty when nothing was left out."""
        return ", ".join(
            f"{len(names)} {EXPLAINED[reason]}: {', '.join(text_of(name) for name in names[:2])}"
            + (", ..." if len(names) > 2 else "")
            for reason, names in self.by_reason().items()
        )


@cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes of all formats that a server can be set up to read, lower case, with the dot."""
    from model_store.modality.formats import ALL_FORMATS, suffixes_of

    return suffixes_of(ALL_FORMATS)


def reason_by_name(name: str) -> Reason | None:
    """Why a file of this name is not taken; None: it is."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in picture_suffixes():
        return None
    return "format that is not read" if suffix in _OTHER_FORMATS else "not a picture"


def search_folder(folder: Path, selection: Selection) -> Iterator[Found]:
    """Everything below a folder: each file, and each folder that is not entered. Sorted, files of a folder first.

    Nothing is opened. Linked folders come last, and no folder is read twice, so that cycles end.

    Raises:
        UsageError: the folder itself cannot be read.
    """
    read: set[tuple[int, int]] = set()
    linked: list[tuple[str, str]] = []
    waiting = [(os.fspath(folder), "")]
    while waiting or linked:
        is_link = not waiting
        where, below = linked.pop(0) if is_link else waiting.pop()
        try:
            facts = os.stat(where)
            if (facts.st_dev, facts.st_ino) in read:
                if is_link:
                    yield LeftOut(below, "read already")
                continue
            read.add((facts.st_dev, facts.st_ino))
            with os.scandir(where) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if not below:
                raise UsageError(f"{text_of(folder)}: {error.strerror}") from error
            yield Unreadable(below, f"this folder cannot be read: {error.strerror}")
            continue
        inside: list[tuple[str, str]] = []
        for entry in entries:
            here = f"{below}/{entry.name}" if below else entry.name
            kind = _kind_of(entry)
            reason = selection.leaves_out(here, is_folder=kind in ("folder", "linked folder"))
            if reason is not None:
                yield LeftOut(here, reason)
            elif kind == "folder":
                inside.append((entry.path, here))
            elif kind == "linked folder" and selection.follow_links:
                linked.append((entry.path, here))
            elif kind == "broken link":
                if reason_by_name(entry.name) is None:
                    yield Unreadable(here, "this link leads to nothing that can be reached")
                else:
                    yield LeftOut(here, "not a picture")
            elif kind == "file":
                reason = reason_by_name(entry.name)
                yield PictureFile(Path(entry.path), here) if reason is None else LeftOut(here, reason)
            else:
                yield LeftOut(here, "linked folder" if kind == "linked folder" else "not a file")
        waiting += reversed(inside)


def pictures_of(paths: Iterable[str], selection: Selection) -> tuple[list[str], Skipped, list[Unreadable]]:
    """Pictures that were named, and those below folders that were named, sorted in each; what was left out of folders.

    A named file is taken whatever it is called, and whether it is there or not.

    Raises:
        UsageError: a folder without a picture.
    """
    taken: list[str] = []
    skipped, unread = Skipped(), list[Unreadable]()
    for path in paths:
        if not os.path.isdir(path):
            if would_wait(path):
                unread.append(Unreadable(path, "this is a device, pipe or socket, not a file"))
            else:
                taken.append(path)
            continue
        inside: list[str] = []
        before = len(unread)
        for found in search_folder(Path(path), selection):
            match found:
                case PictureFile():
                    inside.append(str(found.path))
                case LeftOut():
                    skipped.each.append(LeftOut(os.path.join(path, found.below), found.reason))
                case Unreadable():
                    unread.append(Unreadable(os.path.join(path, found.below), found.why))
        if not inside and len(unread) == before:
            raise UsageError(no_pictures(path, skipped))
        taken += sorted(inside)
    return taken, skipped, unread


def would_wait(path: str) -> bool:
    """A device, pipe or socket; but not what a shell hands over in /dev/fd for `<(command)`."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or path.startswith("/dev/fd/"))


def no_pictures(folder: str, skipped: Skipped) -> str:
    """What to say of a folder in which nothing was taken."""
    left_out = skipped.describe()
    kinds = ", ".join(sorted(picture_suffixes()))
    return f"{text_of(folder)}: no pictures in it ({kinds})" + (f"; left out: {left_out}" if left_out else "")


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file and its facts. A pipe or a device is never waited for, nor read.

    Raises:
        OSError: it cannot be read. UnreadableInput: it is no regular file, or too large for a picture.
    """
    _require_file(path, os.stat(path))
    # Between the look and the opening it may have become a pipe: an opening that does not wait, then a second look.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        _require_file(path, facts)
        return file.read(), facts


def _require_file(path: str | os.PathLike[str], facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = "folder" if stat.S_ISDIR(facts.st_mode) else "device, pipe or socket"
        raise UnreadableInput(f"{text_of(path)}: this is a {kind}, not a file")
    if facts.st_size > MAX_FILE_BYTES:
        raise UnreadableInput(f"{text_of(path)}: {facts.st_size} bytes are no picture that a server takes")


def _kind_of(entry: os.DirEntry[str]) -> Literal["file", "folder", "linked folder", "broken link", "special"]:
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        if entry.is_file(follow_symlinks=False):
            return "file"
        if not entry.is_symlink():
            return "special"
        mode = entry.stat().st_mode  # of what the link leads to
    except OSError:
        return "broken link"
    return "linked folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special"


def _matches(patterns: Sequence[str], below: str, name: str) -> bool:
    return any(fnmatchcase(below if "/" in pattern.strip("/") else name, pattern.strip("/")) for pattern in patterns)
