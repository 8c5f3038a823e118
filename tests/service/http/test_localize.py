"""/localize on a model whose truth is known (colour_model.py): scores, boxes, masks and maps against plain numpy."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from clipworks import schemas
from evaluation.scenes.masks import decode_segmentation

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
LABELS = ["red", "green", "blue"]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
RED, GREEN = (32, 16, 96, 64), (160, 96, 192, 144)  # edges of two rectangles in a picture of 256 x 192


@pytest.fixture(scope="module")
def store(colours: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("localize") / "store"))
    fixed = colours.DENSE.model_copy(update={"sizes": "fixed", "height_px": 96, "width_px": 64})
    denied = colours.PRESENCE.model_copy(update={"negative_templates": ("no {}",)})
    pooled = colours.PRESENCE.model_copy(update={"aggregation": "pooled", "calibration_offset": -1.0})
    colours.publish(folder, "colours")
    colours.publish(folder, "fixed", dense=fixed)
    colours.publish(folder, "denied", presence=denied)
    colours.publish(folder, "pooled", presence=pooled, activation="sigmoid")
    colours.publish(folder, "plain", presence=None)
    colours.publish(folder, "flat", dense=None)
    return folder


@pytest.fixture(scope="module")
def client(store: Path, make_client: Callable[..., TestClient]) -> TestClient:
    models = ("fixed", "denied", "pooled", "plain", "flat")
    return make_client(
        store=store, model="colours", extra_models=models, max_heatmaps=8, max_masks=9, max_label_texts=50
    )


def drawn(*rectangles: tuple[str, tuple[int, int, int, int]], width: int = 256, height: int = 192) -> Image.Image:
    picture = Image.new("RGB", (width, height), "white")
    for colour, (left, upper, right, lower) in rectangles:
        ImageDraw.Draw(picture).rectangle((left, upper, right - 1, lower - 1), fill=COLOURS[colour])
    return picture


TWO = (("red", RED), ("green", GREEN))


def png(picture: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def image_input(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def ask(client: TestClient, data: bytes, **body: Any) -> dict[str, Any]:
    """The only entry of the answer."""
    response = client.post("/localize", json={"inputs": [image_input(data)], "labels": LABELS, **body})
    assert response.status_code == 200, response.text
    schemas.LocalizeResponse.model_validate_json(response.content)
    (entry,) = response.json()["data"]
    return entry


def by_label(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["label"]: each for each in entry["labels"]}


def corners(box: dict[str, float]) -> list[float]:
    return [box["x0"], box["y0"], box["x1"], box["y1"]]


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


def refused(response: Any, *status: int) -> schemas.ErrorDetail:
    assert response.status_code in status, response.text
    return schemas.ErrorResponse.model_validate_json(response.content).error


def test_scores_are_the_calibrated_highest_projection_and_boxes_stand_where_things_are(client: TestClient) -> None:
    entry = ask(client, png(drawn(*TWO)), short_px=96)
    assert (entry["index"], entry["width"], entry["height"]) == (0, 256, 192)
    assert [each["label"] for each in entry["labels"]] == LABELS  # best first; red and green are equal: label order
    found = by_label(entry)
    # A cell of one colour is 2 on its axis. Labels are compared with the mean of the two others, so 2 and -1 at best.
    assert found["red"]["score"] == pytest.approx(sigmoid(10 * 2 - 10))
    assert found["green"]["score"] == pytest.approx(found["red"]["score"], rel=1e-4)  # resizing blurs edges a little
    assert found["blue"]["score"] == pytest.approx(sigmoid(10 * 0 - 10), rel=1e-5)
    assert [found[label]["present"] for label in LABELS] == [True, True, False]
    assert found["blue"]["boxes"] == []
    for label, edges in TWO:
        (box,) = found[label]["boxes"]
        # One cell is 16 px of the original. Half of the height is reached on the edge itself, or a quarter cell away.
        assert np.abs(np.array(corners(box)) - edges).max() <= 4, (label, box)
        assert box["score"] == pytest.approx(found[label]["score"], rel=1e-5)
        assert "mask" not in box


def test_a_rotated_photograph_is_answered_upright(client: TestClient) -> None:
    upright = drawn(*TWO)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: shown turned by 90 degrees clockwise
    rotated = png(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert Image.open(BytesIO(rotated)).size == (192, 256)
    first, second = ask(client, png(upright)), ask(client, rotated)
    assert first == second


def test_a_small_picture_has_its_own_pixels(client: TestClient) -> None:
    """48 x 36 px are looked at as 152 x 112; answers are in pixels of the 48 x 36."""
    small = drawn(("blue", (0, 0, 12, 36)), width=48, height=36)
    entry = ask(client, png(small))
    assert (entry["width"], entry["height"]) == (48, 36)
    (box,) = by_label(entry)["blue"]["boxes"]
    assert corners(box) == pytest.approx([0, 0, 12, 36], abs=1.5)


def test_masks_are_cocos_run_lengths_of_the_original(client: TestClient) -> None:
    found = by_label(ask(client, png(drawn(*TWO)), include=["mask"], short_px=192))
    for label, (left, upper, right, lower) in TWO:
        (box,) = found[label]["boxes"]
        assert box["mask"]["size"] == [192, 256]
        mask = decode_segmentation(box["mask"], height=192, width=256)
        truth = np.zeros_like(mask)
        truth[upper:lower, left:right] = True
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx(corners(box), abs=1)


def expected_maps(colours: ModuleType, picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Positions by numpy, projected on each colour minus the mean of the others: [3, rows, columns]."""
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))[None]
    cells = colours.colour_vectors(pixels)[0]
    axes = np.eye(3, colours.DIM)
    return np.stack([cells @ (axes[i] - (axes.sum(0) - axes[i]) / 2) for i in range(3)])


