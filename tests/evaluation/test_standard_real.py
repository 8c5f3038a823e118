"""A model of products judged on real photographs by the standard tasks (CLIPWORKS_TEST_DATA)."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from evaluation.encoder import ArtifactEncoder, open_artifact
from evaluation.fashion import MIN_PHOTOGRAPHS, article_type
from evaluation.probe_results import ProbeResult, ResultRow
from evaluation.standard.specs import task
from model_store.store import Artifact, Store
from tests.stores import SHOP_STORE

pytestmark = pytest.mark.skipif("CLIPWORKS_TEST_DATA" not in os.environ, reason="CLIPWORKS_TEST_DATA is not set")


@pytest.fixture(scope="module")
def data() -> Path:
    return Path(os.environ["CLIPWORKS_TEST_DATA"])


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Store(SHOP_STORE, builtin=False).open("fashion-small")


@pytest.fixture(scope="module")
def encoder(artifact: Artifact) -> ArtifactEncoder:
    return open_artifact(artifact)


def by_name(result: ProbeResult) -> dict[str, ResultRow]:
    return {row.name: row for row in result.rows}


def held_out(data: Path) -> list[dict[str, str]]:
    with (data / "fashion-products" / "captions.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(Path(row["image"]).stem) % 10 == 1]


def test_folders_of_products_give_the_numbers_that_the_artifact_states(
    data: Path, artifact: Artifact, encoder: ArtifactEncoder, tmp_path: Path
) -> None:
    rows = held_out(data)
    colours = Counter(row["baseColour"] for row in rows)
    for row in rows:
        colour = row["baseColour"].casefold() if colours[row["baseColour"]] >= MIN_PHOTOGRAPHS else None
        for kind, label in (("type", article_type(row["caption"])), ("colour", colour)):
            if label is not None:
                folder = tmp_path / kind / label.replace(" ", "_")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / Path(row["image"]).name).symlink_to(data / "fashion-products" / row["image"])
    stated = artifact.manifest.metrics
    for kind in ("type", "colour"):
        found = by_name(task(f"folder:{tmp_path / kind},templates=own").measure(encoder))
        for name, metric in (
            ("top-1, own templates", "accuracy/value"),
            ("mean over classes, own templates", "class_mean"),
            ("majority baseline", "majority"),
        ):
            assert found[name].score == pytest.approx(stated[f"test/all/{kind}/{metric}"], abs=0.002), (kind, name)


def test_captions_of_products_give_the_recall_that_the_artifact_states(
    data: Path, artifact: Artifact, encoder: ArtifactEncoder, tmp_path: Path
) -> None:
    table = tmp_path / "held-out.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        writer.writerows((row["image"], row["caption"]) for row in held_out(data))
    found = by_name(task(f"captions:{table},images={data / 'fashion-products'}").measure(encoder))
    for direction, metric in (("text to image", "t2i"), ("image to text", "i2t")):
        for cut in (1, 5, 10):
            stated = artifact.manifest.metrics[f"test/all/{metric}_r@{cut}/value"]
            assert found[f"{direction}, R@{cut}"].score == pytest.approx(stated, abs=0.002), (direction, cut)


def test_everyday_photographs_are_beyond_a_model_of_products(
    data: Path, encoder: ArtifactEncoder, tmp_path: Path
) -> None:
    lines = (data / "flickr8k-800" / "captions.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "slice.csv").write_text("\n".join(lines[:501]) + "\n", encoding="utf-8")
    result = task(f"captions:{tmp_path / 'slice.csv'},images={data / 'flickr8k-800'}").measure(encoder)
    found = by_name(result)
    assert (result.pictures, found["text to image, R@1"].n, found["image to text, R@1"].n) == (100, 500, 100)
    for row in result.rows:
        assert row.chance is not None
        assert row.score is not None
        assert row.score < row.chance + 0.1, row.name
    order = by_name(task(f"order:{tmp_path / 'slice.csv'},images={data / 'flickr8k-800'}").measure(encoder))["all"]
    assert order.n > 490
    assert order.score == 0  # its text tower adds up tokens: all orders tie, and a tie is wrong
    assert order.blind == pytest.approx(0.2, abs=0.01)


def test_sugarcrepe_on_the_photographs_that_are_there(data: Path, encoder: ArtifactEncoder) -> None:
    result = task(f"pairs:{data / 'sugarcrepe'},images={data / 'coco-mini' / 'val2017'}").measure(encoder)
    found = by_name(result)
    assert list(found) == [
        "add_att",
        "add_obj",
        "replace_att",
        "replace_obj",
        "replace_rel",
        "swap_att",
        "swap_obj",
        "all",
        "mean over types",
    ]
    assert (found["all"].n, result.notes) == (211, ("7300 of 7511 rows lack their picture: left out",))
    assert found["all"].blind is not None
    assert found["all"].score == pytest.approx(found["all"].blind, abs=0.15)  # it reads the wording, not the picture
