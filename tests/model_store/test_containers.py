"""Containers are walked before anything is decoded: true sizes, slow files refused, any bytes survived."""

import contextlib
import time
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model_store.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from model_store.modality.containers import check_structure, isobmff, jpeg, size_of
from model_store.modality.formats import ALL_FORMATS, SUFFIXES, missing_decoder, sniff, suffixes_of
from model_store.modality.image import DecodeLimits, declared_pixels, decode

WRITABLE = [name for name in ALL_FORMATS if name != "HEIF" and missing_decoder(name) is None]
LIMITS = DecodeLimits(formats=ALL_FORMATS)


def encoded(form: str, width: int = 30, height: int = 20, **options: object) -> bytes:
    levels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sink = BytesIO()
    Image.fromarray(levels).save(sink, form, **options)
    return sink.getvalue()


def ftyp(*brands: bytes) -> bytes:
    content = brands[0] + b"\0\0\0\0" + b"".join(brands)
    return (8 + len(content)).to_bytes(4, "big") + b"ftyp" + content + b"\0\0\0\x08free"


@given(form=st.sampled_from(WRITABLE), width=st.integers(1, 120), height=st.integers(1, 120))
def test_the_size_of_the_header_is_what_is_decoded(form: str, width: int, height: int) -> None:
    data = encoded(form, width, height)
    assert sniff(data) == form
    assert size_of(data, form, max_parts=100) == (width, height)
    check_structure(data, form, max_parts=1000, max_scans=100)
    assert declared_pixels(data, DecodeLimits(formats=ALL_FORMATS, max_aspect=1e9)) == width * height


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}, {}])
def test_every_kind_of_webp(options: dict[str, object]) -> None:
    assert size_of(encoded("WEBP", 301, 77, **options), "WEBP", max_parts=10) == (301, 77)


def test_a_gif_whose_frame_reaches_over_its_screen() -> None:
    data = bytearray(encoded("GIF", 30, 20))
    data[6:10] = (5).to_bytes(2, "little") * 2
    assert size_of(bytes(data), "GIF", max_parts=100) == (30, 20) == decode(bytes(data), LIMITS).size


@given(
    form=st.sampled_from(ALL_FORMATS),
    start=st.sampled_from(WRITABLE),
    body=st.binary(max_size=400),
    cut=st.integers(0, 80),
)
def test_any_bytes_have_a_size_or_none(form: str, start: str, body: bytes, cut: int) -> None:
    data = encoded(start)[:cut] + body
    found = size_of(data, form, max_parts=50)
    assert found is None or min(found) >= 0
    with contextlib.suppress(ImageTooLarge, InvalidImage):
        check_structure(data, form, max_parts=50, max_scans=5)


@given(st.binary(max_size=300))
def test_boxes_lie_inside_the_file_and_come_to_an_end(body: bytes) -> None:
    data = encoded("AVIF")[:60] + body if "AVIF" in WRITABLE else body
    for box in isobmff.boxes(data):
        assert 0 <= box.start <= box.end <= len(data)
    assert len(isobmff.without_exif(data)) == len(data)


SLOW = {
    "JPEG of many scans": lambda: many_scans(101),
    "JPEG of many segments": lambda: encoded("JPEG")[:2] + b"\xff\xfe\0\2" * 200_000 + encoded("JPEG")[2:],
    "PNG of many chunks": lambda: encoded("PNG")[:33] + (b"\0\0\0\0tEXt\0\0\0\0") * 200_000 + encoded("PNG")[33:],
    "WebP of many chunks": lambda: encoded("WEBP") + b"free\0\0\0\0" * 200_000,
    "GIF of many blocks": lambda: encoded("GIF")[:13] + b"!\xfe" + b"\1x" * 200_000 + b"\0" + encoded("GIF")[13:],
    "AVIF of many boxes": lambda: ftyp(b"avif") + b"\0\0\0\x08free" * 200_000,
}


def many_scans(count: int) -> bytes:
    data = encoded("JPEG", 64, 64, progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * (count - data.count(b"\xff\xda") + 1) + b"\xff\xd9"


@pytest.mark.parametrize("name", SLOW)
def test_what_is_built_to_be_slow_is_refused_at_once(name: str) -> None:
    data = SLOW[name]()
    started = time.monotonic()
    with pytest.raises(ImageTooLarge, match=r"more than 100(000)? (scans|segments|chunks|blocks|boxes)"):
        decode(data, LIMITS)
    declared_pixels(data, LIMITS)
    assert time.monotonic() - started < 5


def test_as_many_scans_as_the_limit_are_decoded() -> None:
    assert decode(many_scans(100)).size == (64, 64)


def test_what_follows_the_first_jpeg_of_a_file_is_not_counted() -> None:
    assert decode(encoded("JPEG") + many_scans(99) * 3).size == (30, 20)


def test_a_second_png_header_is_refused() -> None:
    data = encoded("PNG")
    with pytest.raises(InvalidImage, match="two IHDR"):
        decode(data[:33] + data[8:33] + data[33:])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (encoded("TIFF"), "TIFF"),
        (b"\xff\x0a" + b"\0" * 20, "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_a_known_format_that_cannot_be_decoded_is_named(data: bytes, named: str) -> None:
    with pytest.raises(UnsupportedImage, match=named) as refused:
        decode(data)
    assert "convert it" in str(refused.value)


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        ((b"heic",), "HEIF"),
        ((b"mif1", b"miaf", b"heix"), "HEIF"),
        ((b"mif1", b"avif"), "AVIF"),
        ((b"avis", b"msf1"), "AVIF"),
        ((b"isom", b"mp42"), None),
        ((b"mif1",), None),
    ],
)
def test_brands_tell_avif_from_heif(brands: tuple[bytes, ...], name: str | None) -> None:
    assert sniff(ftyp(*brands)) == name


def test_a_format_that_is_not_accepted_names_the_setting() -> None:
    with pytest.raises(UnsupportedImage, match=r"this is PNG; accepted are JPEG \(CLIPWORKS_IMAGE_FORMATS\)"):
        decode(encoded("PNG"), DecodeLimits(formats=("JPEG",)))


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        (DecodeLimits(max_bytes=100), "CLIPWORKS_MAX_IMAGE_BYTES"),
        (DecodeLimits(max_pixels=599), "CLIPWORKS_MAX_PIXELS"),
        (DecodeLimits(max_side_px=29), "CLIPWORKS_MAX_SIDE_PX"),
        (DecodeLimits(max_aspect=1.4), "CLIPWORKS_MAX_ASPECT"),
    ],
)
def test_a_limit_names_the_setting_that_lifts_it(limits: DecodeLimits, setting: str) -> None:
    with pytest.raises(ImageTooLarge, match=setting):
        decode(encoded("PNG"), limits)


def test_suffixes_are_lower_case_and_of_one_format_each() -> None:
    every = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    assert len(every) == len(set(every))
    assert {".jfif", ".jpe", ".avif", ".heic", ".webp"} <= suffixes_of(ALL_FORMATS)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in every)


def test_a_header_is_found_in_no_time_whatever_the_bytes() -> None:
    """32 MiB of fill bytes took a third of a second, on an event loop; the bound is on bytes, so on any machine."""
    filled = b"\xff\xd8" + b"\xff" * 2**25
    started = time.process_time()
    for _ in range(20):
        assert jpeg.size(filled, 1000) is None
    assert time.process_time() - started < 1
    picture = BytesIO()
    Image.new("RGB", (40, 30)).save(picture, "JPEG", exif=b"Exif\0\0" + bytes(60_000))
    assert jpeg.size(picture.getvalue(), 1000) == (40, 30)
