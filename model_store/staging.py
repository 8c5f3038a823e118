"""Folders in which artifacts are built: locked by the process that builds, removed by the next one if that died."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

_GUARD = "lock"  # held for as long as it takes to make or remove folders
_LOCK = ".lock"  # behind the name of a folder, in a file beside it


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
