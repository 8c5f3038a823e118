"""WebP: RIFF chunks, of a still picture or an animation (developers.google.com/speed/webp/docs/riff_container)."""

from __future__ import annotations

from model_store.modality.containers.parts import too_many


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """Of the canvas; frames of an animation lie inside it."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLarge: more chunks (frames are chunks) than an encoder writes."""
    at, count = 12, 0
    while at + 8 <= len(data):
        count += 1
        if count > max_parts:
            raise too_many("WebP", "chunks", max_parts)
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
