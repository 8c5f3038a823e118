"""One process owns a data folder: a lock held for life, and a file with the owner's address."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path

from service.retrieval.errors import FolderInUse, StorageFailed

LOCK_NAME = "LOCK"
_MAX_BYTES = 4096


class FolderLock:
    """Locks on the folder itself and on a file in it; the kernel frees both when the process ends, however it ends.

    The file says who holds the folder, and keeps out versions that lock nothing else. Whoever deletes it frees nothing.

    was_used: the file was there before, so the folder belonged to a process once.
    """

    def __init__(self, folder: Path, address: str | None) -> None:
        """Raises FolderInUse, with what the holder wrote."""
        path = folder / LOCK_NAME
        self._held: list[int] = []
        self.was_used = path.exists()
        try:
            # The folder first: where there is a lock file, its folder is held, or was left behind (see remove_stale).
            self._held.append(os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
            is_free = _lock(self._held[0])
            if is_free:
                self._held.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644))
                if not stat.S_ISREG(os.fstat(self._held[1]).st_mode):
                    raise OSError(errno.EINVAL, f"{LOCK_NAME} in it is no plain file, move it away")
                is_free = _lock(self._held[1])
        except OSError as error:
            self._close()
            raise StorageFailed(f"{folder} cannot be locked: {error.strerror}") from None
        if not is_free:
            self._close()
            found_address, pid = _content(path)
            where = f" at {found_address}" if found_address else ""
            raise FolderInUse(
                f"{folder} is in use by process {pid or 'unknown'}{where}; one process owns a data folder",
                address=found_address,
                pid=pid,
            ) from None
        self.announce(address)

    def announce(self, address: str | None) -> None:
        """Write who holds the folder and where it can be reached."""
        if not self._held:
            return
        content = json.dumps({"pid": os.getpid(), "address": address}).encode()
        # Written over, then cut: a reader may see a torn note, which it takes for none, but never an empty promise.
        os.pwrite(self._held[1], content, 0)
        os.ftruncate(self._held[1], len(content))

    def release(self) -> None:
        if self._held:
            os.ftruncate(self._held[1], 0)
            self._close()

    def _close(self) -> None:
        while self._held:
            os.close(self._held.pop())


def holder(folder: Path) -> str | None:
    """Address of the process that holds the folder, "" if it wrote none; None if nobody holds it."""
    for path in (folder, folder / LOCK_NAME):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of a pipe it would wait
        except OSError:
            continue
        try:
            if not _lock(descriptor, fcntl.LOCK_SH):
                return _content(folder / LOCK_NAME)[0] or ""
        finally:
            os.close(descriptor)
    return None


def remove_stale(parent: Path, prefix: str) -> None:
    """Remove temporary folders whose process was killed: of this user, with a lock file that nobody holds."""
    for folder in parent.glob(f"{prefix}*"):
        try:
            is_ours = folder.lstat().st_uid == os.geteuid() and folder.is_dir() and not folder.is_symlink()
            if not is_ours or not (folder / LOCK_NAME).is_file():
                continue
            lock = FolderLock(folder, None)
        except (OSError, FolderInUse, StorageFailed):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether nobody else holds it. A file system that cannot lock a folder leaves it to the lock file."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)
    return True


def _content(path: Path) -> tuple[str | None, int | None]:
    try:
        if not path.is_file():
            return None, None
        with path.open("rb") as stream:
            found = json.loads(stream.read(_MAX_BYTES))
        return found["address"], found["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
