"""HEIC pictures: decoded with the extra `heic`, upright; named with the way out where it is missing."""

import struct
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from model_store.errors import UnsupportedImage
from model_store.modality.formats import missing_decoder, sniff
from model_store.modality.image import DecodeLimits, declared_pixels, decode
from service.settings import BadSettings, read_settings

EXIF = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2)
ORIENTATION_6 = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
ODD_RESOLUTION = struct.pack("<HHL", 0x011A, 2, 4) + b"72\0\0"
HEADER = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1"


def picture() -> Image.Image:
    levels = np.zeros((80, 128, 3), np.uint8)
    levels[:40, :, 0], levels[40:, :, 2] = 255, 255
    return Image.fromarray(levels)


def heic(image: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    sink = BytesIO()
    image.save(sink, "HEIF", quality=95, **options)
    return sink.getvalue()


def test_a_heic_is_decoded() -> None:
    data = heic(picture())
    assert sniff(data) == "HEIF"
    assert declared_pixels(data) == 128 * 80
    assert np.abs(np.asarray(decode(data), np.int16) - np.asarray(picture(), np.int16)).mean() < 8


@pytest.mark.parametrize("odd", [b"", ODD_RESOLUTION])
def test_a_heic_is_seen_upright(odd: bytes) -> None:
    exif = EXIF[:-2] + struct.pack("<H", 1 + bool(odd)) + ORIENTATION_6 + odd + bytes(4)
    seen = decode(heic(picture().transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert seen.size == (128, 80)
    assert np.asarray(seen)[10, 60, 0] > 200


def test_without_the_extra_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert missing_decoder("HEIF")
    with pytest.raises(
        UnsupportedImage, match=r"this is HEIC .* install the extra heic: pip install 'clipworks\[heic\]'"
    ):
        decode(HEADER)
    with pytest.raises(UnsupportedImage, match=r"CLIPWORKS_IMAGE_FORMATS"):
        decode(HEADER, DecodeLimits(formats=("JPEG",)))


def test_a_server_that_is_told_to_take_heic_and_cannot_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "HEIF" in read_settings({}).image_formats
    with pytest.raises(BadSettings, match=r"HEIF cannot be decoded by this installation: install the extra heic"):
        read_settings({"image_formats": "JPEG,HEIF"})
