"""Metadata of a photograph to filter by: folder, name, date, camera, place and size in pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from clipworks.cli.exif import Exif, read_exif

Kind = Literal["photo", "gps"]
# As `metadata_schema` has them; `size` is in bytes and written for every item.
FIELDS: Mapping[Kind, Mapping[str, str]] = MappingProxyType(
    {
        "photo": MappingProxyType(
            {
                "folder": "string[]",
                "name": "string",
                "taken": "date",
                "camera_maker": "string",
                "camera_model": "string",
                "width": "number",
                "height": "number",
                "size": "number",
            }
        ),
        "gps": MappingProxyType({"lat": "number", "lon": "number"}),
    }
)
_MAX_FOLDERS = 32
_MAX_PARTS = 10_000
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageHeader:
    """width, height: pixels as stored; 0 where unknown. exif: the block as the file has it."""

    width: int = 0
    height: int = 0
    exif: bytes = b""


def fields_of(kinds: Sequence[Kind]) -> dict[str, str]:
    return {name: kind for each in kinds for name, kind in FIELDS[each].items()}


def kinds_in(schema: Mapping[str, str]) -> list[Kind]:
    """What a collection was made for: kinds all of whose fields it declares."""
    return [kind for kind, fields in FIELDS.items() if fields.keys() <= schema.keys()]


def photo_facts(data: bytes, place: str, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Metadata of one picture; what is not known is left out. `place`: its path below the source. Raises nothing."""
    header = header_of(data)
    exif = read_exif(header.exif)
    found: dict[str, Any] = {}
    if "photo" in kinds:
        found |= _place_facts(place) | _picture_facts(header, exif)
    if "gps" in kinds:
        found |= {"lat": exif.latitude, "lon": exif.longitude}
    return {name: value for name, value in found.items() if value is not None}


def header_of(data: bytes) -> ImageHeader:
    """Size and EXIF block of a file, from its structure alone; empty where it is none. Raises nothing."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _of_jpeg(data)
        if data.startswith(_PNG):
            return _of_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _of_webp(data)
    except (struct.error, IndexError):
        return ImageHeader()  # it ends where it should go on
    return _of_others(data)


def _place_facts(place: str) -> dict[str, Any]:
    """`folder` has each folder on the way, so that a filter for one finds what is below it too."""
    if not place:
        return {}
    path = PurePosixPath(place)
    folders = [each.as_posix() for each in reversed(path.parents) if each.name][:_MAX_FOLDERS]
    return {"folder": folders, "name": path.name}


def _picture_facts(header: ImageHeader, exif: Exif) -> dict[str, Any]:
    width, height = header.width, header.height
    if exif.orientation >= 5:  # lies on its side
        width, height = height, width
    found: dict[str, Any] = {"taken": exif.taken, "camera_maker": exif.maker, "camera_model": exif.model}
    return found | ({"width": width, "height": height} if width and height else {})


def _of_jpeg(data: bytes) -> ImageHeader:
    exif, at = b"", 2
    for _ in range(_MAX_PARTS):
        while data[at] == 0xFF and data[at + 1] == 0xFF:
            at += 1
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xE1 and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 10 : at + 2 + length]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return ImageHeader(width, height, exif)
        elif marker in (0xD9, 0xDA):
            break
        at += 2 + length
    return ImageHeader(exif=exif)


def _of_png(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">LL", data, 16)
    exif = next((data[start:end] for name, start, end in _chunks(data, 8, ">L4s", 4) if name == b"eXIf"), b"")
    return ImageHeader(width, height, exif)


def _of_webp(data: bytes) -> ImageHeader:
    """Sizes: RFC 9649, sections 2.5 to 2.7."""
    width = height = 0
    exif = b""
    for name, start, end in _chunks(data, 12, "<4sL", 0):
        part = data[start : min(end, start + 10)]
        if name == b"EXIF" and not exif:
            exif = data[start:end]
        elif width:
            continue
        elif name == b"VP8X":
            width, height = 1 + int.from_bytes(part[4:7], "little"), 1 + int.from_bytes(part[7:10], "little")
        elif name == b"VP8L":
            bits = int.from_bytes(part[1:5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"VP8 ":
            width, height = (each & 0x3FFF for each in struct.unpack_from("<HH", part, 6))
    return ImageHeader(width, height, exif)


def _chunks(data: bytes, at: int, form: str, tail: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of each chunk. tail: bytes of a checksum; chunks of RIFF have none, and an even length."""
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(form, data, at)
        name, length = (second, first) if tail else (first, second)
        yield name, at + 8, at + 8 + length
        at += 8 + length + tail + (0 if tail else length % 2)


def _of_others(data: bytes) -> ImageHeader:
    """GIF, BMP, AVIF and HEIF by Pillow, where it is installed; it opens them without decoding."""
    try:
        from PIL import Image

        try:
            from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

            register_heif_opener()
        except ImportError:
            pass
        with Image.open(io.BytesIO(data), formats=("GIF", "BMP", "AVIF", "HEIF")) as image:
            exif = image.info.get("exif")
            return ImageHeader(*image.size, exif if isinstance(exif, bytes) else b"")
    except Exception:  # Pillow's plugins raise many things, and metadata are no reason to lose the picture
        return ImageHeader()
