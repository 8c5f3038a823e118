"""Collections that keep two vectors of each item, against numpy over the vectors of the offline encoders."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.testclient import TestClient
from typer.testing import CliRunner

from clipworks import schemas
from clipworks.cli import app
from evaluation.encoder import ArtifactEncoder
from model_store.store import Store
from tests.service.http.conftest import wait_ready

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
TEXTS = {"t/boat": "a red boat", "t/circles": "two small circles", "t/none": "no dog"}
QUERIES = ["a red square", "green and blue"]
VIEWS = {"cross": 32, "intra": 24}
Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, `bent` (an adapter behind each tower, 32 -> 24 numbers), `turned` (one behind pictures, 32 -> 32)."""
    from training.exporting.derive import DerivationSource, export_derivation
    from training.exporting.derived_graphs import AdapterSource
    from training.exporting.export import provenance

    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("views") / "store"))
    opened = Store(folder, builtin=False)
    made = provenance(source="a test", architecture="tiny", activation="gelu", structure="t", licence="none")
    source = DerivationSource(base=opened.open("tiny"), structure="t", provenance=made)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image, text = (AdapterSource(module=torch.nn.Linear(32, VIEWS["intra"]).eval()) for _ in range(2))
        turned = AdapterSource(module=torch.nn.Linear(32, 32).eval())
    export_derivation(replace(source, image_adapter=image, text_adapter=text), name="bent", store=opened)
    export_derivation(replace(source, image_adapter=turned), name="turned", store=opened)
    return folder


@pytest.fixture(scope="module")
def client(store: Path, make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    models = {"model": "bent", "extra_models": ("turned", "tiny"), "admin_keys": ("admin-key-1",)}
    return make_client(store=store, data=tmp_path_factory.mktemp("data"), **models)


class Album:
    """Pictures and texts in a collection of both views, and their vectors by the offline encoders."""

    def __init__(self, client: TestClient, store: Path, pictures: dict[str, bytes], model: str = "bent") -> None:
        self.client, self.name, self.pictures = client, f"album-{model}", pictures
        self.encoders = {
            view: ArtifactEncoder(Store(store, builtin=False).open(name))
            for view, name in (("cross", "tiny"), ("intra", model))
        }
        self.ids = [*pictures, *TEXTS]
        self.rows = {
            view: np.concatenate([each.encode_images(list(pictures.values())), each.encode_texts(list(TEXTS.values()))])
            for view, each in self.encoders.items()
        }
        self.made = client.put(f"/collections/{self.name}", json={"model": model, "views": ["cross", "intra"]})
        assert self.made.status_code == 201, self.made.text
        items = [{"id": id, **sent(data)} for id, data in pictures.items()]
        items += [{"id": id, "text": text} for id, text in TEXTS.items()]
        self.post("items", items=items)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/collections/{self.name}/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def search(self, query: Any, **more: Any) -> dict[str, float]:
        """Scores by id, best first."""
        answer = self.post("search", queries=[query], **{"top_k": 50} | more)
        schemas.SearchResponse.model_validate(answer)
        return {hit["id"]: hit["score"] for hit in answer["results"][0]["hits"]}

    def vector(self, view: str, of: str | bytes) -> Vectors:
        encoder = self.encoders[view]
        return (encoder.encode_texts([of]) if isinstance(of, str) else encoder.encode_images([of]))[0]

    def check(self, found: dict[str, float], scores: NDArray[np.floating], *, without: tuple[str, ...] = ()) -> None:
        """found has the scores of all rows, and the order of them."""
        expected = {id: float(score) for id, score in zip(self.ids, scores, strict=True) if id not in without}
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[id] for id in expected], list(expected.values()), atol=3e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def sent(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def refused(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.fixture(scope="module")
def pictures(make_picture: Callable[..., bytes]) -> dict[str, bytes]:
    return {f"p/{seed}": make_picture("PNG", 50 + 7 * seed, 61, seed=seed) for seed in range(8)}


@pytest.fixture(scope="module")
def album(client: TestClient, store: Path, pictures: dict[str, bytes]) -> Album:
    return Album(client, store, pictures)


def test_a_collection_says_what_its_two_vectors_are(album: Album, store: Path) -> None:
    info = schemas.CollectionInfo.model_validate(album.made.json())
    tiny, bent = (Store(store, builtin=False).open(name).manifest for name in ("tiny", "bent"))
    assert info.views is not None
    assert (info.views.cross.model, info.views.cross.space, info.views.cross.dim) == ("tiny@1", tiny.space, 32)
    assert (info.views.intra.model, info.views.intra.space, info.views.intra.dim) == ("bent@1", bent.space, 24)
    assert (info.model, info.dim) == ("bent@1", 56)
    assert info.space not in (tiny.space, bent.space)
    again = album.client.put(f"/collections/{album.name}", json={"model": "bent", "views": ["intra", "cross"]})
    assert (again.status_code, again.json()["views"]) == (200, album.made.json()["views"])


def test_a_text_reads_the_one_and_a_picture_the_other(album: Album, make_picture: Callable[..., bytes]) -> None:
    for text in QUERIES:
        album.check(album.search(text), album.rows["cross"] @ album.vector("cross", text))
    picture = make_picture("PNG", 70, 61, seed=77)
    album.check(album.search(sent(picture)), album.rows["intra"] @ album.vector("intra", picture))
    stored = album.rows["intra"] @ album.rows["intra"][2]
    album.check(album.search({"id": "p/2"}), stored, without=("p/2",))
    assert np.abs(stored - album.rows["cross"] @ album.rows["cross"][2]).max() > 0.05  # else this proves nothing


@pytest.mark.parametrize("view", VIEWS)
def test_all_queries_read_the_view_that_is_asked_for(album: Album, view: str, pictures: dict[str, bytes]) -> None:
    rows = album.rows[view]
    album.check(album.search("a red square", views=view), rows @ album.vector(view, "a red square"))
    album.check(album.search(sent(pictures["p/1"]), views=view), rows @ album.vector(view, pictures["p/1"]))
    album.check(album.search({"id": "t/boat"}, views=view), rows @ rows[album.ids.index("t/boat")], without=("t/boat",))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -0.3), (0.2, 3.0)])
