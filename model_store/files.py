"""Files and folders written so that after any crash they are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


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
