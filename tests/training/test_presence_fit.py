"""The calibration of a presence: the fit against scipy's, figures by hand, collages against their pixels, the whole."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize

from evaluation.encoder import open_artifact
from model_store.label_vectors import LabelVectors
from model_store.manifest import Manifest, Presence
from model_store.modality.image import OWN_FILES, decode, prepare
from model_store.presence import aggregate_scores, presence_scores
from model_store.seal import MANIFEST_FILE, write_manifest
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import open_tower
from tests.stores import SHOP_STORE
from training.shipped.collages import collages, edges_of, read_products, singles
from training.shipped.presence_fit import (
    KINDS,
    AskedLabels,
    AskedPictures,
    EncodedCollage,
    Texts,
    ask,
    best_threshold,
    calibration_error,
    fit_calibration,
    log_loss,
    look,
    main,
    open_folder,
    probabilities,
    read_coco,
)

pytestmark = pytest.mark.torch
SHAPES = {"shirt": (20, 20, 204, 204), "watch": (80, 60, 140, 180), "belt": (4, 100, 220, 124)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark boxes on white, three kinds of article; ids 1 to 60."""
    folder = tmp_path_factory.mktemp("products")
    (folder / "images").mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for number in range(1, 61):
            kind = list(SHAPES)[number // 10 % 3]
            pixels = np.full((224, 224, 3), 255, dtype=np.uint8)
            x0, y0, x1, y1 = SHAPES[kind]
            pixels[y0:y1, x0:x1] = (number, 40, 90)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            writer.writerow([f"images/{number}.png", f"Some Brand {kind.title()}"])
        writer.writerow(["images/71.png", "A thing of no known kind"])
    return folder


def test_the_fit_is_the_likeliest_logistic_curve() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 5, 400)
    truth = rng.random(400) < 1 / (1 + np.exp(-(0.7 * x - 2)))
    weights = rng.uniform(0.1, 2, 400)
    sizes, lengths = rng.integers(1, 30, 400), rng.uniform(1, 8, 400)
    asked = AskedLabels(x, truth, weights, sizes, lengths)
    found = fit_calibration(asked, by_length=True)

    def loss(guess: np.ndarray) -> float:
        logits = guess[0] * x + guess[1] * np.log(sizes) + guess[2] * lengths + guess[3]
        return log_loss(1 / (1 + np.exp(-logits)), truth, weights)

    start = np.array([0.5, 0.0, 0.0, 0.0])
    options = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 5000, "maxfev": 5000}
    expected = minimize(loss, start, method="Nelder-Mead", options=options)
    np.testing.assert_allclose(list(found.values()), expected.x, atol=2e-3)
    assert abs(found["calibration_slope"] - 0.7) < 0.15
    assert fit_calibration(asked, by_length=False)["calibration_length"] == 0
    assert fit_calibration(replace(asked, lengths=np.full(400, 2.0)), by_length=True)["calibration_length"] == 0
    with pytest.raises(ValueError, match="no higher"):
        fit_calibration(replace(asked, aggregates=-x), by_length=False)
    with pytest.raises(ValueError, match="nothing to tell apart"):
        fit_calibration(replace(asked, truth=np.ones(400, dtype=bool)), by_length=False)


def test_probabilities_are_those_of_the_server() -> None:
    rng = np.random.default_rng(1)
    rule = Presence(
        positive_templates=("{}",),
        divide_by="one",
        scale=0.2,
        aggregation="pooled",
        calibration_slope=0.4,
        calibration_count=-0.9,
        calibration_length=-0.3,
        calibration_offset=0.2,
    )
    positive, pooled = rng.normal(size=(3, 8)), rng.normal(size=8)
    labels, maps = LabelVectors(positive=positive), np.zeros((3, 2, 2), dtype=np.float32)
    expected = presence_scores(maps, pooled, labels, rule)
    length = float(np.linalg.norm(pooled))
    asked = AskedLabels(
        aggregate_scores(maps, pooled, labels, rule),
        np.ones(3, dtype=bool),
        np.ones(3),
        np.full(3, 3),
        np.full(3, length),
    )
    np.testing.assert_allclose(probabilities(asked, rule), expected)
    assert not np.allclose(probabilities(replace(asked, sizes=np.full(3, 5)), rule), expected)