def test_a_mixed_query_has_the_mean_of_the_cosines_in_both(album: Album, weights: tuple[float, float]) -> None:
    text, picture = album.vector("cross", "a red square"), album.rows["intra"][1]
    parts = [{"text": "a red square", "weight": weights[0]}, {"id": "p/1", "weight": weights[1]}]
    sums = weights[0] * (album.rows["cross"] @ text) + weights[1] * (album.rows["intra"] @ picture)
    album.check(album.search({"combine": parts}), sums / sum(map(abs, weights)), without=("p/1",))
    both = {"combine": [{"text": "a red square"}, {"text": "no dog", "weight": -0.5}]}
    plain = text - 0.5 * album.vector("cross", "no dog")
    album.check(album.search(both), album.rows["cross"] @ (plain / np.linalg.norm(plain)))


def test_given_vectors_are_read_by_their_size(album: Album) -> None:
    rng = np.random.default_rng(3)
    for view, size in VIEWS.items():
        vector = rng.standard_normal(size).astype(np.float32)
        scores = album.rows[view] @ (vector / np.linalg.norm(vector))
        text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        album.check(album.search({"vector": vector.tolist()}), scores)
        album.check(album.search({"vector": text}), scores)
        wrapped = "\n".join(text[at : at + 4] for at in range(0, len(text), 4))
        album.check(album.search({"vector": wrapped}), scores)
    stored = album.client.get(f"/collections/{album.name}/items/p/3?include=vector").json()["vector"]
    assert len(stored) == 56
    album.check(album.search({"vector": stored}), album.rows["intra"] @ album.rows["intra"][3])
    album.check(album.search({"vector": stored}, views="cross"), album.rows["cross"] @ album.rows["cross"][3])
    for more, sizes in ({}, "32 (cross), 24 (intra) or 56 (both"), ({"views": "cross"}, "32 (cross) or 56 (both"):
        body = {"queries": [{"vector": [1.0] * 31}], **more}
        answer = album.client.post(f"/collections/{album.name}/search", json=body)
        assert refused(answer) == (422, "invalid_vector", "queries[0].vector")
        assert f"the vector has 31 numbers; here one has {sizes}" in answer.json()["error"]["message"]
    answer = album.client.post(f"/collections/{album.name}/search", json={"queries": [{"vector": "!!!!"}]})
    assert "not base64" in answer.json()["error"]["message"]
    half = [0.0] * 32 + album.rows["intra"][3].tolist()
    album.check(album.search({"vector": half}), album.rows["intra"] @ album.rows["intra"][3])


def test_equal_sizes_have_to_say_which_view_they_are_of(
    client: TestClient, store: Path, pictures: dict[str, bytes]
) -> None:
    album = Album(client, store, pictures, model="turned")
    vector = album.vector("cross", "a red square").tolist()
    album.check(album.search({"vector": vector}, views="cross"), album.rows["cross"] @ np.array(vector))
    answer = client.post("/collections/album-turned/search", json={"queries": [{"vector": vector}]})
    assert refused(answer) == (422, "invalid_vector", "queries[0].vector")
    assert '"views"' in answer.json()["error"]["message"]


