"""decode and prepare: stated results for every mode, refusal of the rest. Parity with open_clip: see training."""

import contextlib
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from model_store.errors import ImageTooLarge, InputError, InvalidImage, UnsupportedImage
from model_store.golden_images import golden_images
from model_store.manifest import ImageSpec
from model_store.modality.image import DecodeLimits, decode, prepare

SPEC = ImageSpec(
    height_px=48, width_px=48, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
)
ORIENTATION_TAG = 0x0112


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 31, height: int = 17) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes: a bomb costs nothing to send."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_upright_picture(orientation: int) -> None:
    upright = gradient()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose values that store it the way a camera would
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    np.testing.assert_array_equal(np.asarray(decode(encode(stored, exif=exif))), np.asarray(upright))


def test_alpha_is_composited_over_white() -> None:
    rgba = np.zeros((4, 5, 4), np.uint8)
    rgba[..., 0], rgba[:, 2:, 3] = 200, 255
    pixels = np.asarray(decode(encode(Image.fromarray(rgba))))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == (200, 0, 0)).all()


def test_sixteen_bit_grey_is_scaled_with_rounding() -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    pixels = np.asarray(decode(encode(Image.fromarray(levels))))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 1, 128, 255])


def test_palette_with_a_transparent_entry_is_composited() -> None:
    palette = gradient().quantize(8)
    pixels = np.asarray(decode(encode(palette, transparency=0)))
    hidden = np.asarray(palette) == 0
    assert hidden.any()
    assert (pixels[hidden] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_gives_rgb_of_the_same_size(mode: str) -> None:
    image = gradient().convert("L").convert("I").convert("I;16") if mode == "I;16" else gradient().convert(mode)
    decoded = decode(encode(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert (decoded.mode, decoded.size) == ("RGB", image.size)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", InvalidImage),
        (b"<html>", UnsupportedImage),
        (encode(gradient(), "TIFF"), UnsupportedImage),
        (encode(gradient(), "GIF"), UnsupportedImage),
        (encode(gradient(640, 480), "JPEG")[:2000], InvalidImage),
        (encode(gradient(200, 200))[:-30], InvalidImage),
        (png_header(12_000, 12_000), ImageTooLarge),
        (png_header(100_000, 100_000), ImageTooLarge),
        (png_header(65_536, 400), ImageTooLarge),
        (encode(gradient(2010, 10)), ImageTooLarge),
        (png_header(64, 64), InvalidImage),
    ],
)
def test_what_is_refused(data: bytes, error: type[InputError]) -> None:
    with pytest.raises(error):
        decode(data)


def test_byte_and_pixel_limits_are_inclusive() -> None:
    data = encode(gradient(30, 20))
    assert decode(data, DecodeLimits(max_bytes=len(data), max_pixels=600)).size == (30, 20)
    with pytest.raises(ImageTooLarge):
        decode(data, DecodeLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageTooLarge):
        decode(data, DecodeLimits(max_pixels=599))


SEEDS = [case.data for case in golden_images() if len(case.data) < 50_000]


@given(
    seed=st.sampled_from(SEEDS),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=8),
)
def test_damaged_bytes_give_a_picture_or_an_input_error(
    seed: bytes, cut: float, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(seed[: int(len(seed) * cut) + 1])
    for where, bit in flips:
        data[int(where * len(data))] ^= 1 << bit
    with contextlib.suppress(InputError):
        assert prepare(decode(bytes(data)), SPEC).shape == (48, 48, 3)


@given(st.binary(max_size=300))
def test_random_bytes_are_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        decode(data)


@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    target=st.sampled_from([(48, 48), (33, 64), (64, 33)]),
)
def test_prepare_always_gives_the_specs_shape(width: int, height: int, mode: str, target: tuple[int, int]) -> None:
    spec = SPEC.model_copy(update={"resize_mode": mode, "height_px": target[0], "width_px": target[1]})
    image = Image.new("RGB", (width, height), (10, 20, 30))
    try:
        assert prepare(image, spec).shape == (*target, 3)
    except InvalidImage:
        assert mode == "longest"  # a side that would round to nothing
        assert max(width, height) > 60 * min(width, height)


def test_prepare_refuses_what_was_not_decoded() -> None:
    with pytest.raises(InvalidImage, match="mode L"):
        prepare(Image.new("L", (9, 9)), SPEC)


@pytest.mark.parametrize(
    "change", [{"resize_mode": "stretch"}, {"interpolation": "lanczos"}, {"exif": "ignore"}, {"gamma": 2.2}]
)
def test_an_unknown_key_or_value_of_the_spec_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ImageSpec.model_validate(SPEC.model_dump() | change)
