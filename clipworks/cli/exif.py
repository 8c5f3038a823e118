"""Date, camera, place and orientation of a photograph's EXIF, and nothing else of it; odd metadata are left out.

Full readers give up at one odd tag, or read values as large as a tag says. Here each value is looked at by itself, and
is at most a few hundred bytes. Tags: EXIF 2.32, tables 4 to 15.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}
_MAX_ENTRIES = 1000
_MAX_VALUE_BYTES = 512
_MAX_TEXT = 120
_MAKER, _MODEL, _ORIENTATION, _CHANGED = 0x010F, 0x0110, 0x0112, 0x0132
_EXIF, _GPS = 0x8769, 0x8825
_TAKEN, _DIGITISED = 0x9003, 0x9004
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE, _STATUS = 1, 2, 3, 4, 9
_DATE = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)(?:[ T](\d\d):(\d\d):(\d\d))?")


@dataclass(frozen=True)
class Exif:
    """taken: ISO 8601 without a zone, the camera's own clock. latitude, longitude: degrees, north and east positive."""

    taken: str | None = None
    maker: str | None = None
    model: str | None = None
    orientation: int = 1
    latitude: float | None = None
    longitude: float | None = None


class _Value(NamedTuple):
    kind: int
    data: bytes


def read_exif(block: bytes) -> Exif:
    """What a block says, from its TIFF header on; whatever is missing, odd or out of range is left out."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return Exif()
    main = _directory(block, order, _number(block[4:8], order))
    inner = _directory(block, order, _pointer(main.get(_EXIF), order))
    place = _place(_directory(block, order, _pointer(main.get(_GPS), order)), order)
    dates = (inner.get(_TAKEN), inner.get(_DIGITISED), main.get(_CHANGED))
    orientation = _pointer(main.get(_ORIENTATION), order)
    return Exif(
        taken=next((found for found in map(_date, dates) if found), None),
        maker=_text(main.get(_MAKER)),
        model=_text(main.get(_MODEL)),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        latitude=place[0] if place else None,
        longitude=place[1] if place else None,
    )


def _directory(block: bytes, order: str, start: int) -> dict[int, _Value]:
    """Entries of the directory at `start`; 0 is none."""
    if not 8 <= start <= len(block) - 2:
        return {}
    count = min(_number(block[start : start + 2], order), _MAX_ENTRIES)
    found: dict[int, _Value] = {}
    for at in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHL", block, at)
        size = _SIZES.get(kind, 0) * values
        if not 0 < size <= _MAX_VALUE_BYTES:
            continue
        where = at + 8 if size <= 4 else _number(block[at + 8 : at + 12], order)
        data = block[where : where + size]
        if len(data) == size:
            found.setdefault(tag, _Value(kind, data))
    return found


def _number(data: bytes, order: str) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")


def _pointer(value: _Value | None, order: str) -> int:
    """A whole number of two or four bytes; 0 for anything else."""
    return _number(value.data, order) if value and value.kind in (3, 4) and len(value.data) <= 4 else 0


def _text(value: _Value | None) -> str | None:
    """Of type ASCII, whose bytes are UTF-8 in phones, and Latin-1 where they are not."""
    if value is None or value.kind not in (2, 7):
        return None
    data = value.data.partition(b"\0")[0]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:_MAX_TEXT] or None


def _date(value: _Value | None) -> str | None:
    found = _DATE.match(_text(value) or "")
    if found is None or not found[0].isascii():
        return None
    numbers = [int(each) for each in found.groups() if each is not None]
    try:
        year, month, day, hour, minute, second = (*numbers, 0, 0, 0)[:6]
        moment = datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
    return moment.isoformat() if len(numbers) > 3 else moment.date().isoformat()


def _place(gps: Mapping[int, _Value], order: str) -> tuple[float, float] | None:
    """None where there is no fix: nothing said, a void measurement, or the zeros that some cameras write then."""
    if (_text(gps.get(_STATUS)) or "A").upper() == "V":
        return None
    latitude = _degrees(gps.get(_LATITUDE), _text(gps.get(_LATITUDE_REF)), "NS", 90, order)
    longitude = _degrees(gps.get(_LONGITUDE), _text(gps.get(_LONGITUDE_REF)), "EW", 180, order)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None
    return latitude, longitude


def _degrees(value: _Value | None, side: str | None, sides: str, most: float, order: str) -> float | None:
    """Three fractions: degrees, minutes, seconds. `sides`: positive, then negative."""
    side = (side or "").upper()
    if value is None or value.kind != 5 or len(value.data) != 24 or side not in tuple(sides):
        return None
    parts = struct.unpack(order + "6L", value.data)
    total = 0.0
    for place, (above, below) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if below == 0 and above != 0:
            return None
        total += (above / below if below else 0.0) / 60**place
    if not math.isfinite(total) or total > most:
        return None
    return round(-total if side == sides[1] else total, 6)