def test_rows_brought_as_vectors_hold_both(album: Album) -> None:
    rng = np.random.default_rng(4)
    cross, intra = (rng.standard_normal(size).astype(np.float32) for size in VIEWS.values())
    body = {"items": [{"id": "given", "vector": [*(9 * cross).tolist(), *intra.tolist()]}]}
    assert album.client.post(f"/collections/{album.name}/items", json=body).status_code == 200
    try:
        for view, vector in (("cross", cross), ("intra", intra)):
            found = album.search({"vector": vector.tolist()}, views=view)
            assert found["given"] == pytest.approx(1, abs=1e-6)
    finally:
        album.client.delete(f"/collections/{album.name}/items/given").raise_for_status()
    for numbers in (cross.tolist(), [0.0] * 32 + [1.0] * 24):
        body = {"items": [{"id": "half", "vector": numbers}]}
        answer = album.client.post(f"/collections/{album.name}/items", json=body)
        assert refused(answer)[0::2] == (422, "items[0].vector")


@pytest.mark.parametrize("view", VIEWS)
def test_what_a_search_has_beside_it_is_of_the_view(album: Album, view: str) -> None:
    body = {"score_of": ["p/4"], "histogram": 5, "min_score": -1, "diversity": 0.5, "views": view}
    [result] = album.post("search", queries=["a red square"], **body)["results"]
    scores = album.rows[view] @ album.vector(view, "a red square")
    assert result["scores"][0]["score"] == pytest.approx(float(scores[4]), abs=3e-6)
    assert result["histogram"]["mean"] == pytest.approx(float(scores.mean()), abs=1e-5)
    least = float(np.sort(scores)[-3]) - 1e-5
    assert len(album.search("a red square", min_score=least, views=view)) == 3


def test_near_duplicates_are_near_in_the_mean_of_both(album: Album) -> None:
    first, *_ = hits = list(album.search("a red square"))
    cosines = sum(each @ each[album.ids.index(first)] for each in album.rows.values()) / 2
    least = float(np.sort(cosines)[-4]) - 1e-5
    [result] = album.post("search", queries=["a red square"], top_k=50, group_near=least)["results"]
    near = {each["id"]: each["similarity"] for each in result["hits"][0]["near"]}
    expected = {id: float(cosines[album.ids.index(id)]) for id in hits[1:]}
    assert near == pytest.approx({id: cosine for id, cosine in expected.items() if cosine >= least}, abs=1e-5)
    assert len(near) == 3


def test_what_cannot_be_is_refused_with_the_reason(album: Album, client: TestClient) -> None:
    answer = client.put("/collections/one", json={"model": "tiny", "views": ["cross", "intra"]})
    assert refused(answer) == (422, "unsupported_input", "views")
    assert "adapters" in answer.json()["error"]["message"]
    for views in ([], ["cross"], ["cross", "cross"], "cross", ["cross", "inner"], ["cross", "intra", "cross"], [1, 2]):
        answer = client.put("/collections/one", json={"views": views})
        assert refused(answer)[:2] == (422, "invalid_field")
        assert answer.json()["error"]["param"].startswith("views")
    client.put("/collections/one", json={"views": None}).raise_for_status()
    answer = client.post("/collections/one/search", json={"queries": ["a"], "views": "intra"})
    assert refused(answer) == (422, "invalid_field", "views")
    answer = client.put(f"/collections/{album.name}", json={"model": "bent"})
    assert refused(answer)[:2] == (409, "space_mismatch")
    answer = client.post(f"/collections/{album.name}/search", json={"queries": ["a"], "model": "turned"})
    assert refused(answer) == (409, "space_mismatch", "model")


def test_weighing_takes_the_view_of_the_label_sets_model(
    album: Album, client: TestClient, pictures: dict[str, bytes]
) -> None:
    """Weights by a collection of both views are those by one of the model's vectors alone."""
    for model in ("bent", "tiny"):
        client.put(f"/collections/plain-{model}", json={"model": model}).raise_for_status()
        items = [{"id": id, **sent(data)} for id, data in pictures.items()]
        items += [{"id": id, "text": text} for id, text in TEXTS.items()]
        client.post(f"/collections/plain-{model}/items", json={"items": items}).raise_for_status()
        found: list[list[float]] = []
        for collection in (album.name, f"plain-{model}"):
            body = {
                "model": model,
                "labels": ["red", "blue"],
                "templates": ["{}", "a {} boat", "two {} circles"],
                "weigh_templates": {"collection": collection},
            }
            client.put(f"/label-sets/weighed-{collection}", json=body).raise_for_status()
            found.append(weights_of(client, f"weighed-{collection}"))
            client.delete(f"/label-sets/weighed-{collection}").raise_for_status()
        assert found[0] == pytest.approx(found[1], abs=1e-4)
        assert max(found[0]) - min(found[0]) > 1e-3  # else any vectors would do


