"""Download of one large file: goes on where an earlier try stopped, and keeps the file only if its hash is right."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import WeakFileLock, hf_raise_for_status

from model_store.errors import IntegrityError, RepositoryError
from model_store.files import sync
from model_store.hub.repository import RepositoryFile

_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # after tries in a row without a new byte; then it fails
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


def download(
    url: str, headers: dict[str, str], file: RepositoryFile, into: Path, lock: Path, arrived: Callable[[int], None]
) -> None:
    """Write a file whose sha256 is stated to `into`; `arrived` is told how many of its bytes are here so far.

    What a stopped or killed download leaves is `<into>.incomplete`, and the next one goes on from there. `lock`: held
    meanwhile, so that two processes do not write the same file.

    Raises:
        IntegrityError: the size or the digest is another one; nothing of it is kept.
        RepositoryError: the connection broke several times without a new byte.
        HfHubHTTPError: the hub refused.
        OSError: it cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    into.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if into.exists():  # another process was faster
            arrived(file.size_bytes)
            return
        partial = into.with_name(f"{into.name}.incomplete")
        with partial.open("ab") as stream:
            _fill(stream, url, headers, file, arrived)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            check(partial, file)
        except IntegrityError:
            partial.unlink()
            raise
        os.replace(partial, into)
        sync(into.parent)


def check(path: Path, file: RepositoryFile) -> None:
    """Compare a file on disk with what its repository states of it.

    Raises:
        IntegrityError
    """
    size = path.stat().st_size
    if size != file.size_bytes:
        raise IntegrityError(f"{file.path} has {size} bytes, expected {file.size_bytes}; it was deleted, try again")
    if file.sha256 is not None:
        with path.open("rb") as stream:
            kind, found, expected = "sha256", hashlib.file_digest(stream, "sha256").hexdigest(), file.sha256
    elif file.git_id is not None:
        found = hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False).hexdigest()
        kind, expected = "git id", file.git_id
    else:
        return
    if found != expected:
        raise IntegrityError(
            f"{file.path} has {kind} {found}, expected {expected}: other bytes than the repository states; "
            "it was deleted, try again"
        )


def _fill(
    stream: BinaryIO, url: str, headers: dict[str, str], file: RepositoryFile, arrived: Callable[[int], None]
) -> None:
    """Append until the file has its size; each broken connection is followed by a request for the rest."""
    failed = 0
    arrived(stream.tell())
    while (before := stream.tell()) < file.size_bytes:
        try:
            _append(stream, url, headers, file, arrived)
            reason = "the answer ended too early"
        except httpx2.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
        except HfHubHTTPError as error:
            if error.response.status_code not in _TRY_AGAIN:
                raise
            reason = f"status {error.response.status_code}"
        if stream.tell() > before:
            failed = 0
            continue
        if failed == len(_PAUSES_S):
            raise RepositoryError(
                f"{file.path}: {before} of {file.size_bytes} bytes are here, and the rest did not come ({reason}); "
                "the next try goes on from there"
            )
        time.sleep(_PAUSES_S[failed])
        failed += 1


def _append(
    stream: BinaryIO, url: str, headers: dict[str, str], file: RepositoryFile, arrived: Callable[[int], None]
) -> None:
    start = stream.tell()
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if start and response.status_code != HTTPStatus.PARTIAL_CONTENT:
            stream.truncate(0)  # the server sends the file from its beginning
            stream.seek(0)
        for chunk in response.iter_raw():
            stream.write(chunk)
            arrived(stream.tell())
            if stream.tell() > file.size_bytes:
                return  # `check` says so