def test_heatmaps_are_the_projections_at_each_cell(client: TestClient, colours: ModuleType) -> None:
    picture = drawn(*TWO)
    found = by_label(ask(client, png(picture), include=["heatmap"]))
    expected = expected_maps(colours, picture, (152, 112))  # 149.3 px are 18.67 cells, rounded to 19
    for index, label in enumerate(LABELS):
        heatmap = found[label]["heatmap"]
        assert (heatmap["rows"], heatmap["columns"]) == (14, 19)
        np.testing.assert_allclose(heatmap["values"], expected[index], atol=1e-5)
        assert found[label]["boxes"] == []


def test_heatmaps_as_png_are_enlarged_to_the_picture(client: TestClient, colours: ModuleType) -> None:
    picture = drawn(*TWO)
    found = by_label(ask(client, png(picture), include=["heatmap"], heatmap_format="png"))
    expected = expected_maps(colours, picture, (152, 112))[0]
    heatmap = found["red"]["heatmap"]
    levels = np.asarray(Image.open(BytesIO(base64.b64decode(heatmap["png"]))))
    assert levels.shape == (192, 256) == (heatmap["height"], heatmap["width"])
    assert (heatmap["low"], heatmap["high"]) == pytest.approx((expected.min(), expected.max()), abs=1e-5)
    enlarged = np.asarray(Image.fromarray(expected.astype(np.float32)).resize((256, 192), Image.Resampling.BILINEAR))
    values = heatmap["low"] + (heatmap["high"] - heatmap["low"]) * levels / 255
    np.testing.assert_allclose(values, enlarged, atol=0.02)
    large = by_label(ask(client, png(drawn(*TWO, width=2048, height=512)), include=["heatmap"], heatmap_format="png"))
    assert Image.open(BytesIO(base64.b64decode(large["red"]["heatmap"]["png"]))).size == (1024, 256)


def test_threshold_decides_what_is_present(client: TestClient) -> None:
    data = png(drawn(("red", RED)))
    scores = {each["label"]: each["score"] for each in ask(client, data)["labels"]}
    for threshold in (0, scores["blue"], 0.9, 1):
        found = by_label(ask(client, data, threshold=threshold))
        for label in LABELS:
            assert found[label]["present"] == (scores[label] >= threshold)
            assert bool(found[label]["boxes"]) == found[label]["present"]
    response = client.post("/localize", json={"inputs": [image_input(data)], "labels": LABELS, "threshold": 0.25})
    assert response.json()["threshold"] == 0.25


def test_denials_take_the_place_of_the_other_labels(client: TestClient) -> None:
    """ "no red" is (.5, -.5, -.5, .5) before it is brought to length 1, so red minus it is (.5, .5, .5, -.5)."""
    data = png(drawn(("red", (0, 0, 256, 192))))
    for labels in (["red"], LABELS):
        found = by_label(ask(client, data, model="denied", labels=labels))
        assert found["red"]["score"] == pytest.approx(sigmoid(10 * 2 * 0.5 - 10), rel=1e-5)


