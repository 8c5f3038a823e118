"""Files and folders written so that after any crash they are whole or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_GUARD = "lock"  # held for as long as it takes to make or remove folders
_LOCK = ".lock"  # behind the name of a folder, in a file beside it


@contextmanager
def whole_file(path: Path, *, by_many: bool = False) -> Generator[BinaryIO]:
    """A file to write and read back; when the block ends it is synced, becomes `path`, and its folder is synced.

    On any error `path` is as it was. by_many: several processes may write it at one time, and the last one wins; what a
    killed process leaves then stays there.

    Raises:
        OSError
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing" if by_many else f".{path.name}.writing")
    try:
        with beside.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of which a crash leaves the old content or the new. Raises OSError."""
    with whole_file(path) as stream:
        stream.write(data)


def replace_folder(folder: Path, by: Path) -> None:
    """Put the folder `by` in the place of `folder`, which is on the same file system and is deleted afterwards.

    Two renames: should a crash come between them, the old folder lies whole beside `by`, as `<by>.replaced`.

    Raises:
        OSError: nothing was changed.
    """
    old = by.with_name(f"{by.name}.replaced")
    os.rename(folder, old)
    try:
        os.rename(by, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that its name survives a power cut, whoever made it first.

    Raises:
        OSError
    """
    missing = [each for each in folder.parents if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, *missing):
        with suppress(PermissionError):  # a folder above that may not be read holds names that are not ours
            sync(each.parent)


def sync(path: Path) -> None:
    """Make durable what a file holds, or which names are in a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_folder(home: Path) -> Generator[Path]:
    """A new empty folder below `home`, locked until the block ends, and then removed where it still is.

    Before, folders are removed whose process was killed: nobody holds their lock any more. On a file system without
    locks they stay.

    Raises:
        OSError: it cannot be written there.
    """
    home.mkdir(parents=True, exist_ok=True)
    folder = home / uuid.uuid4().hex
    lock = folder.with_name(folder.name + _LOCK)
    with _open(home / _GUARD) as guard:
        _lock(guard, wait=True)
        _remove_abandoned(home)
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        _lock(held, wait=False)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(held)


@contextmanager
def one_at_a_time(home: Path, name: str, waiting: Callable[[], None]) -> Generator[bool]:
    """Hold the lock of that name below `home`; True when another process had it first and has ended meanwhile.

    waiting: called once where it has to wait.

    Raises:
        OSError: it cannot be written there.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _open(home / f"{name}.name") as descriptor:
        waited = not _lock(descriptor, wait=False)
        if waited:
            waiting()
            _lock(descriptor, wait=True)
        yield waited


def _remove_abandoned(home: Path) -> None:
    for lock in home.glob(f"*{_LOCK}"):
        with _open(lock) as descriptor:
            if _lock(descriptor, wait=False):
                shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
                lock.unlink(missing_ok=True)


@contextmanager
def _open(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """False: another process holds it, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
