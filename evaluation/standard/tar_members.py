"""Plain members of a tar file that is read from front to back, as it comes from a disk or over the network.

Python's own reader takes a broken header in the middle of a file, and a cut inside a header, for its end. A training
set of which a tenth is silently missing looks like one that is whole; so the headers are walked here.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = tarfile.BLOCKSIZE
_SKIP_BYTES = 2**20
_LONG_BYTES = 2**20  # a name is never longer
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


class BrokenTar(ValueError):
    """No tar file, or one that is cut off."""


class ByteStream(Protocol):
    """What can be read from front to back."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A plain file: the offsets of its first header, of its bytes and of what follows it; data: None if too large."""

    name: str
    at: int
    start: int
    end: int
    size: int
    data: bytes | None


def tar_members(file: ByteStream, *, at: int = 0, max_bytes: int) -> Iterator[TarMember]:
    """Every plain member behind the offset `at`, where `file` stands already and a header begins.

    Links, folders and devices are left out. Of a member over `max_bytes` nothing is kept.

    Raises:
        BrokenTar: a header that is none, or an end before the end mark.
    """
    first, long_name, long_size = at, None, None
    while (header := _read(file, BLOCK)) != bytes(BLOCK):
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BrokenTar(f"no header at byte {at}: {error}") from error
        at += BLOCK
        if info.type in (*_LONG_NAMES, *_EXTENDED, tarfile.XGLTYPE):
            said = _payload(file, info.size, _LONG_BYTES) or b""
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = said.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in _EXTENDED:
                records = _records(said)
                long_name = records.get("path", long_name)
                long_size = int(records["size"]) if records.get("size", "").isdecimal() else long_size
            at += _padded(info.size)
            continue
        size = info.size if long_size is None else long_size
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise BrokenTar(f"a sparse file at byte {at - BLOCK}, which cannot be streamed")
        has_bytes = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        start, at = at, at + (_padded(size) if has_bytes else 0)
        data = _payload(file, size, max_bytes if info.isreg() else 0) if has_bytes else b""
        if info.isreg():
            yield TarMember(name=long_name or info.name, at=first, start=start, end=at, size=size, data=data)
        first, long_name, long_size = at, None, None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _payload(file: ByteStream, size: int, max_bytes: int) -> bytes | None:
    """The bytes of a member and past its padding; None where there are more than `max_bytes`."""
    if size <= max_bytes:
        return _read(file, _padded(size))[:size]
    for done in range(0, _padded(size), _SKIP_BYTES):
        _read(file, min(_SKIP_BYTES, _padded(size) - done))
    return None


def _read(file: ByteStream, size: int) -> bytes:
    """Exactly so many bytes."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise BrokenTar("it ends before its end mark")
        data += more
    return data


def _records(data: bytes) -> dict[str, str]:
    """Key and value of a pax header: lines `LENGTH key=value`."""
    found: dict[str, str] = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 2 < int(length) <= len(data):
            return found
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found
