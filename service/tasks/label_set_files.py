"""The files of stored label sets: NAME.json says what a set is, NAME.npy holds its vectors; both carry digests.

A set that was taught has NAME.DIGEST.examples beside them, which its NAME.json names: replacing that one changes it. So
has a set whose templates are being weighed, for the pictures, until their weights are in NAME.json.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import orjson
from pydantic import ValidationError

from clipworks.schemas import LABEL_SET_PATTERN, LabelSetRequest
from model_store.files import make_folder, sync, whole_file
from service.retrieval.errors import RetrievalError, StorageFailed, StorageFull
from service.tasks.stored_set import StoredSet, TaughtWith, WeighedWith, digest_of
from service.teaching.examples import ExampleVectors, UnreadableExamples

log = logging.getLogger("clipworks.label_sets")
# A version that knows no examples must not serve a taught set without them, and so with weights of templates.
FORMAT, TAUGHT_FORMAT, WEIGHED_FORMAT = 2, 3, 4
_NAME = re.compile(LABEL_SET_PATTERN)
_CONTENT = {"request", "model", "fingerprint"}
_CONTENTS = {
    FORMAT: [_CONTENT],
    TAUGHT_FORMAT: [{*_CONTENT, "taught"}],
    WEIGHED_FORMAT: [{*_CONTENT, "weighed"}, {*_CONTENT, "weighed", "taught"}],
}
_NAME_DIGITS = 16
_DIGEST_BYTES = 32
_MAX_HEADER_BYTES = 4096
_MAX_JSON_BYTES = 2**28
_CHUNK_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)


class Damaged(Exception):
    """A label-set file is not what was written; the message says why, without the folder."""


class LabelSetFiles:
    """Reads and writes one folder; every call blocks on the disk. Files of format 1 had no digests.

    Vectors are sealed together with what they are of, so those of an older set of the name never pass for new ones.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Names of the stored sets, also of those with vectors alone; whatever else lies in the folder is none."""
        if not self._folder.is_dir():
            return []
        found = {path.stem for end in ("json", "npy") for path in self._folder.glob(f"*.{end}")}
        return sorted(name for name in found if _NAME.fullmatch(name))

    def read(self, name: str) -> StoredSet:
        """Raises Damaged, FileNotFoundError (there is nothing of this name), OSError."""
        path = self._folder / f"{name}.json"
        try:
            status = path.stat()
        except FileNotFoundError:
            if (self._folder / f"{name}.npy").exists():
                raise Damaged(f"{path.name} is missing, and {name}.npy beside it says that there was a set") from None
            raise
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{path.name} is no plain file")
        if status.st_size > _MAX_JSON_BYTES:
            raise Damaged(f"{path.name} has {status.st_size} bytes, none has more than {_MAX_JSON_BYTES}")
        try:
            found = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise Damaged(f"{path.name} is not JSON: {error}") from None
        content = _content_of(found, path.name)
        try:
            request = LabelSetRequest.model_validate(content["request"])
            taught = TaughtWith(**content["taught"]) if "taught" in content else None
            weighed = WeighedWith.of_content(content["weighed"]) if "weighed" in content else None
            return StoredSet(request, str(content["model"]), content["fingerprint"], taught, weighed)
        except ValidationError as error:
            raise Damaged(f"{path.name} holds no label set: {error.error_count()} fields are wrong") from None
        except (TypeError, ValueError):
            raise Damaged(f"{path.name} does not say what it was taught or weighed with") from None

    def vectors(self, name: str, stored: StoredSet, shape: tuple[int, int]) -> np.ndarray | None:
        """Float32 vectors of this shape; None: there are none of this set, or they are not what was written."""
        path = self._folder / f"{name}.npy"
        if not path.is_file():
            return None
        rows, dim = shape
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if not 0 < size - _DIGEST_BYTES - 4 * rows * dim <= _MAX_HEADER_BYTES:
                    raise Damaged(f"it has {size} bytes, vectors {list(shape)} were expected")
                _check_seal(stream, size - _DIGEST_BYTES, stored.digest())
                vectors: np.ndarray = np.load(stream, allow_pickle=False)
            if vectors.shape != shape:
                raise Damaged(f"its vectors are {list(vectors.shape)}, {list(shape)} were expected")
            return vectors
        except (Damaged, OSError) as error:
            log.warning("label set %s is encoded again: %s: %s", name, path.name, error)
            return None

    def examples(self, name: str, of: TaughtWith | WeighedWith) -> ExampleVectors:
        """The examples of a set, or the pictures that its templates are weighed by. Raises Damaged, OSError."""
        path = self._folder / _examples_name(name, of.sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{path.name} is missing, which holds its examples") from None
        if hashlib.sha256(data).hexdigest() != of.sha256:
            raise Damaged(f"{path.name} does not match its sha256")
        try:
            return ExampleVectors.of_bytes(data)
        except UnreadableExamples as error:
            raise Damaged(f"{path.name}: {error}") from None

    def write(
        self,
        name: str,
        stored: StoredSet,
        examples: ExampleVectors | None = None,
        pictures: ExampleVectors | None = None,
    ) -> None:
        """examples, pictures: those that `stored` names; None: it names none, or the ones that are there.

        Raises:
            StorageFull, StorageFailed: what was stored under this name is as it was.
        """
        content = stored.content()
        for vectors in (examples, pictures):
            if vectors is not None:
                self._write_examples(name, vectors)
        format = WEIGHED_FORMAT if stored.weighed else TAUGHT_FORMAT if stored.taught else FORMAT
        whole = {"format": format, "sha256": digest_of(content).hex(), "content": content}
        self._write(f"{name}.json", lambda stream: _write_json(stream, whole))
        self.discard_unused(name, stored)

    def discard_orphans(self) -> None:
        """As `discard_unused`, of names that have no set."""
        if not self._folder.is_dir():
            return
        known = set(self.names())
        for path in self._folder.glob("*.examples"):
            if path.name.rsplit(".", 2)[0] not in known:
                with suppress(OSError):
                    path.unlink()

    def discard_unused(self, name: str, stored: StoredSet) -> None:
        """Remove examples that the set does not name: of an older version, or of a change that a crash cut off.

        Only for who holds the folder: what another process is about to name looks the same.
        """
        named = [stored.taught, stored.weighed if stored.is_unweighed else None]
        used = {_examples_name(name, each.sha256) for each in named if each is not None}
        for path in self._examples_of(name):
            if path.name not in used:
                with suppress(OSError):
                    path.unlink()

    def write_vectors(self, name: str, stored: StoredSet, vectors: np.ndarray) -> None:
        """Raises StorageFull, StorageFailed."""

        def write(stream: BinaryIO) -> None:
            sealed = _Sealing(stream, stored.digest())
            np.save(sealed, vectors, allow_pickle=False)  # pyright: ignore[reportArgumentType]
            stream.write(sealed.digest.digest())

        self._write(f"{name}.npy", write)

    def delete(self, name: str) -> None:
        """Raises StorageFailed."""
        try:
            for suffix in ("npy", "json"):  # a set without vectors is encoded, vectors without their set are a loss
                (self._folder / f"{name}.{suffix}").unlink(missing_ok=True)
            for path in self._examples_of(name):
                path.unlink(missing_ok=True)
            if self._folder.is_dir():
                sync(self._folder)
        except OSError as error:
            raise _failure(error, name) from error

    def _write_examples(self, name: str, vectors: ExampleVectors) -> None:
        self._write(_examples_name(name, vectors.digest), lambda stream: _write_bytes(stream, vectors.to_bytes()))

    def _examples_of(self, name: str) -> list[Path]:
        """Files of examples of this very name; "a.b" is none of the set "a"."""
        pattern = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{{_NAME_DIGITS}}}\.examples")
        return [path for path in self._folder.glob(f"{name}.*.examples") if pattern.fullmatch(path.name)]

    def _write(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        try:
            make_folder(self._folder)
            with whole_file(self._folder / name) as stream:
                write(stream)
        except OSError as error:
            raise _failure(error, name) from error


class _Sealing:
    """A stream that digests what passes through it."""

    def __init__(self, stream: BinaryIO, start: bytes) -> None:
        self._stream = stream
        self.digest = hashlib.sha256(start)

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._stream.write(data)


def _content_of(found: Any, file_name: str) -> dict[str, Any]:
    """What a file says its set is. Raises Damaged."""
    whole = _object(found)
    if set(whole) == _CONTENT:  # format 1
        return whole
    expected = _CONTENTS.get(_number(whole.get("format")))
    if set(whole) != {"format", "sha256", "content"} or expected is None:
        raise Damaged(f"{file_name} is not of format 1 to {WEIGHED_FORMAT}, which this version reads")
    content = _object(whole["content"])
    if set(content) not in expected or digest_of(content).hex() != whole["sha256"]:
        raise Damaged(f"{file_name} does not match its sha256")
    return content


def _object(found: Any) -> dict[str, Any]:
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _number(found: Any) -> int:
    return found if isinstance(found, int) else 0


def _examples_name(name: str, sha256: str) -> str:
    return f"{name}.{sha256[:_NAME_DIGITS]}.examples"


def _check_seal(stream: BinaryIO, size: int, start: bytes) -> None:
    """Leaves the stream at its beginning. Raises Damaged."""
    digest = hashlib.sha256(start)
    left = size
    while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    if stream.read(_DIGEST_BYTES) != digest.digest():
        raise Damaged("it does not match its digest, or is of another set")
    stream.seek(0)


def _write_bytes(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _write_json(stream: BinaryIO, whole: dict[str, Any]) -> None:
    stream.write(orjson.dumps(whole))


def _failure(error: OSError, name: str) -> RetrievalError:
    kind = StorageFull if error.errno in _NO_ROOM else StorageFailed
    return kind(f"{name} cannot be stored: {error.strerror}; nothing was changed, send it again when there is room")