def test_examples_take_the_view_of_the_label_sets_model(
    album: Album, client: TestClient, pictures: dict[str, bytes]
) -> None:
    """Label sets of `bent` read its own vectors of stored items, as they do in a collection of its own."""
    stored = {
        label: [{"item": {"collection": album.name, "id": id}} for id in ids]
        for label, ids in (("a", ["p/0", "p/1"]), ("b", ["p/2", "p/3"]))
    }
    sent_again = {label: [sent(pictures[each["item"]["id"]]) for each in items] for label, items in stored.items()}
    for name, examples in (("by-item", stored), ("by-picture", sent_again)):
        answer = client.put(f"/label-sets/{name}", json={"labels": ["a", "b"], "examples": examples})
        assert answer.status_code in (200, 201, 202), answer.text
    inputs = [sent(data) for data in pictures.values()]
    found = [
        client.post("/classify", json={"inputs": inputs, "label_set": name}).json()["data"]
        for name in ("by-item", "by-picture")
    ]
    for left, right in zip(*found, strict=True):
        scores = [{p["label"]: p["score"] for p in each["predictions"]} for each in (left, right)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_doctor_asks_either_view_and_a_snapshot_keeps_them(album: Album, client: TestClient) -> None:
    admin = {"Authorization": "Bearer admin-key-1"}
    report = client.post(f"/collections/{album.name}/doctor", json={}, headers=admin).json()
    assert (report["problems"], report["recall"]) == ([], 1.0)
    name = client.post(f"/collections/{album.name}/snapshot", headers=admin).json()["snapshot"]
    restored = client.post("/collections/again/restore", json={"snapshot": name}, headers=admin)
    assert restored.status_code in (200, 201), restored.text
    assert restored.json()["views"] == album.made.json()["views"]
    for query in ("a red square", {"id": "p/2"}):
        answer = client.post("/collections/again/search", json={"queries": [query], "top_k": 50}).json()
        assert {hit["id"]: hit["score"] for hit in answer["results"][0]["hits"]} == album.search(query)


def test_after_a_restart_the_model_is_loaded_when_it_is_needed(
    store: Path, make_app: Callable[..., FastAPI], tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    with TestClient(make_app(store=store, data=tmp_path, model="bent")) as before:
        wait_ready(before)
        album = Album(before, store, pictures)
    with TestClient(make_app(store=store, data=tmp_path, model="tiny")) as album.client:
        wait_ready(album.client)
        for query in ("a red square", "two boats"):
            album.check(album.search(query), album.rows["cross"] @ album.vector("cross", query))
        assert album.post("search", queries=["a red square"])["model"] == "bent@1"


@pytest.mark.long
def test_the_command_line_makes_searches_and_upgrades_them(
    store: Path, tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("STORE", store), ("DATA", tmp_path / "data"), ("MODEL", "bent")):
        monkeypatch.setenv(f"CLIPWORKS_{name}", str(value))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, data in enumerate(pictures.values()):
        (folder / f"{number}.png").write_bytes(data)
    ran("index", folder, "--collection", "album", "--views")
    encoders = {name: ArtifactEncoder(Store(store, builtin=False).open(name)) for name in ("tiny", "bent", "turned")}
    shown = {name: each.encode_images(list(pictures.values())) for name, each in encoders.items()}

    def best(*words: str | Path) -> float:
        [hit] = json.loads(ran("search", *words, "--collection", "album", "-k", "1", "--json"))["hits"]
        return hit["score"]

    for words, name in (((), "tiny"), (("--views", "cross"), "tiny"), (("--views", "intra"), "bent")):
        expected = (shown[name] @ encoders[name].encode_texts(["a boat"])[0]).max()
        assert best("a boat", *words) == pytest.approx(float(expected), abs=1e-5)
    ran("index", folder, "--collection", "album", "--views")
    ran("collections", "export", "album", tmp_path / "album.parquet")
    ran("collections", "import", tmp_path / "album.parquet", "--name", "copy")
    ran("collections", "upgrade", "album", "--model", "turned", "--source", folder)
    expected = (shown["turned"] @ encoders["turned"].encode_texts(["a boat"])[0]).max()
    assert best("a boat", "--views", "intra") == pytest.approx(float(expected), abs=1e-5)


def ran(*words: str | Path) -> str:
    """What the command line printed; it ended well."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def weights_of(client: TestClient, name: str) -> list[float]:
    end = time.monotonic() + 30
    while not (found := client.get(f"/label-sets/{name}").json())["ready"]:
        assert not found["failed"], found
        assert time.monotonic() < end
        time.sleep(0.02)
    return found["weighed"]["weights"]
