"""JPEG: marker segments and scans (ITU-T T.81, annex B), walked as Pillow and libjpeg do."""

from __future__ import annotations

import re
from collections.abc import Iterator

from model_store.modality.containers.parts import too_many

# The next marker that has a length, as Pillow sees it: FF and none of 00 (stuffing), FF (fill), C8 (JPG), D0 to D9
# (restarts, SOI, EOI) and F0 to FD (JPG0 to JPG13), of which it reads two bytes each.
_HEADER_MARKER = re.compile(rb"\xff[\x01-\xc7\xc9-\xcf\xda-\xef\xfe]")
# As libjpeg sees it once scans have begun: FF and none of 00, FF, D0 to D7.
_SCAN_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF0 to SOF15, less DHT, JPG and DAC
_SOI, _EOI, _SOS, _DQT, _DHP, _TEM = 0xD8, 0xD9, 0xDA, 0xDB, 0xDE, 0x01
_EXIF, _PHOTOSHOP, _RESOURCE = 0xE1, 0xED, b"8BIM"
# Pillow goes through these bytes of a header one by one, or nearly so: what lies between its segments, quantisation
# tables and the components of frames. An encoder leaves next to nothing between segments, and has 600 bytes of tables.
_SLOW_BYTES = 2**16
_EXIF_SEGMENTS = 64  # Pillow copies what it has of them for each further one


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """Of the last frame header before the first scan, the one that Pillow believes; in microseconds for any bytes."""
    found, slow_bytes = None, 0
    for count, (marker, start, before) in enumerate(_header(data)):
        slow_bytes += before
        if marker == _SOS:
            break
        if count >= max_parts or slow_bytes > _SLOW_BYTES:
            return None  # a frame header behind it may say more
        if marker in _FRAMES and start + 7 <= len(data):
            height, width = int.from_bytes(data[start + 3 : start + 5]), int.from_bytes(data[start + 5 : start + 7])
            found = (width, height)
    return found


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLarge. A progressive file makes the decoder pass over all of its blocks once for each scan."""
    _check_header(data, max_parts)
    scans = 0
    for count, marker in enumerate(_segments(data)):
        if count >= max_parts:
            raise too_many("JPEG", "segments", max_parts)
        scans += marker == _SOS
        if scans > max_scans:
            raise too_many("JPEG", "scans", max_scans)


def _check_header(data: bytes, max_parts: int) -> None:
    parts = slow_bytes = exif = 0
    for marker, start, before in _header(data):
        parts += 1
        slow_bytes += before
        end = start + _length(data, start)
        if marker in _FRAMES or marker in (_DQT, _DHP):
            slow_bytes += end - start
        elif marker == _EXIF:
            exif += data.startswith(b"Exif\0\0", start + 2)
        elif marker == _PHOTOSHOP:
            parts += data.count(_RESOURCE, start, end)
        if slow_bytes > _SLOW_BYTES:
            raise too_many("JPEG", "bytes of padding, frame headers and tables before its first scan", _SLOW_BYTES)
        if exif > _EXIF_SEGMENTS:
            raise too_many("JPEG", "EXIF segments", _EXIF_SEGMENTS)
        if parts > max_parts:
            raise too_many("JPEG", "segments", max_parts)


def _header(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, offset of its length field, bytes passed over before it) up to the first scan, as Pillow reads them.

    The last one is 0, and no marker, where the data end or very many bytes were passed over.
    """
    at = 2
    while (found := _HEADER_MARKER.search(data, at, at + _SLOW_BYTES)) is not None:
        marker, start = data[found.end() - 1], found.end()
        yield marker, start, found.start() - at
        if marker == _SOS:
            return
        at = start + _length(data, start)
    yield 0, len(data), max(0, min(len(data) - at, _SLOW_BYTES + 1))


def _segments(data: bytes) -> Iterator[int]:
    """Markers up to the end of the first image, as libjpeg reads them; entropy-coded data is passed over."""
    at = 2
    while (found := _SCAN_MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            return
        yield marker
        if marker not in (_SOI, _TEM):
            at += _length(data, at)


def _length(data: bytes, start: int) -> int:
    return max(2, int.from_bytes(data[start : start + 2]))
