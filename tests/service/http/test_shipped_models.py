"""The two shipped models in one server: one space, collections of either, and what the small one leaves out."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import model_store.precisions.calibration as calibration
from model_store.store import Store

SMALL, TINY = "everyday-small", "everyday-tiny"
MOST_BYTES = 12_000_000
FOLDER = Path(calibration.__file__).parent


@pytest.fixture(scope="module")
def client(make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    data = tmp_path_factory.mktemp("data")
    return make_client(store=None, builtin=True, data=data, model=SMALL, extra_models=(TINY,))


@pytest.fixture(scope="module")
def captioned() -> list[tuple[str, str]]:
    """Name of each attributed photograph, and a caption of it."""
    lines = [line for line in (FOLDER / "captions.tsv").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return [(row["file"], row["caption"]) for row in csv.DictReader(lines, delimiter="\t")]


def picture(name: str) -> dict[str, str]:
    return {"image": base64.b64encode((FOLDER / name).read_bytes()).decode()}


def test_the_small_one_is_small_and_says_whom_it_learned_from(client: TestClient) -> None:
    tiny = Store(None).open(TINY).manifest
    files = [each.size_bytes for each in tiny.files]
    assert sum(files) < MOST_BYTES
    assert Store(None).default_name() == SMALL
    card = client.get(f"/models/{TINY}").json()
    assert card["provenance"]["distillation"]["teacher"] == f"{SMALL}@1"
    assert tiny.space == Store(None).open(SMALL).manifest.space
    assert {proof.tower for proof in tiny.space_proofs} == {"image", "text"}
    assert all(proof.at_least is not None and proof.value >= proof.at_least for proof in tiny.space_proofs)


@pytest.mark.parametrize(("indexing", "asking"), [(SMALL, TINY), (TINY, SMALL), (TINY, TINY)])
def test_collections_of_one_are_searched_by_the_other(
    client: TestClient, captioned: list[tuple[str, str]], indexing: str, asking: str
) -> None:
    name = f"by-{indexing}-for-{asking}"
    assert client.put(f"/collections/{name}", json={"model": indexing}).status_code in (200, 201)
    items = [{"id": file, **picture(file)} for file, _ in captioned]
    assert client.post(f"/collections/{name}/items", json={"items": items}).status_code == 200
    queries = [{"text": text} for _, text in captioned] + [picture(file) for file, _ in captioned]
    answer = client.post(f"/collections/{name}/search", json={"queries": queries, "model": asking, "top_k": 3})
    assert answer.status_code == 200, answer.text
    wanted = [file for file, _ in captioned] * 2
    ranks = [[hit["id"] for hit in found["hits"]] for found in answer.json()["results"]]
    texts, pictures = ranks[: len(captioned)], ranks[len(captioned) :]
    among = sum(file in found for file, found in zip(wanted, texts, strict=False))
    first = sum(file == found[0] for file, found in zip(wanted, pictures, strict=False))
    assert among >= 0.8 * len(captioned)
    assert first >= 0.9 * len(captioned)


def test_it_classifies_and_has_no_places(client: TestClient, captioned: list[tuple[str, str]]) -> None:
    files, captions = [file for file, _ in captioned], [text for _, text in captioned]
    body = {"inputs": [picture(file) for file in files], "labels": captions, "model": TINY, "templates": ["{}"]}
    found = client.post("/classify", json=body)
    assert found.status_code == 200, found.text
    said = [max(each["predictions"], key=lambda one: one["score"])["label"] for each in found.json()["data"]]
    assert sum(label == caption for label, caption in zip(said, captions, strict=True)) >= len(captions) / 2
    sure = client.post("/classify", json={**body, "activation": "sigmoid"})
    assert sure.status_code == 200
    presence = Store(None).open(TINY).manifest.presence
    assert presence is not None
    scores = [{one["label"]: one["score"] for one in each["predictions"]} for each in sure.json()["data"]]
    true = np.array([found[caption] for found, caption in zip(scores, captions, strict=True)])
    everything = np.array([list(found.values()) for found in scores])
    assert (true >= presence.threshold).mean() > 2 * (everything >= presence.threshold).mean()
    nowhere = client.post("/localize", json={"inputs": body["inputs"][:1], "labels": ["a dog"], "model": TINY})
    assert nowhere.status_code == 422
    assert "has no dense_encoder" in nowhere.json()["error"]["message"]