def test_pooled_presence_is_one_number_for_the_whole_picture(client: TestClient, colours: ModuleType) -> None:
    half = png(drawn(("red", (0, 0, 128, 192))))
    found = by_label(ask(client, half, model="pooled"))
    assert found["red"]["score"] == pytest.approx(sigmoid(10 * 1 - 1), rel=1e-4)
    assert corners(found["red"]["boxes"][0]) == pytest.approx([0, 0, 128, 192], abs=8)


def test_sigmoid_classify_gives_the_scores_of_localize(client: TestClient) -> None:
    data = png(drawn(*TWO))
    for model, activation in (("colours", "sigmoid"), ("denied", "sigmoid"), ("pooled", None)):
        body = {"model": model, "inputs": [image_input(data)], "labels": LABELS}
        response = client.post("/classify", json={**body, **({"activation": activation} if activation else {})})
        assert response.status_code == 200, response.text
        got = {each["label"]: each["score"] for each in response.json()["data"][0]["predictions"]}
        located = by_label(ask(client, data, model=model))
        for label in LABELS:
            assert got[label] == pytest.approx(located[label]["score"], abs=1e-9), (model, label)
        other = client.post("/classify", json={**body, "activation": "none"}).json()["data"][0]["predictions"]
        assert all(each["score"] == each["similarity"] for each in other)


def test_a_model_without_calibration_of_its_own_localises_by_the_default_rule(client: TestClient) -> None:
    found = by_label(ask(client, png(drawn(*TWO)), model="plain"))
    assert found["red"]["score"] == pytest.approx(found["green"]["score"], rel=1e-4)
    assert found["red"]["score"] > found["blue"]["score"]
    plain = client.post("/classify", json={"model": "plain", "inputs": [image_input(png(drawn(*TWO)))],
                                           "labels": ["red"], "activation": "sigmoid"})  # fmt: skip
    similarity = plain.json()["data"][0]["predictions"][0]
    assert similarity["score"] == pytest.approx(sigmoid(10 * similarity["similarity"]), rel=1e-5)


def test_every_kind_of_body_gives_the_same_answer(client: TestClient) -> None:
    data = png(drawn(*TWO))
    query = {"labels": "red,green,blue", "include": "boxes,mask", "threshold": "0.4", "short_px": "96"}
    raw = client.post("/localize", params=query, content=data, headers={"Content-Type": "image/png"})
    form = client.post("/localize", data=query, files={"image": data})
    body = {"labels": LABELS, "include": ["boxes", "mask"], "threshold": 0.4, "short_px": 96}
    json = client.post("/localize", json={**body, "inputs": [image_input(data)]})
    assert json.status_code == 200
    assert json.json() == raw.json() == form.json()


def test_label_sets_work_as_in_classify(client: TestClient) -> None:
    body = {"labels": ["red", {"name": "leaf", "prompts": ["green"]}], "templates": ["{}"]}
    assert client.put("/label-sets/two", json=body).status_code == 202
    while not client.get("/label-sets/two").json()["ready"]:
        pass
    stored = client.post("/localize", json={"inputs": [image_input(png(drawn(*TWO)))], "label_set": "two"})
    inline = ask(client, png(drawn(*TWO)), labels=body["labels"])
    assert stored.json()["data"] == [inline]
    assert [each["label"] for each in inline["labels"] if each["present"]] == ["red", "leaf"]
    wrong = client.post("/localize", json={"inputs": [image_input(png(drawn()))], "label_set": "two", "model": "fixed"})
    assert refused(wrong, 409).code == "conflict"
    unknown = client.post("/localize", json={"inputs": [image_input(png(drawn()))], "label_set": "three"})
    assert refused(unknown, 404).param == "label_set"
    client.delete("/label-sets/two")


def test_a_model_of_one_size_squashes_and_takes_no_other(client: TestClient) -> None:
    found = by_label(ask(client, png(drawn(*TWO)), model="fixed", include=["boxes", "heatmap"]))
    assert (found["red"]["heatmap"]["rows"], found["red"]["heatmap"]["columns"]) == (12, 8)
    assert np.abs(np.array(corners(found["red"]["boxes"][0])) - RED).max() <= 16
    body = {"inputs": [image_input(png(drawn()))], "labels": LABELS, "model": "fixed", "short_px": 96}
    assert refused(client.post("/localize", json=body), 422).param == "short_px"


