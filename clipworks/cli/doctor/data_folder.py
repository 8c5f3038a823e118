"""Checks of the folder that holds collections and label sets: writable, on a file system to trust, free, not full."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

from clipworks.cli.doctor.diagnosis import Diagnosis, failure, ok, warning
from clipworks.cli.doctor.file_systems import file_system_of
from clipworks.cli.doctor.subject import Subject

_GIB = 2**30
_LITTLE_BYTES = 1 * _GIB
_TOO_LITTLE_BYTES = 64 * 2**20
_OF_A_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|smbfs|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|vboxsf|prl_fs|fuse(\..+)?"
)
_OF_A_CONTAINER = frozenset({"overlay", "aufs"})
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_ANOTHER = "another folder with --data (CLIPWORKS_DATA)"


def check_folder(subject: Subject) -> Diagnosis | None:
    """Whether it is there or can be made, and takes files that are synced and locked."""
    if subject.settings is None:
        return None
    folder = subject.folder
    if folder is None:
        return ok("memory: collections and label sets are lost when the server ends")
    place = _nearest(folder)
    if not place.is_dir():
        return failure(f"{place} is no folder", f"move it away, or take {_ANOTHER}")
    try:
        _try_out(place)
    except OSError as error:
        what = f"{folder} cannot be written" if place == folder else f"{folder} is not there and cannot be made"
        return failure(f"{what}: {place}: {error.strerror}", f"{_advice(error, place)}, or take {_ANOTHER}")
    if place != folder:
        return ok(f"{folder} is not there yet; it can be made")
    if foreign := _unwritable(folder):
        return failure(
            f"{folder} has files that this user cannot write: {', '.join(foreign[:4])}",
            f"chown -R {os.geteuid()} {folder}, or run as the user who made them, or take {_ANOTHER}",
        )
    return ok(f"{folder} can be written, synced and locked")


def check_space(subject: Subject) -> Diagnosis | None:
    """Free bytes and names."""
    if subject.folder is None:
        return None
    place = _nearest(subject.folder)
    free = shutil.disk_usage(place).free
    found = f"{free / _GIB:,.1f} GiB free"
    remedy = f"free some space, `clipworks collections compact NAME`, or take {_ANOTHER}"
    status = os.statvfs(place)
    if status.f_files and not status.f_favail:
        return failure(f"{found}, but no inode: no file can be made", f"delete small files, or take {_ANOTHER}")
    if free < _TOO_LITTLE_BYTES:
        return failure(f"{found}: writes will be refused (507)", remedy)
    return warning(f"{found}, little", remedy) if free < _LITTLE_BYTES else ok(found)


def check_file_system(subject: Subject) -> Diagnosis | None:
    """Whether locks and fsync mean there what SQLite takes them to mean."""
    if subject.folder is None:
        return None
    kind = file_system_of(_nearest(subject.folder).resolve())
    if kind is None:
        return None
    if _OF_A_NETWORK.fullmatch(kind):
        return warning(
            f"{kind}: over a network or another program, locks and fsync are not to be trusted",
            "set CLIPWORKS_DATA to a local disk; copies elsewhere: `clipworks collections snapshot NAME FILE`",
        )
    if kind in _OF_A_CONTAINER:
        return warning(
            f"{kind}: a container's own layer, which goes when the container does",
            "mount a volume there, or set CLIPWORKS_DATA to one",
        )
    if kind in _IN_MEMORY:
        return warning(f"{kind}: memory, lost when the machine restarts", "set CLIPWORKS_DATA to a folder on a disk")
    return ok(kind)


def check_holder(subject: Subject) -> Diagnosis | None:
    """Whether another process owns the folder."""
    if subject.folder is None or not subject.folder.is_dir():
        return None
    address = holder_of(subject.folder)
    if address is None:
        return ok("nobody holds the folder")
    if address:
        return warning(
            f"held by the server at {address}: another one cannot start on it",
            f"use that one with --url {address}; or stop it first, or take {_ANOTHER}",
        )
    return warning(
        "held by a process that serves nothing, perhaps another clipworks command",
        f"wait for its end (`fuser {subject.folder}` names it), or take {_ANOTHER}",
    )


def holder_of(folder: Path) -> str | None:
    """Address of the process that holds it, "" if it has none; None: nobody does, or no server is installed."""
    try:
        from service.retrieval.truth.lock import holder
    except ImportError:
        return None
    return holder(folder)


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next((each for each in (folder, *folder.absolute().parents) if os.path.lexists(each)), Path("/"))


def _try_out(folder: Path) -> None:
    """Write, sync and lock a file without a name. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"\0" * 4096)
        stream.flush()
        os.fsync(stream.fileno())
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _advice(error: OSError, place: Path) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return f"give user {os.geteuid()} the right to write {place} (chown, chmod)"
        case errno.EROFS:
            return f"mount {place} writable"
        case errno.ENOSPC | errno.EDQUOT:
            return f"free some space on {place}"
        case errno.ENOLCK | errno.EOPNOTSUPP:
            return "mount it with locks"
        case _:
            return "make it by hand to see why"


def _unwritable(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if not os.access(each, os.R_OK | os.W_OK))
