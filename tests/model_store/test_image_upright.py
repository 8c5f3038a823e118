"""A picture is seen the way it was taken, whatever else stands in its metadata."""

import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from model_store.modality.image import OWN_FILES, decode, decode_preview
from model_store.modality.orientation import orientation_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of metadata that nobody needs

ORIENTATION = 0x0112
# How a camera stores the upright picture: Transpose values by orientation.
UNDO = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
Entry = tuple[int, int, int, bytes]
SIDEWAYS: Entry = (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))
SANE: Entry = (0x0131, 2, 4, b"abc\0")
ODD: dict[str, Entry] = {
    "XResolution as text": (0x011A, 2, 4, b"72\0\0"),
    "Software as a fraction": (0x0131, 5, 1, struct.pack("<L", 8)),
    "a date that lies outside": (0x0132, 2, 20, struct.pack("<L", 0xFFFFFFF0)),
    "a directory in a loop": (0x8769, 4, 1, struct.pack("<L", 8)),
    "a type that does not exist": (0x010E, 99, 7, b"\0\0\0\0"),
    "a count without end": (0x010F, 2, 0xFFFFFFFF, b"\x08\0\0\0"),
}


def exif(*entries: Entry, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(order + "HHL", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"Exif\0\0" + mark + struct.pack(order + "LH", 8, len(entries)) + body + struct.pack(order + "L", 0)


def picture() -> Image.Image:
    """Upright: red above, blue below, wider than high."""
    levels = np.zeros((40, 64, 3), np.uint8)
    levels[:20, :, 0], levels[20:, :, 2], levels[:, :8, 1] = 255, 255, 255
    return Image.fromarray(levels)


def stored(form: str, metadata: bytes, orientation: int = 6, **options: object) -> bytes:
    """The picture turned as its orientation says, with these metadata beside it, whatever an encoder thinks of them."""
    undo = UNDO[orientation]
    turned = picture() if undo is None else picture().transpose(Image.Transpose(undo))
    sink = BytesIO()
    if form == "JPEG":
        turned.save(sink, "JPEG", quality=95, subsampling=0)
        data = sink.getvalue()
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(metadata) + 2) + metadata + data[2:]
    if form == "AVIF":
        # Pillow writes the orientation as a box of the file; the odd tag takes the place of the one it leaves.
        turned.save(sink, "AVIF", exif=exif(SIDEWAYS, SANE), quality=95)
        written, plain = exif(SANE).removeprefix(b"Exif\0\0"), metadata.removeprefix(b"Exif\0\0")
        assert len(written) == len(plain)
        assert written in sink.getvalue()
        return sink.getvalue().replace(written, plain)
    turned.save(sink, form, exif=metadata, **options)
    return sink.getvalue()


def is_upright(image: Image.Image) -> bool:
    apart = np.abs(np.asarray(image, np.int16) - np.asarray(picture(), np.int16)) if image.size == (64, 40) else None
    return apart is not None and float(apart.mean()) < 6


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_odd_tag_does_not_lose_the_orientation(form: str, odd: str) -> None:
    data = stored(form, exif(SIDEWAYS, ODD[odd]))
    assert is_upright(decode(data))
    assert is_upright(decode(data, OWN_FILES))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_with_an_odd_tag_is_read_and_turned_by_its_own_boxes(odd: str) -> None:
    assert is_upright(decode(stored("AVIF", exif(ODD[odd]))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_all_whole_number_types(orientation: int, order: str) -> None:
    for kind, code in ((1, "B"), (3, "H"), (4, "L"), (9, "l")):
        entry = (ORIENTATION, kind, 1, struct.pack(order + code, orientation).ljust(4, b"\0"))
        assert is_upright(decode(stored("WEBP", exif(entry, order=order), orientation, lossless=True)))


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    assert is_upright(decode(stored("PNG", exif((ORIENTATION, 3, 1, struct.pack("<HH", value, 0))), 1)))


def test_xmp_counts_only_where_exif_is_silent() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    silent, upright = exif((0x0131, 2, 4, b"abc\0")), exif((ORIENTATION, 3, 1, struct.pack("<HH", 1, 0)))
    assert is_upright(decode(stored("WEBP", silent, xmp=xmp, lossless=True)))
    assert is_upright(decode(stored("WEBP", upright, 1, xmp=xmp, lossless=True)))


def test_a_png_that_keeps_exif_as_text() -> None:
    block = exif(SIDEWAYS, ODD["XResolution as text"])
    lines = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    assert orientation_of({"Raw profile type exif": lines}) == 6
    assert orientation_of({"Raw profile type exif": "\n\n\nzz"}) == 1


def test_a_preview_is_upright_too() -> None:
    preview = decode_preview(stored("JPEG", exif(SIDEWAYS, ODD["XResolution as text"])), 32)
    assert preview.size == (32, 20)
    assert preview.getpixel((20, 3))[0] > 200  # pyright: ignore


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0"])
)
def test_any_bytes_are_read_or_passed_over(body: bytes, start: bytes) -> None:
    assert orientation_of({"exif": start + body, "xmp": body}) in range(1, 9)


@given(
    st.lists(
        st.tuples(st.sampled_from([ORIENTATION, 0x0100, 0x0131]), st.just(3), st.just(1), st.integers(0, 9)), max_size=5
    ),
    st.sampled_from("<>"),
)
def test_sane_directories_are_read_as_pillow_reads_them(rows: list[tuple[int, int, int, int]], order: str) -> None:
    block = exif(
        *[(tag, kind, count, struct.pack(order + "HH", value, 0)) for tag, kind, count, value in rows], order=order
    )
    theirs = Image.Exif()
    theirs.load(block)
    found = theirs.get(ORIENTATION, 1)
    assert orientation_of({"exif": block}) == (found if found in range(1, 9) else 1)
