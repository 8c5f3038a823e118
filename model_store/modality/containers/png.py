"""PNG and APNG: chunks (PNG specification, third edition, section 5)."""

from __future__ import annotations

from collections.abc import Iterator

from model_store.errors import InvalidImage
from model_store.modality.containers.parts import too_many

_DEPTH_AT = 24
_PROFILES = 16  # each is unpacked, to 1 MiB at most; an encoder writes one


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLarge, or InvalidImage: a second header, which would change the size after it was looked at."""
    headers = profiles = 0
    for count, kind in enumerate(_chunks(data)):
        if count >= max_parts:
            raise too_many("PNG", "chunks", max_parts)
        profiles += kind == b"iCCP"
        if profiles > _PROFILES:
            raise too_many("PNG", "colour profiles", _PROFILES)
        headers += kind == b"IHDR"
        if headers > 1:
            raise InvalidImage("image is corrupt (two IHDR chunks)")


def bit_depth(data: bytes) -> int:
    """Bits of a sample, 1 to 16."""
    return data[_DEPTH_AT]


def _chunks(data: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        yield kind
        if kind == b"IEND":
            return
        at += 12 + length