def test_a_model_without_positions_says_what_to_do(client: TestClient) -> None:
    body = {"inputs": [image_input(png(drawn()))], "labels": LABELS, "model": "flat"}
    error = refused(client.post("/localize", json=body), 422)
    assert (error.code, error.param) == ("unsupported_input", "model")
    assert "dense_encoder" in error.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"threshold": 1.5}, "threshold"), ({"threshold": -0.1}, "threshold"), ({"include": ["maps"]}, "include[0]"),
        ({"include": "boxes"}, "include"), ({"heatmap_format": "jpeg"}, "heatmap_format"),
        ({"short_px": 7}, "short_px"), ({"short_px": 5000}, "short_px"), ({"labels": []}, "labels"),
        ({"labels": None}, None), ({"label_set": "two"}, None), ({"boxes": True}, "boxes"),
        ({"inputs": []}, "inputs"), ({"inputs": ["red"]}, "inputs[0]"), ({"heatmap_labels": []}, "heatmap_labels"),
        ({"heatmap_labels": ["grey"], "include": ["heatmap"]}, "heatmap_labels"),
        ({"labels": ["red", "zzz"], "on_unknown": "error"}, "labels"),
        ({"on_unknown": "no"}, "on_unknown"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client: TestClient, change: dict[str, Any], param: str | None) -> None:
    body = {"inputs": [image_input(png(drawn()))], "labels": LABELS, **change}
    assert refused(client.post("/localize", json=body), 422).param == param


def test_the_label_that_is_wrong_is_named(client: TestClient) -> None:
    body = {"inputs": [image_input(png(drawn()))], "labels": LABELS, "include": ["heatmap"]}
    grey = refused(client.post("/localize", json={**body, "heatmap_labels": ["red", "grey", "pink"]}), 422)
    assert grey.message == "heatmap_labels: 'grey' (and 1 more) is none of the labels"
    unheard = refused(client.post("/localize", json={**body, "labels": ["red", "zzz"], "on_unknown": "error"}), 422)
    assert (unheard.code, unheard.param) == ("no_direction", "labels")
    assert "'zzz'" in unheard.message


def test_heatmaps_are_counted_before_any_work(client: TestClient) -> None:
    broken = [{"image": "QUJD"}] * 3
    error = refused(client.post("/localize", json={"inputs": broken, "labels": LABELS, "include": ["heatmap"]}), 413)
    assert error.code == "too_many_items"
    assert "CLIPWORKS_MAX_HEATMAPS" in error.message
    body = {"inputs": [image_input(png(drawn(*TWO)))] * 3, "labels": LABELS, "include": ["heatmap"]}
    response = client.post("/localize", json={**body, "heatmap_labels": ["red", "blue"]})
    assert response.status_code == 200, response.text
    for entry in response.json()["data"]:
        assert [each["label"] for each in entry["labels"] if "heatmap" in each] == ["red", "blue"]
    many = client.post("/localize", json={"inputs": broken, "labels": [f"label {n}" for n in range(51)]})
    assert refused(many, 413).code == "too_many_items"


def test_masks_are_counted_before_any_work(client: TestClient) -> None:
    body = {"labels": LABELS, "include": ["boxes", "mask"]}
    error = refused(client.post("/localize", json={"inputs": [{"image": "QUJD"}] * 4, **body}), 413)
    assert error.code == "too_many_items"
    assert "CLIPWORKS_MAX_MASKS" in error.message
    inputs = [image_input(png(drawn(*TWO)))] * 3
    assert client.post("/localize", json={"inputs": inputs, **body}).status_code == 200
    boxes = {"inputs": [*inputs, *inputs], "labels": LABELS, "include": ["boxes"]}
    assert client.post("/localize", json=boxes).status_code == 200


def test_denials_of_a_stored_set_are_under_the_limits_of_stored_sets(client: TestClient) -> None:
    """The limit of inline texts is 50."""
    names = [f"red {n}" for n in range(60)]
    body = {"inputs": [image_input(png(drawn(*TWO)))], "activation": "sigmoid", "model": "denied", "top_k": 3}
    inline = client.post("/classify", json={**body, "labels": names})
    assert (inline.status_code, inline.json()["error"]["code"]) == (413, "too_many_items")
    assert client.put("/label-sets/reds", json={"labels": names, "model": "denied"}).status_code == 202
    try:
        while not client.get("/label-sets/reds").json()["ready"]:
            time.sleep(0.02)
        stored = client.post("/classify", json={**body, "label_set": "reds"})
        assert stored.status_code == 200, stored.text
        few = client.post("/classify", json={**body, "labels": names[:3]})
        for one, other in zip(*(each.json()["data"][0]["predictions"] for each in (stored, few)), strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    finally:
        client.delete("/label-sets/reds")
