"""Transparent levels and colours of PNGs are matched as they are stored, at every depth of samples."""

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.modality.image import decode

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: NDArray[np.uint16], depth: int, kind: int, *extra: bytes, filters: int = 0) -> bytes:
    """samples: [height, width, channels], written as they are; filters 1 subtracts the pixel to the left."""
    height, width, channels = samples.shape
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = samples.astype(np.uint8).reshape(height, -1)
    else:
        bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    if filters:
        step = max(1, depth * channels // 8)
        rows = np.concatenate([rows[:, :step], rows[:, step:] - rows[:, :-step]], axis=1)
    lines = b"".join(bytes([filters]) + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def transparent(*levels: int) -> bytes:
    return chunk(b"tRNS", b"".join(level.to_bytes(2, "big") for level in levels))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_level_is_transparent_at_every_depth(depth: int) -> None:
    most = 2**depth - 1
    levels = np.unique(np.linspace(0, most, 16).astype(np.uint16))
    for hidden in levels.tolist():
        seen = np.asarray(decode(png(levels.reshape(1, -1, 1), depth, GREY, transparent(hidden))))[0]
        shown = np.where(levels == hidden, 255, (levels.astype(np.int64) * 255 + most // 2) // most)
        np.testing.assert_array_equal(seen, np.stack([shown] * 3, axis=-1))


@pytest.mark.parametrize("filters", [0, 1])
def test_a_colour_of_sixteen_bits_must_match_in_both_halves(filters: int) -> None:
    samples = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC], [0x3412, 0x7856, 0xBC9A]]], np.uint16)
    seen = np.asarray(decode(png(samples, 16, COLOUR, transparent(0x1234, 0x5678, 0x9ABC), filters=filters)))[0]
    np.testing.assert_array_equal(seen, [[255, 255, 255], [0x12, 0x56, 0x9A], [0x34, 0x78, 0xBC]])


def test_a_large_picture_is_matched_in_all_of_its_strips() -> None:
    samples = np.full((600, 2000, 3), 0x0101, np.uint16)
    samples[::7, ::3] = (1, 2, 3)
    seen = np.asarray(decode(png(samples, 16, COLOUR, transparent(1, 2, 3))))
    assert (seen[::7, ::3] == 255).all()
    assert (seen == 255).all(axis=-1).sum() == seen[::7, ::3].shape[0] * seen[::7, ::3].shape[1]


def test_eight_bits_take_the_lower_half_of_the_noted_colour() -> None:
    samples = np.array([[[7, 8, 9], [7, 8, 10]]], np.uint16)
    seen = np.asarray(decode(png(samples, 8, COLOUR, transparent(0xFF07, 8, 9))))[0]
    np.testing.assert_array_equal(seen, [[255, 255, 255], [7, 8, 10]])


@pytest.mark.parametrize(("kind", "channels"), [(GREY_ALPHA, 2), (COLOUR_ALPHA, 4)])
def test_alpha_of_sixteen_bits_lets_white_through(kind: int, channels: int) -> None:
    samples = np.full((1, 3, channels), 0x4040, np.uint16)
    samples[0, :, -1] = (0, 0x8080, 0xFFFF)
    seen = np.asarray(decode(png(samples, 16, kind)))[0]
    assert seen[0].tolist() == [255, 255, 255]
    assert seen[2].tolist() == [0x40, 0x40, 0x40]
    assert 155 <= seen[1, 0] <= 162


def test_palettes_of_every_depth() -> None:
    palette = chunk(b"PLTE", bytes([200, 0, 0, 0, 200, 0]))
    for depth in (1, 2, 4, 8):
        samples = np.array([[[0], [1]]], np.uint16)
        seen = np.asarray(decode(png(samples, depth, PALETTE, palette, chunk(b"tRNS", b"\xff\x00"))))[0]
        np.testing.assert_array_equal(seen, [[200, 0, 0], [255, 255, 255]])
