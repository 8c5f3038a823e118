"""Pictures in memory (PIL, numpy, open files) give the vector of the file that shows the same, or are refused."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageDraw

from clipworks import errors

Call = Callable[..., Any]
SIZE = (61, 40)


def shapes() -> Image.Image:
    picture = Image.new("RGB", SIZE, (240, 240, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, 30, 13], fill=(200, 20, 20))
    draw.ellipse([36, 16, 58, 38], fill=(20, 40, 200))
    return picture


def half_clear(mode: str) -> Image.Image:
    """The shapes with their left half transparent; alpha is 0 or 255, so that premultiplying loses nothing."""
    alpha = Image.new("L", SIZE, 255)
    ImageDraw.Draw(alpha).rectangle([0, 0, 30, 39], fill=0)
    picture = shapes().convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode))
    picture = picture.convert("PA") if mode == "PA" else picture
    picture.putalpha(alpha)
    return picture.convert(mode)


def seen(picture: Image.Image) -> Image.Image:
    """What a person sees: over white, 8 bits a channel."""
    over = Image.new("RGBA", SIZE, (255, 255, 255, 255))
    straight = picture.convert("LA") if picture.mode == "La" else picture
    return Image.alpha_composite(over, straight.convert("RGBA")).convert("RGB")


def file_of(picture: Image.Image, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG", **options)
    return sink.getvalue()


def grey16(order: str) -> Image.Image:
    levels = np.asarray(shapes().convert("L")).astype(np.uint16) * 257
    mode, kind = {"little": ("I;16", "<u2"), "big": ("I;16B", ">u2")}[order]
    return Image.frombytes(mode, SIZE, levels.astype(kind).tobytes())


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparent_modes_are_seen_over_white(server_url: str, call: Call, mode: str) -> None:
    picture = half_clear(mode)
    assert picture.mode == mode
    vectors = call(server_url, "embed", images=[picture, file_of(seen(picture)), file_of(shapes())])
    assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes(server_url: str, call: Call, mode: str) -> None:
    picture = shapes().convert(mode)
    vectors = call(server_url, "embed", images=[picture, file_of(picture.convert("RGB"))])
    assert_allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize("order", ["little", "big"])
def test_16_bits_of_either_byte_order(server_url: str, call: Call, order: str) -> None:
    vectors = call(server_url, "embed", images=[grey16(order), file_of(shapes().convert("L"))])
    assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_a_palette_with_a_transparent_colour(server_url: str, call: Call) -> None:
    palette = shapes().quantize(8)
    with Image.open(io.BytesIO(file_of(palette, transparency=palette.getpixel((50, 2))))) as picture:
        vectors = call(server_url, "embed", images=[picture, file_of(seen(picture)), file_of(shapes())])
    assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def odd_jpeg(picture: Image.Image) -> bytes:
    """A JPEG with orientation 6 and, before it, a resolution stored as text, which Pillow cannot write again."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=95)
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 2, 4, b"72\0\0")]
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries))
    exif += b"".join(struct.pack("<HHL", *head) + value for *head, value in entries) + struct.pack("<L", 0)
    data = sink.getvalue()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def test_orientation_survives_odd_metadata(server_url: str, call: Call) -> None:
    stored = shapes().transpose(Image.Transpose.ROTATE_90)
    with Image.open(io.BytesIO(odd_jpeg(stored))) as picture:
        upright = picture.transpose(Image.Transpose.ROTATE_270)
        vectors = call(server_url, "embed", images=[picture, file_of(upright)])
    assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_one_bad_picture_fails_alone(server_url: str, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file_of(shapes()))
    with Image.open(path) as closed:
        pass
    whole = file_of(shapes())
    cut = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    floats, integers = shapes().convert("F"), shapes().convert("I")
    images = [closed, cut, floats, integers, shapes(), np.zeros((4, 4)), np.zeros((3, 9, 9), np.uint8), 7]
    result = call(server_url, "embed", images=images, on_error="item")
    assert set(result.errors) == {0, 1, 2, 3, 5, 6, 7}
    assert {type(error) for error in result.errors.values()} == {errors.UnreadableInput}
    assert "mode F" in str(result.errors[2])
    assert "transpose(1, 2, 0)" in str(result.errors[6])
    assert_allclose(result.vectors[4], call(server_url, "embed", images=[path])[0], atol=1e-6)


def test_arrays_of_numpy(server_url: str, call: Call) -> None:
    rgb = np.asarray(shapes())
    grey = np.asarray(shapes().convert("L"))
    rgba = np.asarray(half_clear("RGBA"))
    pairs = [
        (rgb, shapes()),
        (rgb[:, ::-1][::2], Image.fromarray(np.ascontiguousarray(rgb[:, ::-1][::2]))),
        (grey, shapes().convert("L")),
        (grey[:, :, None], shapes().convert("L")),
        (grey.astype(np.uint16) * 257, shapes().convert("L")),
        (grey.astype(">u2") * 257, shapes().convert("L")),
        (rgba, seen(half_clear("RGBA"))),
    ]
    vectors = call(server_url, "embed", images=[array for array, _ in pairs])
    wanted = call(server_url, "embed", images=[file_of(picture) for _, picture in pairs])
    assert_allclose(vectors, wanted, atol=1e-6)
    several = np.stack([rgb, 255 - rgb])
    assert_allclose(call(server_url, "embed", images=several)[0], vectors[0], atol=1e-6)


def test_open_files(server_url: str, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file_of(shapes()))
    written = io.BytesIO()
    shapes().save(written, "PNG")  # its position is the end now
    with path.open("rb") as binary, path.open("r", encoding="latin-1") as text:
        result = call(server_url, "embed", images=[binary, written, text, path], on_error="item")
    assert_array_equal(result.vectors[0], result.vectors[3])
    assert_array_equal(result.vectors[1], result.vectors[3])
    assert "mode 'rb'" in str(result.errors[2])
    assert list(result.errors) == [2]


@pytest.mark.parametrize(
    "one",
    [
        io.BytesIO(b""),
        np.zeros((5, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        shapes(),
        memoryview(b"ab"),
        Path("a"),
    ],
    ids=["a file", "an array", "a grey array", "a PIL image", "a view", "a path"],
)
def test_one_picture_where_several_are_expected(server_url: str, call: Call, one: Any) -> None:
    with pytest.raises(TypeError, match=r"images=\[image\]"):
        call(server_url, "embed", images=one)
    with pytest.raises(TypeError, match=r"images=\[image\]"):
        call(server_url, "classify", one, ["cat", "dog"])


def test_arrays_of_paths_are_lists(server_url: str, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file_of(shapes()))
    assert call(server_url, "embed", images=np.array([str(path)] * 2)).shape == (2, 32)
