"""Client.localize and `clipworks localize` against a real server: results, masks, maps, drawings, exit codes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipworks import AsyncClient, errors
from clipworks.cli import app
from clipworks.cli.overlay import draw_overlay, open_picture
from clipworks.results import Box, Heatmap, Located, LocatedLabel, Mask
from evaluation.scenes.masks import decode_segmentation

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
GOLDENS = TINY_STORE / "tiny" / "1" / "goldens"
PHOTO = GOLDENS / "rgb_jpeg_331x227.bin"
ROTATED = GOLDENS / "exif_rotated_jpeg.bin"
BROKEN = GOLDENS / "truncated_jpeg.bin"
LABELS = ["cat", "dog", "car"]
Call = Callable[..., Any]


def raw(url: str, **body: Any) -> dict[str, Any]:
    """The server's own words about PHOTO."""
    inputs = [{"image": base64.b64encode(PHOTO.read_bytes()).decode()}]
    answer = httpx2.post(f"{url}/localize", json={"inputs": inputs, "labels": LABELS, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_results_are_what_the_server_says(server_url: str, call: Call) -> None:
    options = {"include": ["mask", "heatmap"], "threshold": 0.0, "short_px": 64}
    expected = raw(server_url, **options)
    found = call(server_url, "localize", [PHOTO, ROTATED, PHOTO], LABELS, client={"batch_size": 1}, **options)
    assert [type(each) for each in found] == [Located] * 3
    assert [len(each.boxes) for each in found[0].labels] == [len(each.boxes) for each in found[2].labels]
    assert (found[0].width, found[0].height) == (331, 227)
    upright = open_picture(ROTATED)
    assert (found[1].width, found[1].height) == upright.size
    for got, said in zip(found[0].labels, expected["data"][0]["labels"], strict=True):
        assert (got.label, got.present) == (said["label"], said["present"])
        # The pictures may have run in one batch: a vector then differs by rounding, less than 1e-6 (its manifest says).
        assert got.score == pytest.approx(said["score"], rel=1e-6)
        edges = [[b["x0"], b["y0"], b["x1"], b["y1"], b["score"]] for b in said["boxes"]]
        assert [[b.x0, b.y0, b.x1, b.y1, b.score] for b in got.boxes] == [pytest.approx(e, rel=1e-6) for e in edges]
        for box, described in zip(got.boxes, said["boxes"], strict=True):
            mask = box.mask.array()
            assert mask.shape == (227, 331)
            assert (mask == decode_segmentation(described["mask"], height=227, width=331)).all()
        assert got.heatmap.values.dtype == np.float32
        np.testing.assert_allclose(got.heatmap.values, said["heatmap"]["values"], rtol=1e-6)
        assert (got.heatmap.low, got.heatmap.high) == (
            np.min(said["heatmap"]["values"]),
            np.max(said["heatmap"]["values"]),
        )
    assert any(label.boxes for label in found[0].labels)


def test_errors_of_single_images_keep_the_others(server_url: str, call: Call) -> None:
    result = call(server_url, "localize", [BROKEN, PHOTO], LABELS, on_error="item")
    assert list(result.errors) == [0]
    assert result.images[0] is None
    assert result.images[1].width == 331
    assert (result.identity.model, result.threshold) == ("tiny@1", raw(server_url)["threshold"])
    with pytest.raises(errors.InvalidInput) as refused:
        call(server_url, "localize", [PHOTO, BROKEN], LABELS)
    assert refused.value.index == 1
    for wrong in ({"include": "boxes"}, {"heatmap_labels": "cat"}):
        with pytest.raises(TypeError, match="several"):
            call(server_url, "localize", [PHOTO], LABELS, **wrong)


def test_maps_as_png_and_of_some_labels(server_url: str, call: Call) -> None:
    (found,) = call(
        server_url, "localize", [PHOTO], LABELS, include=["heatmap"], heatmap_format="png", heatmap_labels=["dog"]
    )
    maps = {each.label: each.heatmap for each in found.labels if each.heatmap}
    assert list(maps) == ["dog"]
    assert maps["dog"].values is None
    assert Image.open(io.BytesIO(maps["dog"].png)).size == (331, 227)


def test_many_maps_are_asked_for_in_smaller_requests(server_url: str) -> None:
    """64 maps an answer: 30 images of 3 labels in one request are 90, which the server refuses."""

    async def run() -> list[Located]:
        async with AsyncClient(server_url) as client:
            return await client.localize([PHOTO] * 30, LABELS, include=["heatmap"])

    assert len(asyncio.run(run())) == 30


def test_without_numpy_maps_are_lists() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from clipworks import schemas\nfrom clipworks._located import located\n"
        "heat = {'rows': 1, 'columns': 2, 'values': [[0.5, -1.0]]}\n"
        "label = {'label': 'a', 'score': 1.0, 'present': True, 'boxes': [], 'heatmap': heat}\n"
        "answer = schemas.Localization(index=0, width=4, height=2, labels=[label])\n"
        "found = located(answer).labels[0].heatmap\n"
        "assert (found.values, found.low, found.high) == ([[0.5, -1.0]], -1.0, 0.5), found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("counts", ["!", "7330", "0`n1`n1`", "P"])
def test_masks_that_do_not_fit_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        Mask(height=6, width=5, counts=counts).array()
    assert Mask(height=6, width=5, counts="7330;").array()[1:4, 1:3].all()


# ---------------------------------------------------------------- drawings


def located(*labels: LocatedLabel, width: int = 400, height: int = 300) -> Located:
    return Located(width=width, height=height, labels=list(labels))


def label_at(name: str, *edges: tuple[float, float, float, float], heatmap: Heatmap | None = None) -> LocatedLabel:
    boxes = [Box(x0=a, y0=b, x1=c, y1=d, score=0.87) for a, b, c, d in edges]
    return LocatedLabel(label=name, score=0.87, present=bool(edges), boxes=boxes, heatmap=heatmap)


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of the pixels that differ."""
    rows, columns = np.nonzero((np.asarray(before) != np.asarray(after)).any(axis=-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_boxes_are_drawn_where_they_are_said_to_be() -> None:
    grey = Image.new("RGB", (800, 600), (128, 128, 128))
    drawn = draw_overlay(grey, located(label_at("cat", (100, 75, 300, 225))), threshold=0.5)
    assert drawn.size == (800, 600)
    left, upper, right, lower = changed(grey, drawn)
    assert (left, right, lower) == (200, 601, 451)
    assert 110 < upper < 150  # the tag stands above the box
    inside = np.asarray(drawn)[200:400, 250:550]
    assert (inside == 128).all()
    assert (np.asarray(grey) == 128).all()  # the caller's picture is not drawn on


@pytest.mark.parametrize("size", [(48, 48), (3, 700), (5000, 40), (400, 300)])
def test_any_shape_can_be_drawn_on(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (90, 120, 90))
    edges = [(0, 0, *size), (size[0] - 0.2, size[1] - 0.2, *size), (0, 0, 0.1, 0.1)]
    names = ["an unreasonably long label that nobody can read in a small picture " * 3, "日本語のラベル", "a"]
    labels = [label_at(name, edge) for name, edge in zip(names, edges, strict=True)]
    drawn = draw_overlay(picture, located(*labels, width=size[0], height=size[1]), threshold=0.5)
    assert max(drawn.size) >= 640
    assert drawn.size[0] / drawn.size[1] == pytest.approx(size[0] / size[1], rel=0.2)


def test_tags_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    grey = Image.new("RGB", (800, 600), (128, 128, 128))
    names = ("cat", "dog", "car", "bus")
    together = draw_overlay(grey, located(*(label_at(n, (100, 75, 300, 225)) for n in names)), threshold=0.5)
    colours = np.asarray(together).reshape(-1, 3)
    areas = []
    for index in range(4):  # four tags in four colours, each as large as if it were alone
        alone = draw_overlay(
            grey, located(*(label_at(n, (100, 75, 300, 225)) for n in names[: index + 1])), threshold=0.5
        )
        values, counts = np.unique(np.asarray(alone).reshape(-1, 3), axis=0, return_counts=True)
        areas.append({tuple(v) for v, c in zip(values.tolist(), counts.tolist(), strict=True) if c > 700})
    values, counts = np.unique(colours, axis=0, return_counts=True)
    large = {tuple(v) for v, c in zip(values.tolist(), counts.tolist(), strict=True) if c > 700}
    assert set.union(*areas) <= large | {(128, 128, 128)}


def test_heat_is_hot_where_the_map_is_high_and_grey_where_it_is_low() -> None:
    levels = np.zeros((30, 40), dtype=np.uint8)
    levels[:, 30:] = 255
    sink = io.BytesIO()
    Image.fromarray(levels).save(sink, "PNG")
    heatmap = Heatmap(values=None, png=sink.getvalue(), low=0.0, high=1.0)
    picture = Image.new("RGB", (640, 480), (20, 90, 200))
    heat = label_at("cat", heatmap=heatmap)
    drawn = draw_overlay(picture, located(heat), heat=heat, threshold=0.5)
    assert drawn.height > 480  # a line below says what is shown, and that nothing is present
    pixels = np.asarray(drawn).astype(int)
    grey = round(0.299 * 20 + 0.587 * 90 + 0.114 * 200)
    assert np.abs(pixels[200, 100] - grey).max() <= 1
    red, green, blue = pixels[200, 620]
    assert red > 180 > blue
    assert green > blue


# ---------------------------------------------------------------- the command


@pytest.fixture(autouse=True)
def _tiny_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(ROTATED.read_bytes())
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_the_same_with_and_without_a_server(server_url: str, photo: Path, tmp_path: Path) -> None:
    words = ["localize", photo, "--labels", "cat, dog,car", "--threshold", "0", "--short-px", "64"]
    here = run(*words, "--out", tmp_path / "here.png", "--json", "--masks")
    there = run(*words, "--out", tmp_path / "there.png", "--json", "--masks", "--url", server_url)
    assert (here[0], there[0]) == (0, 0)
    assert "drawn" in here[2]
    answer = json.loads(here[1])
    assert answer == json.loads(there[1])
    assert (answer["model"], answer["threshold"]) == ("tiny@1", 0)
    assert sorted(each["label"] for each in answer["labels"]) == ["car", "cat", "dog"]
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()
    upright = open_picture(photo)
    with Image.open(tmp_path / "here.png") as drawn:
        assert drawn.width / drawn.height == pytest.approx(upright.width / upright.height, rel=0.02)
    box = answer["labels"][0]["boxes"][0]
    assert box["mask"]["height"] == upright.height
    assert 0 <= box["x0"] < box["x1"] <= upright.width


def test_the_command_draws_heat_and_prints_lines(server_url: str, photo: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "localize", photo, "--labels", "cat,dog", "--heat", "best", "--out", tmp_path / "h.webp", "--url", server_url
    )
    assert (code, err.count("drawn")) == (0, 1)
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["label", "score", "present", "boxes (x0,y0-x1,y1)"]
    assert sorted(line[0] for line in lines[1:]) == ["cat", "dog"]
    with Image.open(tmp_path / "h.webp") as drawn:
        assert drawn.format == "WEBP"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["localize", "{photo}"], 2, "--labels cat,dog"),
        (["localize", "no-such.jpg", "--labels", "a"], 2, "no such file"),
        (["localize", "{photo}", "--labels", "a", "--out", "x.pdf"], 2, ".png"),
        (["localize", "{photo}", "--labels", "a", "--heat", "a"], 2, "--out"),
        (["localize", "{photo}", "--labels", "a", "--heat", "b", "--out", "x.png"], 2, "one of the labels"),
        (["localize", "{broken}", "--labels", "a"], 3, "truncated"),
        (["localize", "{photo}", "--label-set", "none"], 3, "none"),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], code: int, says: str, photo: Path, server_url: str
) -> None:
    filled = [word.format(photo=photo, broken=BROKEN) for word in arguments]
    got, out, err = run(*filled, "--url", server_url)
    assert (got, out) == (code, "")
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_every_tag_can_be_read() -> None:
    """The text's ink and the tag's colour differ enough: contrast of at least 3 to 1 for every colour (WCAG 2)."""
    from clipworks.cli.overlay import _COLOURS, _ink

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for colour in _COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        ink = luminance((0, 0, 0) if _ink(colour) == "black" else (255, 255, 255))
        light, dark = sorted((luminance((red, green, blue)), ink), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour
