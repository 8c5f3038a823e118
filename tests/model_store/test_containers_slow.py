"""Files that cost a decoder far more than their size says are refused before it sees them; ordinary ones are not."""

import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from model_store.errors import ImageTooLarge
from model_store.modality.containers import check_structure
from model_store.modality.formats import ALL_FORMATS
from model_store.modality.image import DecodeLimits, declared_pixels, decode

LIMITS = DecodeLimits(formats=ALL_FORMATS)
MB = 1_000_000


def encoded(form: str, **options: object) -> bytes:
    levels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sink = BytesIO()
    Image.fromarray(levels).save(sink, form, **options)
    return sink.getvalue()


JPEG, PNG, GIF = encoded("JPEG"), encoded("PNG"), encoded("GIF", comment=b"c")

GIF_BLOCKS = 13 + (2 << (GIF[10] & 7)) * 3


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def run_length_bmp(width: int, height: int, runs: bytes) -> bytes:
    header = (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")
    header += b"\1\0\x08\0" + (1).to_bytes(4, "little") + len(runs).to_bytes(4, "little") + bytes(16)
    start = 14 + len(header) + 1024
    return (
        b"BM"
        + (start + len(runs)).to_bytes(4, "little")
        + bytes(4)
        + start.to_bytes(4, "little")
        + (header + bytes(range(256)) * 4 + runs)
    )


def in_header(more: bytes) -> bytes:
    return JPEG[:2] + more + JPEG[2:]


SLOW = {
    "fill": in_header(b"\xff" * 2 * MB),
    "stuffing": in_header(b"\xff\x00" * MB),
    "junk": in_header(segment(0xE5, b"a") + b"\x00" * 2 * MB),
    "starts": in_header(b"\xff\xd8" * MB),
    "restarts": in_header(b"\xff\xd0" * MB),
    "behind an end": in_header(b"\xff\xd9" + b"\xff" * 2 * MB),
    "fill inside of what has no length": in_header((b"\xff\xf0\xff\xfd" + b"\xff\x00" * 32_000) * 10),
    "fill in pieces": in_header((b"\xff" * 60_000 + segment(0xE5, b"a")) * 10),
    "tables": in_header(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 10),
    "components": in_header(segment(0xC0, b"\x08\0\x14\0\x1e\x03" + bytes(60_000)) * 10),
    "EXIF": in_header(segment(0xE1, b"Exif\0\0" + bytes(100)) * 1000),
    "Photoshop": in_header(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000) * 30),
    "starts behind a scan": JPEG[:-2] + b"\xff\xd8" * 200_000 + JPEG[-2:],
    "colour profiles": PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MB), 9)) * 100 + PNG[33:],
    "sub-blocks behind an empty one": GIF[:GIF_BLOCKS]
    + b"!\x01\0\x2c"
    + bytes(44)
    + b"\1a" * MB
    + b"\0"
    + (GIF[GIF_BLOCKS:]),
    "sub-blocks behind an empty loop": GIF[:GIF_BLOCKS]
    + b"!\xff\x0bNETSCAPE2.0\0\x2c"
    + bytes(44)
    + (b"\1a" * MB + b"\0" + GIF[GIF_BLOCKS:]),
    "ends of lines": run_length_bmp(64, 64, b"\0\0" * MB),
    "pixels of runs": run_length_bmp(10_000, 10_000, b"\0\1"),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_a_decoder_would_walk_step_by_step_is_refused(name: str) -> None:
    with pytest.raises(ImageTooLarge, match="which no ordinary encoder writes"):
        decode(SLOW[name], LIMITS)


@pytest.mark.parametrize("name", SLOW)
def test_its_size_is_still_a_matter_of_its_header(name: str) -> None:
    assert declared_pixels(SLOW[name], DecodeLimits(formats=ALL_FORMATS)) > 0


@pytest.mark.parametrize(
    "data",
    [
        in_header(b"\xff" * 60_000),
        in_header(segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 2),
        in_header(segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff\x00" * 30_000)),
        in_header(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 50)),
        encoded("JPEG", progressive=True, icc_profile=bytes(200_000), restart_marker_blocks=1),
        JPEG + b"\xff" * 200_000,
        encoded("PNG", icc_profile=bytes(200_000)),
        encoded("GIF", comment=b"a" * 5000, loop=0),
        run_length_bmp(4, 2, b"\4\1\0\0\4\2\0\1"),
    ],
)
def test_ordinary_oddities_are_decoded(data: bytes) -> None:
    check_structure(data, "JPEG" if data[:2] == JPEG[:2] else {137: "PNG", 71: "GIF", 66: "BMP"}[data[0]],
                    max_parts=100_000, max_scans=100)  # fmt: skip
    assert decode(data, LIMITS).size in ((30, 20), (4, 2))


def test_a_size_that_is_not_reached_is_not_guessed_from_what_came_before() -> None:
    small = bytearray(GIF[:GIF_BLOCKS] + bytes(2000) + GIF[GIF_BLOCKS:])
    small[6:8] = b"\2\0"
    assert decode(bytes(small), LIMITS).size == (30, 20)
    assert declared_pixels(bytes(small), LIMITS) == LIMITS.max_pixels
    frame = segment(0xC0, b"\x08\0\1\0\1\1\1\x11\0")
    assert declared_pixels(in_header(frame + segment(0xE5, b"a") * 2000), LIMITS) == LIMITS.max_pixels
