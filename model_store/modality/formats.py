"""The image formats that can be decoded, by Pillow's name: file suffixes, and how to tell one from its first bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

# Lower case, with the dot. HEIF needs the extra `heic`; AVIF is in Pillow's own wheels.
SUFFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "PNG": (".png", ".apng"),
        "WEBP": (".webp",),
        "AVIF": (".avif", ".avifs"),
        "HEIF": (".heic", ".heif", ".hif"),
        "GIF": (".gif",),
        "BMP": (".bmp", ".dib"),
    }
)
ALL_FORMATS = tuple(SUFFIXES)
DEFAULT_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")
HEIC_EXTRA = "heic"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    # Never decoded here, named in the refusal.
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"8BPS", "PSD"),
    (b"%PDF-", "PDF"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_SHARED_BRANDS = frozenset({b"mif1", b"mif2", b"msf1", b"miaf"})  # of both: the compatible brands decide
_MAX_FTYP_BYTES = 512


def sniff(data: bytes) -> str | None:
    """The format that the first bytes say, whether it can be decoded or not; None where they say nothing known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _of_brands(data)
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def suffixes_of(formats: Iterable[str]) -> frozenset[str]:
    """File suffixes of these formats, lower case, with the dot."""
    return frozenset(suffix for name in formats for suffix in SUFFIXES[name])


def missing_decoder(name: str) -> str | None:
    """What must be done before a format of ALL_FORMATS can be decoded by this installation; None: nothing."""
    if name == "HEIF" and find_spec("pillow_heif") is None:
        return f"install the extra {HEIC_EXTRA}: pip install 'clipworks[{HEIC_EXTRA}]'"
    if name == "AVIF" and find_spec("PIL._avif") is None:
        return "install a Pillow that was built with AVIF"
    return None


def _of_brands(data: bytes) -> str | None:
    end = min(int.from_bytes(data[:4], "big"), _MAX_FTYP_BYTES, len(data))
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]
    if brands[0] in _SHARED_BRANDS:
        brands = [each for each in brands if each in _AVIF_BRANDS | _HEIF_BRANDS]
    if not brands:
        return None
    return "AVIF" if brands[0] in _AVIF_BRANDS else "HEIF" if brands[0] in _HEIF_BRANDS else None
