"""Photographs' own metadata: read from any file without failing, filtered as docs/retrieval.md says."""

import io
import json
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipworks import Client
from clipworks.cli.exif import Exif, read_exif
from clipworks.cli.photo_facts import header_of, photo_facts

Cli = Callable[..., tuple[int, str, str]]
DOCS = Path(__file__).parents[2] / "docs" / "retrieval.md"
ROME = ((41, 53, 24.5), "N", (12, 29, 32.1), "E")


def exif_of(
    *, taken: Any = None, maker: Any = None, model: Any = None, orientation: int | None = None, place: Any = None
) -> Image.Exif:
    exif = Image.Exif()
    for tag, value in ((0x010F, maker), (0x0110, model), (0x0112, orientation)):
        if value is not None:
            exif[tag] = value
    if taken is not None:
        exif.get_ifd(0x8769)[0x9003] = taken
    if place is not None:
        latitude, north, longitude, east = place
        exif.get_ifd(0x8825).update({1: north, 2: latitude, 3: east, 4: longitude})
    return exif


def picture(exif: Image.Exif | None = None, format: str = "JPEG", size: tuple[int, int] = (48, 32)) -> bytes:
    sink = io.BytesIO()
    options = {} if exif is None else {"exif": exif}
    Image.new("RGB", size, "red").save(sink, format, **options)
    return sink.getvalue()


FULL: dict[str, Any] = {
    "taken": "2024:06:21 18:30:05",
    "maker": "Google",
    "model": "Pixel 8",
    "orientation": 6,
    "place": ROME,
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_what_a_camera_wrote_is_found(format: str) -> None:
    facts = photo_facts(picture(exif_of(**FULL), format), "2024/rome/a.jpg", ["photo", "gps"])
    assert facts == {
        "folder": ["2024", "2024/rome"],
        "name": "a.jpg",
        "taken": "2024-06-21T18:30:05",
        "camera_maker": "Google",
        "camera_model": "Pixel 8",
        "width": 32,  # it lies on its side
        "height": 48,
        "lat": pytest.approx(41.890139, abs=2e-6),
        "lon": pytest.approx(12.492250, abs=2e-6),
    }
    assert photo_facts(picture(exif_of(**FULL), format), "a", ["gps"]).keys() == {"lat", "lon"}
    assert "lat" not in photo_facts(picture(exif_of(**FULL), format), "a", ["photo"])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (48, 2000)])
def test_sizes_without_exif(format: str, size: tuple[int, int]) -> None:
    facts = photo_facts(picture(format=format, size=size), "x.jpg", ["photo"])
    assert facts == {"folder": [], "name": "x.jpg", "width": size[0], "height": size[1]}


def test_webp_without_loss_and_animated() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (301, 77)).save(sink, "WEBP", lossless=True)
    assert (header_of(sink.getvalue()).width, header_of(sink.getvalue()).height) == (301, 77)


