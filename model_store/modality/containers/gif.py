"""GIF: the screen, and what lies before the first frame (GIF89a specification)."""

from __future__ import annotations

from collections.abc import Iterator

from model_store.modality.containers.parts import too_many

_EXTENSION, _FRAME = 0x21, 0x2C
_COMMENT, _APPLICATION, _LOOPS = 0xFE, 0xFF, b"\x0bNETSCAPE2.0"


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """Of the screen, or of the first frame where that reaches over it: Pillow enlarges the screen then."""
    if len(data) < 13:
        return None
    width, height = _pair(data, 6)
    for count, (kind, at) in enumerate(_blocks(data)):
        if kind == _FRAME and at + 8 <= len(data):
            left, top = _pair(data, at)
            wide, high = _pair(data, at + 4)
            return max(width, left + wide), max(height, top + high)
        if count >= max_parts:
            return None
    return width, height


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLarge: Pillow reads extensions block by block. Frames after the first are never read."""
    for count, _ in enumerate(_blocks(data)):
        if count >= max_parts:
            raise too_many("GIF", "blocks before its first frame", max_parts)


def _blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """(kind, offset behind it) of each block up to the first frame; sub-blocks of extensions count as blocks."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(data):
        kind, at = data[at], at + 1
        yield kind, at
        if kind == _FRAME:
            return
        if kind != _EXTENSION:
            continue  # the decoders pass over such bytes one by one
        unended = _blocks_read_unseen(data, at)
        at += 1
        while at < len(data) and (data[at] or unended):
            at += 1 + data[at]
            unended = max(0, unended - 1)
            yield _EXTENSION, at
        at += 1


def _blocks_read_unseen(data: bytes, label_at: int) -> int:
    """How many sub-blocks of an extension Pillow reads before it looks for the empty one that ends it."""
    label = data[label_at] if label_at < len(data) else _COMMENT
    if label == _COMMENT:
        return 0
    return 2 if label == _APPLICATION and data.startswith(_LOOPS, label_at + 1) else 1


def _pair(data: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")