def test_figures_by_hand() -> None:
    p = np.array([0.9, 0.9, 0.1, 0.1])
    truth = np.array([True, False, False, False])
    equal, doubled = np.ones(4), np.array([2.0, 1.0, 1.0, 1.0])
    assert calibration_error(p, truth, equal) == pytest.approx((abs(0.9 - 0.5) + abs(0.1 - 0)) / 2)
    assert calibration_error(p, truth, doubled) == pytest.approx((abs(0.9 - 2 / 3) * 3 + 0.1 * 2) / 5)
    assert log_loss(p, truth, equal) == pytest.approx(-np.log([0.9, 0.1, 0.9, 0.9]).mean())
    # From .51 on: 1 right of 2 said. From .91 on: nothing is said. Up to .5 three are said, up to .1 four.
    assert best_threshold(np.array([0.9, 0.5, 0.1, 0.1]), truth, equal) == 0.51


def test_collages_hold_what_they_say(photographs: Path) -> None:
    products = read_products(photographs, "validation", by="number")
    assert [each.path.stem for each in products] == ["2", "12", "22", "32", "42", "52"]
    for each in singles(products):
        assert each.things[0].edges == SHAPES[each.things[0].kind]
    for layout, size in (("grid", {(448, 448)}), ("scattered", {(640, 480), (480, 640), (600, 600)})):
        for each in collages(products, layout, 12, seed=3):
            assert each.image.size in size
            covered = np.zeros((each.image.height, each.image.width), dtype=bool)
            for thing in each.things:
                x0, y0, x1, y1 = thing.edges
                assert not covered[y0:y1, x0:x1].any()
                covered[y0:y1, x0:x1] = True
                crop = each.image.crop((x0 - 2, y0 - 2, x1 + 2, y1 + 2))
                assert edges_of(crop) == (2, 2, x1 - x0 + 2, y1 - y0 + 2)
            assert (np.asarray(each.image)[~covered] >= 240).all()
    again = [[each.things for each in collages(products, "scattered", 3, seed=3)] for _ in range(2)]
    assert again[0] == again[1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a trained model without its presence."""
    trained = Store(SHOP_STORE, builtin=False).open("fashion-small")
    folder = Path(shutil.copytree(trained.folder, tmp_path_factory.mktemp("fit") / "1"))
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    write_manifest(folder, manifest.model_copy(update={"presence": None}))
    return folder


def test_every_list_is_asked_about_what_is_there_and_what_is_not(photographs: Path) -> None:
    rng = np.random.default_rng(5)
    shown = [EncodedCollage(each, rng.normal(size=(2, 3, 8)), rng.normal(size=8)) for each in collages(
        read_products(photographs, "validation", by="number"), "grid", 30, seed=0)]  # fmt: skip
    table = {name: rng.normal(size=8) for name in (*KINDS, "other")}
    texts = Texts(lambda some: np.array([table[text] for text in some], dtype=np.float32))
    rule = Presence(positive_templates=("{}",), neutral_texts=("other",), scale=2, aggregation="max")
    asked = ask(AskedPictures("grids", KINDS, shown), rule, texts.of(rule, KINDS), seed=0)
    for size in (1, 2, 5, 12):
        chosen = asked.sizes == size
        assert chosen.sum() == size * len(shown)
        assert 0.2 < asked.truth[chosen].reshape(-1, size).any(axis=1).mean() < 0.95
        np.testing.assert_allclose(asked.weights[chosen], 1 / size)
    everything = asked.truth[asked.sizes == len(KINDS)].reshape(-1, len(KINDS))
    for each, row in zip(shown, everything, strict=True):
        assert set(np.flatnonzero(row).tolist()) == each.kinds(KINDS)


@pytest.fixture(scope="module")
def titled(photographs: Path, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, each called what the model takes it for: there is something to calibrate."""
    folder = Path(shutil.copytree(photographs, tmp_path_factory.mktemp("titled") / "data"))
    encoder = open_artifact(open_folder(artifact))
    kinds = encoder.encode_texts(KINDS)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for path in sorted((folder / "images").iterdir()):
            (vector,) = encoder.encode_images([path.read_bytes()])
            writer.writerow([f"images/{path.name}", KINDS[int((kinds @ vector).argmax())]])
    return folder


def test_the_script_writes_a_presence_and_judges_it(
    titled: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = titled
    before = Manifest.model_validate_json((artifact / MANIFEST_FILE).read_bytes())
    main([str(artifact), "--products", str(photographs), "--by", "number", "--collages", "2", "--write"])
    after = Manifest.model_validate_json((artifact / MANIFEST_FILE).read_bytes())
    assert after.presence is not None
    assert after.presence.calibration_slope > 0
    assert after.model_copy(update={"presence": None}) == before
    assert "chosen: " in capsys.readouterr().out
    main([str(artifact), "--products", str(photographs), "--by", "number", "--collages", "2", "--test"])
    printed = capsys.readouterr().out
    assert printed.count("test, ") == 3
    assert "chosen" not in printed


def test_a_model_without_places_is_asked_about_whole_pictures(
    titled: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "placeless"
    shutil.copytree(artifact, folder)
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    encoders = tuple(graph for graph in manifest.graphs if graph.role != "dense_encoder")
    changed = {"graphs": encoders, "dense": None, "no_dense": "left out", "presence": None}
    write_manifest(folder, manifest.model_copy(update=changed))
    main([str(folder), "--products", str(titled), "--by", "number", "--collages", "0", "--write"])
    printed = capsys.readouterr().out
    after = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    assert after.presence is not None
    assert after.presence.aggregation == "pooled"
    assert "softmax_sum" not in printed
    assert "mAP" in printed
    assert "pointing" not in printed
    # What is asked about is the vector that /embed gives, at its own length.
    opened = open_folder(folder)
    tower = open_tower(opened, "image_encoder", "fp32", SessionSettings(intra_threads=1))
    pictures = list(singles(read_products(titled, "validation", by="number")))
    seen = look(tower, opened, pictures, short_px=None)
    data: list[bytes] = []
    for each in pictures[:2]:
        stream = io.BytesIO()
        each.image.save(stream, "PNG")
        data.append(stream.getvalue())
    found = np.stack([each.pooled for each in seen[:2]])
    assert opened.image_spec is not None
    pixels = np.stack([prepare(decode(each, OWN_FILES), opened.image_spec) for each in data])
    np.testing.assert_allclose(found, tower(pixels), rtol=1e-4, atol=1e-5)
    directions = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(directions, open_artifact(opened).encode_images(data), atol=1e-5)
    for odd in (["--short-px", "320"], ["--aggregation", "max"]):
        with pytest.raises(SystemExit):
            main([str(folder), "--products", str(titled), *odd])
        assert "has no dense role" in capsys.readouterr().err


@pytest.fixture(scope="module")
def coco(photographs: Path, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of photographs in COCO's form, each thing called what the model takes its picture for."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    encoder = open_artifact(open_folder(artifact))
    names = ("shirt", "watch", "belt", "never there")
    known = encoder.encode_texts(names[:3])
    categories = [{"id": number * 10, "name": name} for number, name in enumerate(names)]
    paths = sorted((photographs / "images").iterdir())
    for part, chosen in (("train2017", paths[::2]), ("val2017", paths[1::2])):
        (folder / part).mkdir()
        images, annotations = [], []
        for number, path in enumerate(chosen):
            shutil.copy(path, folder / part / path.name)
            (vector,) = encoder.encode_images([path.read_bytes()])
            images.append({"id": number, "file_name": path.name, "width": 224, "height": 224})
            kind = int((known @ vector).argmax()) * 10
            box = {"bbox": [20, 30, 100, 80], "segmentation": [], "iscrowd": 0}
            annotations.append({"id": number, "image_id": number, "category_id": kind, **box})
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (folder / "annotations" / f"instances_{part}.json").write_text(text, encoding="utf-8")
    return folder


def test_photographs_of_coco_are_read_with_their_things(coco: Path) -> None:
    names, pictures = read_coco(coco, "val2017")
    assert names == ("shirt", "watch", "belt", "never there")
    assert len(pictures) == 30
    assert {each.image.size for each in pictures} == {(224, 224)}
    assert {thing.edges for each in pictures for thing in each.things} == {(20, 30, 120, 110)}
    assert {thing.kind for each in pictures for thing in each.things} <= set(names[:3])


def test_both_kinds_of_data_are_fitted_together(
    titled: Path, coco: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--products", str(titled), "--coco", str(coco), "--collages", "0"]
    main([str(artifact), *both])
    together = capsys.readouterr().out
    assert "validation, products, short side own: pictures 6" in together
    assert "validation, train2017, short side own: pictures 30" in together
    main([str(artifact), "--coco", str(coco)])
    alone = capsys.readouterr().out
    assert "products" not in alone
    # Weighed alike, the few products move the fit.
    assert alone.splitlines()[0] != together.splitlines()[0]
    with pytest.raises(SystemExit):
        main([str(artifact)])