@pytest.mark.parametrize(
    ("given_facts", "wanted"),
    [
        ({"taken": "0000:00:00 00:00:00"}, {}),
        ({"taken": "2024:02:30 10:00:00"}, {}),
        ({"taken": "    :  :     :  :  "}, {}),
        ({"taken": "2024-02-03T10:00:00Z"}, {"taken": "2024-02-03T10:00:00"}),
        ({"taken": "2024:02:03"}, {"taken": "2024-02-03"}),
        ({"maker": "  Canon \0junk"}, {"maker": "Canon"}),
        ({"maker": ""}, {}),
        ({"model": "A" * 5000}, {}),
        ({"orientation": 9}, {}),
        ({"place": ((0, 0, 0), "N", (0, 0, 0), "E")}, {}),
        ({"place": ((91, 0, 0), "N", (0, 1, 0), "E")}, {}),
        ({"place": ((1, 0, 0), "X", (0, 1, 0), "E")}, {}),
        ({"place": ((1, 30, 0), "S", (2, 0, 0), "W")}, {"latitude": -1.5, "longitude": -2.0}),
    ],
)
def test_odd_values_are_left_out(given_facts: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert read_exif(exif_of(**given_facts).tobytes()) == Exif(**wanted)


def test_directories_that_point_at_each_other_end() -> None:
    """The first directory names itself as the one with the date, and as the one with the place."""
    entries = [(0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0x010F, 2, 0xFFFFFFFF, 8)]
    block = b"II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(struct.pack("<HHLL", *each) for each in entries)
    assert read_exif(block) == Exif()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_picture_without_facts_at_worst(data: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBP", b"GIF89a", b"BM"):
        assert isinstance(photo_facts(start + data, "a/b", ["photo", "gps"]), dict)
    for order in (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        assert isinstance(read_exif(order + data), Exif)


@given(cut=st.integers(0, 700), flips=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=8))
def test_damaged_pictures_have_facts_of_their_types(cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(_WHOLE)
    for place, value in flips:
        data[place % len(data)] = value
    facts = photo_facts(bytes(data[:cut] if cut < 600 else data), "a", ["photo", "gps"])
    json.dumps(facts)
    for name, value in facts.items():
        assert isinstance(value, list if name == "folder" else (int, float) if name in _NUMBERS else str)


_NUMBERS = ("width", "height", "lat", "lon")
_WHOLE = picture(exif_of(**FULL))


# ---------------------------------------------------------------- the page's own lines


def recipes() -> list[list[str]]:
    """The commands of the section about photographs, as a shell splits them."""
    section = DOCS.read_text().split("<!-- test:photographs -->")[1].split("<!-- /test:photographs -->")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("clipworks")]


def test_the_recipes_of_the_page_find_what_they_say(
    cli: Cli, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "2024/rome/table.jpg": picture(exif_of(**FULL)),
        "2024/june.png": picture(exif_of(taken="2024:06:01 00:00:00", maker="Canon"), "PNG", (64, 32)),
        "2019/old.jpg": picture(exif_of(taken="2019:12:31 23:59:59", maker="Canon", model="EOS 5D")),
        "plain.webp": picture(format="WEBP", size=(20, 20)),
    }.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    index, *searches = recipes()
    assert cli(*index, "--url", server_url)[0] == 0
    rome, june, old, plain = "2024/rome/table.jpg", "2024/june.png", "2019/old.jpg", "plain.webp"
    wanted = [
        {rome},
        {rome, june},
        {rome},
        {old},
        {rome, june},
        {rome},
        {plain},
        {rome},
        {june, old, plain},
        {rome},
        {june, old},
        {old, plain},
    ]
    found: list[set[str]] = []
    for words in searches:
        code, out, err = cli(*words, "--url", server_url, "--json")
        assert code == 0, err
        found.append({hit["id"] for hit in json.loads(out)["hits"]})
    assert found == wanted


def test_a_collection_keeps_to_what_it_was_made_for(cli: Cli, server_url: str, tmp_path: Path) -> None:
    photos = tmp_path / "p"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(picture(exif_of(**FULL)))
    url = ("--url", server_url, "--json")
    assert cli("index", photos, "-c", "kept", "--metadata", "photo", "--field", "year=number", *url)[0] == 0
    for again in ((), ("--metadata", "photo"), ("--field", "year=number")):
        code, out, err = cli("index", photos, "-c", "kept", *again, *url)
        assert (code, json.loads(out)["unchanged"]) == (0, 1), err
    with Client(server_url) as client:
        target = client.collection("kept")
        metadata = target.get("a.jpg").metadata
        assert (metadata["taken"], "lat" in metadata) == ("2024-06-21T18:30:05", False)
        assert target.info().metadata_schema["folder"] == "string[]"
    assert cli("index", photos, "-c", "kept-not", *url)[0] == 0
    code, out, err = cli("index", photos, "-c", "kept-not", "--metadata", "photo", *url)
    assert (code, json.loads(out)["stored"], "give it each time" in " ".join(err.split())) == (0, 1, True)
    table = tmp_path / "t.csv"
    table.write_text("image,taken\np/a.jpg,yesterday\n")
    code, _, err = cli("index", table, "-c", "kept", *url)
    assert (code, "rename the column 'taken'" in " ".join(err.split())) == (2, True)
