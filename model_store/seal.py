"""The seal of a manifest: its sha256 in a file beside it, in the form that `sha256sum -c` reads.

The manifest has the digests of all other files, and the seal has the manifest's, so no bit of an artifact can change
unseen. Artifacts of earlier versions have no seal; they load, and say so.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from model_store.errors import IntegrityError, ManifestError
from model_store.manifest import Manifest

MANIFEST_FILE = "manifest.json"
SEAL_FILE = "manifest.sha256"
_SEAL = re.compile(rf"([0-9a-f]{{64}})  {re.escape(MANIFEST_FILE)}\n".encode())
_MAX_MANIFEST_BYTES = 2**24


def read_manifest(folder: Path) -> tuple[bytes, bool]:
    """(the manifest's bytes, whether a seal vouches for them).

    Raises:
        IntegrityError: the seal is of other bytes, or is none.
        ManifestError: the manifest cannot be read, or is no plain file.
    """
    data = _read(folder / MANIFEST_FILE)
    if not os.path.lexists(folder / SEAL_FILE):
        return data, False
    found = _SEAL.fullmatch(_read(folder / SEAL_FILE))
    if found is None or found[1].decode() != hashlib.sha256(data).hexdigest():
        raise IntegrityError(
            f"{folder / MANIFEST_FILE} does not match its seal ({SEAL_FILE}): one of the two is damaged"
        )
    return data, True


def write_manifest(folder: Path, manifest: Manifest) -> tuple[Path, Path]:
    """Write the seal, then the manifest, which means that the artifact is complete. The two paths, in this order."""
    data = (manifest.model_dump_json(indent=1) + "\n").encode()
    (folder / SEAL_FILE).write_bytes(f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_FILE}\n".encode())
    (folder / MANIFEST_FILE).write_bytes(data)
    return folder / SEAL_FILE, folder / MANIFEST_FILE


def _read(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MANIFEST_BYTES:
                raise ManifestError(f"{path} is no plain file of at most {_MAX_MANIFEST_BYTES} bytes")
            return stream.read()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
