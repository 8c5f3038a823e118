"""Near duplicates against comparing everything with everything, and pictures that are copies or are not."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.building.raw import mosaic, states, table_of
from training.building.duplicates import DUPLICATE, NEAR_DUPLICATE, bands, drop_duplicates, drop_near_duplicates
from training.building.picture_code import Unusable, picture_code, usable

SEEDED = [np.random.default_rng(seed).integers(0, 256, 32, dtype=np.uint8) for seed in range(4)]


def flipped(code: np.ndarray, bits: set[int]) -> bytes:
    whole = np.unpackbits(code)
    whole[sorted(bits)] ^= 1
    return np.packbits(whole).tobytes()


@settings(max_examples=30)
@given(
    data=st.lists(
        st.tuples(st.integers(0, 3), st.sets(st.integers(0, 255), max_size=7), st.integers(8, 10)), max_size=14
    ),
    distance=st.integers(0, 9),
)
def test_what_stays_is_what_comparing_all_would_leave(data: list[tuple[int, set[int], int]], distance: int) -> None:
    codes = [flipped(SEEDED[seed], bits) for seed, bits, _ in data]
    facts = [{"code": code.hex(), "size": [side, side]} for code, (_, _, side) in zip(codes, data, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        table = table_of(Path(folder) / "t", facts)
        rows = table.db.execute("SELECT id - 1, pixels, rank FROM pairs").fetchall()
        drop_near_duplicates(table, distance=distance)
        left = [place for place, state in enumerate(states(table)) if not state]
        twins = dict(table.db.execute("SELECT id - 1, twin - 1 FROM pairs WHERE state = ?", (NEAR_DUPLICATE,)))
        table.close()
    apart = [[int(np.unpackbits(np.bitwise_xor(*map(as_bytes, (a, b)))).sum()) for b in codes] for a in codes]
    stays: list[int] = []
    for place, _, _ in sorted(rows, key=lambda row: (-row[1], row[2])):  # the largest first, then by chance
        if all(apart[place][other] > distance for other in stays):
            stays.append(place)
    assert left == sorted(stays)
    assert {*left, *twins} == {*range(len(codes))}
    assert all(twin in left for twin in twins.values())


def as_bytes(code: bytes) -> np.ndarray:
    return np.frombuffer(code, dtype=np.uint8)


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 9])
def test_found_at_the_distance_and_not_beyond(tmp_path: Path, distance: int) -> None:
    for bits, found in ((distance, True), (distance + 1, False)):
        table = table_of(
            tmp_path / "t", [{"code": flipped(SEEDED[0], {*range(0, 25 * n, 25)}).hex()} for n in (0, bits)]
        )
        drop_near_duplicates(table, distance=distance)
        assert (NEAR_DUPLICATE in states(table)) == found
        table.close()


@settings(max_examples=40)
@given(distance=st.integers(0, 15), data=st.data())
def test_codes_that_are_near_share_a_band(distance: int, data: st.DataObject) -> None:
    bits = data.draw(st.sets(st.integers(0, 255), max_size=distance))
    parts = bands(distance)
    assert sum(width for _, _, width in parts) == (256 if distance >= 3 else 64 * (distance + 1))
    spans = [
        {256 - 64 * ("dcba".index(word) + 1) + bit for bit in range(low, low + width)} for word, low, width in parts
    ]
    assert any(not span & bits for span in spans)


def test_of_equal_pictures_one_stays_and_is_the_twin_of_the_rest(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", [{"picture": f"{number % 3:032x}"} for number in range(10)])
    drop_duplicates(table)
    assert states(table).count("") == 3
    assert states(table).count(DUPLICATE) == 7
    kept = [number for number, state in enumerate(states(table)) if not state]
    for number, twin in table.db.execute("SELECT id - 1, twin - 1 FROM pairs WHERE state <> ''"):
        assert twin in kept
        assert twin % 3 == number % 3
    table.close()


def differing(a: bytes, b: bytes) -> int:
    codes = [picture_code(usable(data, least_px=8, most_aspect=5)[0]) for data in (a, b)]
    return int(np.unpackbits(as_bytes(codes[0]) ^ as_bytes(codes[1])).sum())


def mug(colour: str) -> bytes:
    image = Image.new("RGB", (90, 60), "#d8d8d8")
    ImageDraw.Draw(image).ellipse((30, 15, 65, 50), fill=colour)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def test_copies_are_near_and_another_colour_is_not() -> None:
    assert differing(mosaic(5, side=160), mosaic(5, side=160, quality=60)) <= 3
    assert differing(mosaic(5, side=160), mosaic(5, side=110)) <= 3
    assert differing(mosaic(5), mosaic(6)) > 20
    assert differing(mug("#c01010"), mug("#1010c0")) > 3
    image = np.asarray(Image.open(io.BytesIO(mug("#c01010"))), dtype=np.int16)
    noisy = image + np.random.default_rng(0).integers(-9, 10, image.shape)  # a flat ground stays flat
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, format="PNG")
    assert differing(mug("#c01010"), out.getvalue()) <= 3


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (mosaic(1)[:300], "broken picture"),
        (b"", "broken picture"),
        (mosaic(1, side=7), "too small"),
        (b"GIF89a" + bytes(20), "broken picture"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_the_reason(data: bytes, fault: str) -> None:
    with pytest.raises(Unusable) as refused:
        usable(data, least_px=8, most_aspect=5)
    assert refused.value.fault == fault


def test_a_long_picture_is_left_out() -> None:
    out = io.BytesIO()
    Image.new("RGB", (101, 20)).save(out, format="PNG")
    assert usable(out.getvalue(), least_px=20, most_aspect=5.05)[1] == "png"
    with pytest.raises(Unusable, match="101x20 px, the greatest aspect is 5"):
        usable(out.getvalue(), least_px=20, most_aspect=5)
