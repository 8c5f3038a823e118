"""JPEG: marker segments and scans (ITU-T T.81, annex B), walked as libjpeg does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from model_store.modality.containers.parts import too_many

# The next marker: FF and a byte that is neither stuffing (00), fill (FF) nor a restart inside a scan (D0 to D7).
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0 to SOF15, less DHT, JPG and DAC
_HEADER_GAPS = 2**16  # bytes between the segments of a header, all together; an encoder leaves next to none
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """Of the last frame header before the first scan, the one that Pillow believes; in microseconds for any bytes."""
    found = None
    for count, (marker, start) in enumerate(_segments(data, gaps=_HEADER_GAPS)):
        if marker == _SOS or count >= max_parts:
            break
        if marker in _FRAMES and start + 7 <= len(data):
            height, width = int.from_bytes(data[start + 3 : start + 5]), int.from_bytes(data[start + 5 : start + 7])
            found = (width, height)
    return found


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLarge. A progressive file makes the decoder pass over all of its blocks once for each scan."""
    scans = 0
    for count, (marker, _) in enumerate(_segments(data)):
        if count >= max_parts:
            raise too_many("JPEG", "segments", max_parts)
        scans += marker == _SOS
        if scans > max_scans:
            raise too_many("JPEG", "scans", max_scans)


def _segments(data: bytes, *, gaps: int | None = None) -> Iterator[tuple[int, int]]:
    """(marker, offset of its length field) up to the end of the first image; entropy-coded data is passed over.

    gaps: stop when so many bytes between segments were passed over.
    """
    at = 2
    while (found := _MARKER.search(data, at, len(data) if gaps is None else at + gaps)) is not None:
        if gaps is not None:
            gaps -= found.start() - at
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            return
        if marker in (_SOI, _TEM):
            continue
        yield marker, at
        at += max(2, int.from_bytes(data[at : at + 2]))
