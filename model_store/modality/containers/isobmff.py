"""AVIF and HEIF: boxes of the ISO base media file format (ISO/IEC 14496-12, 23008-12), as far as sizes go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from model_store.modality.containers.parts import too_many

# Boxes that hold boxes, with the bytes of their own before these: the way to `ispe` and `infe` of stills and to `tkhd`
# of sequences. That of `iinf` holds for its version 0, see `_children_at`.
_PARENTS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6, b"moov": 0, b"trak": 0}
_MAX_DEPTH = 4


class FileBox(NamedTuple):
    """start, end: offsets of its content."""

    kind: bytes
    start: int
    end: int


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """Of the largest item or track: a grid is larger than its tiles, a picture than its thumbnail."""
    largest = None
    for count, box in enumerate(boxes(data)):
        found = _extent(data, box)
        if found and (largest is None or found[0] * found[1] > largest[0] * largest[1]):
            largest = found
        if count >= max_parts:
            break
    return largest


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    for count, _ in enumerate(boxes(data)):
        if count >= max_parts:
            raise too_many("file", "boxes", max_parts)


def boxes(data: bytes) -> Iterator[FileBox]:
    """All boxes on the way to sizes, parents before their children; what reaches over its parent ends with it."""
    open_parents = [(0, len(data))]
    while open_parents:
        at, end = open_parents.pop()
        if at + 8 > end:
            continue
        length, kind, start = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at + 8
        if length == 1:
            length, start = int.from_bytes(data[at + 8 : at + 16]), at + 16
        stop = end if length == 0 else min(end, at + length)
        if stop < start:
            continue
        open_parents.append((stop, end))
        yield FileBox(kind, start, stop)
        if kind in _PARENTS and len(open_parents) <= _MAX_DEPTH:
            open_parents.append((_children_at(data, kind, start), stop))


def without_exif(data: bytes) -> bytes:
    """The file with its EXIF items under a name that no reader knows.

    The boxes `irot` and `imir` say how an AVIF is turned, whatever its EXIF says (MIAF, ISO/IEC 23000-22, 7.3.6).
    Pillow obeys them by writing the EXIF block anew, and cannot open the picture at all when that holds an odd tag.
    """
    changed = bytearray()
    for box in boxes(data):
        if box.kind == b"infe" and data[box.start + 8 : box.start + 12] == b"Exif":
            changed = changed or bytearray(data)
            changed[box.start + 8 : box.start + 12] = b"skip"
    return bytes(changed) or data


def _children_at(data: bytes, kind: bytes, start: int) -> int:
    wide_count = kind == b"iinf" and data[start : start + 1] != b"\0"
    return start + _PARENTS[kind] + 2 * wide_count


def _extent(data: bytes, box: FileBox) -> tuple[int, int] | None:
    if box.kind == b"ispe" and box.end - box.start >= 12:
        return int.from_bytes(data[box.start + 4 : box.start + 8]), int.from_bytes(data[box.start + 8 : box.start + 12])
    if box.kind == b"tkhd" and box.end - box.start >= 84:  # 16.16 fixed point, the last eight bytes
        return int.from_bytes(data[box.end - 8 : box.end - 6]), int.from_bytes(data[box.end - 4 : box.end - 2])
    return None
