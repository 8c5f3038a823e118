"""One process owns a data folder: a lock file held for life, with the owner's address inside."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from service.retrieval.errors import FolderInUse, StorageFailed

LOCK_NAME = "LOCK"
_MAX_BYTES = 4096


class FolderLock:
    """The kernel frees it when the process ends, however it ends; the file itself stays."""

    def __init__(self, folder: Path, address: str | None) -> None:
        """Raises FolderInUse, with what the holder wrote."""
        self._path = folder / LOCK_NAME
        try:
            self._descriptor: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageFailed(f"the lock file {self._path} cannot be opened: {error}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            self._descriptor = None
            found_address, pid = _content(self._path)
            where = f" at {found_address}" if found_address else ""
            raise FolderInUse(
                f"{folder} is in use by process {pid or 'unknown'}{where}; one process owns a data folder",
                address=found_address,
                pid=pid,
            ) from None
        self.announce(address)

    def announce(self, address: str | None) -> None:
        """Write who holds the folder and where it can be reached."""
        if self._descriptor is None:
            return
        content = json.dumps({"pid": os.getpid(), "address": address}).encode()
        # Written over, then cut: a reader may see a torn note, which it takes for none, but never an empty promise.
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def holder(folder: Path) -> str | None:
    """Address of the process that holds the folder, "" if it wrote none; None if nobody holds it."""
    path = folder / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _content(path)[0] or ""
    finally:
        os.close(descriptor)
    return None


def _content(path: Path) -> tuple[str | None, int | None]:
    try:
        with path.open("rb") as stream:
            found = json.loads(stream.read(_MAX_BYTES))
        return found["address"], found["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
