"""Pictures of items that keep none themselves, read from a folder that the operator names, and from nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.errors import InputError
from service.collections.threads import StoreThreads
from service.decoding.pool import DecodePool
from service.fair_turns import FairTurns
from service.faults import DeadlinePassed, ThumbnailNotFound, TooManyItems
from service.timing import Budget

_WAITING = 256  # requests of one caller, such as one for each hit of a page
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A pipe that took the place of a file between two looks must not be waited for.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_REFUSED = "this item has no thumbnail"


@dataclass(frozen=True)
class Thumbnail:
    """A small WebP, and a name of its content. picture: None where the client has it already."""

    tag: str
    picture: bytes | None


class MediaRoot:
    """Thumbnails of files below one folder: whatever a path says, its real place must be in there.

    Every reason not to answer is one and the same ThumbnailNotFound, so nobody learns which files there are.
    Belongs to one event loop.
    """

    def __init__(self, folder: Path, *, threads: StoreThreads, pool: DecodePool, slots: int) -> None:
        """slots: files that are read and decoded at one time; a caller has at most half of them, or one."""
        self._folder = folder
        self._threads = threads
        self._pool = pool
        self._turns = FairTurns(slots, each=max(1, slots // 2), max_waiting=_WAITING)
        self._key = secrets.token_bytes(16)  # tags say nothing of a file to who has not seen its picture

    async def thumbnail(self, path: Any, *, known: Collection[str], caller: str, budget: Budget) -> Thumbnail:
        """Of a picture by what metadata says of its place. known: tags of pictures that the client has.

        Raises:
            ThumbnailNotFound: the place is no text, outside, absent, no plain file, too large, or no picture.
            ServiceOverloaded, ServiceNotReady, DeadlinePassed
        """
        if not isinstance(path, str) or not path:
            raise ThumbnailNotFound(_REFUSED)
        try:
            async with asyncio.timeout(budget.remaining_s()), self._turns.turn([("caller", caller)]):
                return await self._made(path, known, budget)
        except TimeoutError:
            raise DeadlinePassed("the request's deadline passed before its thumbnail was made") from None

    async def _made(self, path: str, known: Collection[str], budget: Budget) -> Thumbnail:
        try:
            tag, data = await self._threads.run(
                "media", lambda _: self._read(path, known), budget=budget, stage="media"
            )
            if data is None:
                return Thumbnail(tag, None)
            self._pool.check_request([data])
            return Thumbnail(tag, await self._pool.thumbnail(data, budget))
        except (OSError, ValueError, InputError, TooManyItems):
            raise ThumbnailNotFound(_REFUSED) from None

    def _read(self, path: str, known: Collection[str]) -> tuple[str, bytes | None]:
        """The tag of a file, and its content unless the client has its picture. Raises OSError, ValueError."""
        limit = self._pool.limits.max_bytes
        with open(open_below(self._folder, path), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or not 0 < found.st_size <= limit:
                raise ValueError("no plain file of an allowed size")
            facts = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
            tag = hashlib.blake2b(facts.encode(), key=self._key, digest_size=16).hexdigest()
            if tag in known:
                return tag, None
            data = file.read(limit + 1)
        if len(data) > limit:  # it grew meanwhile
            raise ValueError("too large")
        return tag, data


def open_below(folder: Path, path: str) -> int:
    """A descriptor of a plain file whose real place, all links followed, is below the real place of `folder`.

    path: absolute, or from `folder`. The real place is then walked to without following any link, so one that is put
    there meanwhile leads nowhere.

    Raises:
        OSError, ValueError: there is none, or it is outside, or something else than a file.
    """
    root = os.path.realpath(folder, strict=True)
    place = os.path.realpath(os.path.join(root, path), strict=True)
    *folders, name = Path(place).relative_to(root).parts
    here = os.open(root, _FOLDER)
    try:
        for each in folders:
            inner = os.open(each, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        if not stat.S_ISREG(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
            raise ValueError("not a plain file")  # devices are not even opened
        return os.open(name, _FILE, dir_fd=here)
    finally:
        os.close(here)
