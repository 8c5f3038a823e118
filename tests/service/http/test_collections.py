"""/collections over HTTP: the life of a collection and its items, every kind of body, and every refusal."""

import base64
import json
from collections.abc import Callable, Iterator
from urllib.parse import quote

import numpy as np
import pytest
from starlette.testclient import TestClient

from clipworks import schemas

DIM = 32


@pytest.fixture
def photos(client: TestClient) -> Iterator[TestClient]:
    """The shared client, with an empty collection `photos` while the test runs."""
    client.delete("/collections/photos")
    made = client.put("/collections/photos", json={"metadata_schema": {"year": "number"}})
    assert made.status_code == 201, made.text
    yield client
    client.delete("/collections/photos")


def unit(*hot: int) -> list[float]:
    vector = np.zeros(DIM)
    vector[list(hot)] = 1.0
    return (vector / np.linalg.norm(vector)).tolist()


def as_base64(vector: object) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def upsert(client: TestClient, *items: dict[str, object], **more: object) -> object:
    return client.post("/collections/photos/items", json={"items": items, **more})


def embedding(client: TestClient, given: object) -> np.ndarray:
    answer = client.post("/embed", json={"inputs": [given]})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)


def stored(client: TestClient, id: str) -> np.ndarray:
    answer = client.get(f"/collections/photos/items/{id}?include=vector")
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["vector"], dtype=np.float32)


def error(response: object, status: int, code: str, param: str | None) -> str:
    assert response.status_code == status, response.text  # type: ignore[attr-defined]
    found = schemas.ErrorResponse.model_validate_json(response.content).error  # type: ignore[attr-defined]
    assert (found.code, found.param) == (code, param), found
    return found.message


def test_a_collection_is_made_shown_listed_and_deleted(client: TestClient) -> None:
    body = {"model": "tiny", "index": {"kind": "flat"}, "metadata_schema": {"a.b": "string", "tags": "string[]"}}
    made = client.put("/collections/first", json=body)
    assert made.status_code == 201
    info = schemas.CollectionInfo.model_validate_json(made.content)
    model = client.get("/models/tiny").json()
    assert (info.model, info.dim, info.space) == ("tiny@1", DIM, model["space"])
    assert info.fingerprint.model_dump() == model["fingerprint"]
    assert (info.index.kind, info.kind, info.exact, info.count, info.durability) == ("flat", "flat", True, 0, "none")
    assert client.put("/collections/first", json=body).status_code == 200
    assert client.get("/collections/first").json() == made.json()
    assert [each["name"] for each in client.get("/collections").json()["data"]] == ["first"]
    message = error(client.put("/collections/first", json={}), 409, "collection_conflict", None)
    assert "index" in message
    assert "metadata_schema" in message
    assert client.delete("/collections/first").status_code == 204
    error(client.get("/collections/first"), 404, "collection_not_found", None)
    error(client.delete("/collections/first"), 404, "collection_not_found", None)
    assert client.get("/collections").json() == {"data": [], "media_root": False, "losses": []}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "none"}, 404, "model_not_found", "model"),
        ({"index": {"kind": "hnsw"}}, 422, "invalid_field", "index.kind"),
        ({"index": {"nprobe": 0}}, 422, "invalid_field", "index.nprobe"),
        ({"metadata_schema": {"a": "money"}}, 422, "invalid_field", "metadata_schema"),
        ({"metadata_schema": {"a..b": "string"}}, 422, "invalid_collection", "metadata_schema"),
        ({"what": 1}, 422, "invalid_field", "what"),
    ],
)
def test_a_wrong_collection_is_refused(
    client: TestClient, body: dict[str, object], status: int, code: str, param: str
) -> None:
    error(client.put("/collections/wrong", json=body), status, code, param)
    error(client.get("/collections/wrong"), 404, "collection_not_found", None)


@pytest.mark.parametrize("name", ["UPPER", "a b", "-a", "a" * 65])
def test_names(client: TestClient, name: str) -> None:
    routes = ["PUT ", "GET ", "DELETE ", "POST /items", "GET /items", "GET /items/a", "DELETE /items/a"]
    for route in [*routes, "POST /items:delete", "POST /search"]:
        method, path = route.split(" ")
        error(client.request(method, f"/collections/{name}{path}", json={}), 422, "invalid_field", "name")


def test_every_route_of_an_unknown_collection_is_404(client: TestClient) -> None:
    vector = {"vector": unit(0)}
    for method, path, body in (
        ("GET", "", None), ("DELETE", "", None), ("GET", "/items", None), ("GET", "/items/a", None),
        ("DELETE", "/items/a", None), ("POST", "/items", {"items": [{"id": "a", **vector}]}),
        ("POST", "/items:delete", {"ids": ["a"]}), ("POST", "/search", {"queries": [vector]}),
    ):  # fmt: skip
        error(client.request(method, f"/collections/nowhere{path}", json=body), 404, "collection_not_found", None)


def test_texts_images_and_vectors_in_one_upsert(photos: TestClient, png: bytes) -> None:
    """Rows hold the very vectors of /embed; given ones are brought to length 1."""
    image = base64.b64encode(png).decode()
    given = np.random.default_rng(0).standard_normal(DIM) * 1000
    answer = upsert(
        photos,
        {"id": "text", "text": "a cat", "metadata": {"year": 2020, "place": {"name": "Köln"}, "tags": ["a", 1]}},
        {"id": "image", "image": image},
        {"id": "floats", "vector": given.tolist()},
        {"id": "base64", "vector": as_base64(given)},
        {"id": "huge", "vector": [1e300] * DIM},
        {"id": "small", "vector": [1e-300] * DIM},
    )
    assert answer.status_code == 200, answer.text  # type: ignore[attr-defined]
    assert answer.headers["x-model-fingerprint"]  # type: ignore[attr-defined]
    assert "store;dur=" in answer.headers["server-timing"]  # type: ignore[attr-defined]
    shown = schemas.UpsertResponse.model_validate_json(answer.content)  # type: ignore[attr-defined]
    assert shown.upserted == 6
    assert [each.id for each in shown.data] == ["text", "image", "floats", "base64", "huge", "small"]  # type: ignore[union-attr]
    np.testing.assert_allclose(stored(photos, "text"), embedding(photos, "a cat"), atol=1e-6)
    np.testing.assert_allclose(stored(photos, "image"), embedding(photos, {"image": image}), atol=1e-6)
    expected = given / np.linalg.norm(given)
    for id in ("floats", "base64"):
        np.testing.assert_allclose(stored(photos, id), expected, atol=1e-6)
    for id in ("huge", "small"):
        np.testing.assert_allclose(stored(photos, id), np.full(DIM, DIM**-0.5), atol=1e-6)
    item = photos.get("/collections/photos/items/text").json()
    assert item["metadata"] == {"year": 2020, "place": {"name": "Köln"}, "tags": ["a", 1]}
    assert "vector" not in item
    assert photos.get("/collections/photos").json()["count"] == 6


def test_upsert_replaces_and_the_last_of_equal_ids_stays(photos: TestClient) -> None:
    upsert(photos, {"id": "a", "vector": unit(0), "metadata": {"year": 1}})
    answer = upsert(photos, {"id": "a", "vector": unit(1)}, {"id": "a", "vector": unit(2), "metadata": {"n": 3}})
    assert answer.json()["upserted"] == 2  # type: ignore[attr-defined]
    assert photos.get("/collections/photos").json()["count"] == 1
    assert photos.get("/collections/photos/items/a").json()["metadata"] == {"n": 3}
    assert stored(photos, "a").tolist() == unit(2)


IDS = ["a/b/c.jpg", "ends/", "/begins", "a//b", "with space?#%&+", "Köln 🏔", "x:delete", "search", "'; DROP", "a" * 512]


def test_any_id_can_be_stored_read_found_and_deleted(photos: TestClient) -> None:
    vectors = np.random.default_rng(1).standard_normal((len(IDS), DIM))
    rows = [{"id": id, "vector": vector.tolist()} for id, vector in zip(IDS, vectors, strict=True)]
    assert upsert(photos, *rows).status_code == 200  # type: ignore[attr-defined]
    for id, vector in zip(IDS, vectors, strict=True):
        path = f"/collections/photos/items/{quote(id)}"
        assert photos.get(path).json()["id"] == id
        found = photos.post("/collections/photos/search", json={"queries": [{"vector": vector.tolist()}], "top_k": 1})
        assert found.json()["results"][0]["hits"][0]["id"] == id
        assert photos.delete(path).status_code == 204
        error(photos.get(path), 404, "item_not_found", None)
        error(photos.delete(path), 404, "item_not_found", None)
    assert photos.get("/collections/photos").json()["count"] == 0


def test_multipart_and_raw_images(photos: TestClient, make_picture: Callable[..., bytes]) -> None:
    """Files fill the items that wait for one, in order; `id` fields stand for items; a raw image takes its id from
    the query."""
    pictures = [make_picture("PNG", 30, 20, seed=seed) for seed in range(4)]
    path = "/collections/photos/items"
    body = {"items": [{"id": "one", "metadata": {"year": 1}}, {"id": "text", "text": "a dog"}, {"id": "two"}]}
    files = [("request", (None, json.dumps(body))), ("image", ("x", pictures[0])), ("image", ("y", pictures[1]))]
    answer = photos.post(path, files=files)
    assert answer.status_code == 200, answer.text
    assert [each["id"] for each in answer.json()["data"]] == ["one", "text", "two"]
    files = [("image", ("x", pictures[2])), ("id", (None, "a,b.png")), ("on_error", (None, "item"))]
    assert photos.post(path, files=files).json()["upserted"] == 1
    raw = photos.post(f"{path}?id=raw%2F1", content=pictures[3], headers={"Content-Type": "image/png"})
    assert raw.json() == {"upserted": 1, "data": [{"index": 0, "id": "raw/1"}]}
    for id, picture in zip(("one", "two", "a,b.png", "raw/1"), pictures, strict=True):
        expected = embedding(photos, {"image": base64.b64encode(picture).decode()})
        np.testing.assert_allclose(stored(photos, id), expected, atol=1e-6)
    assert photos.get(f"{path}/one").json()["metadata"] == {"year": 1}


def test_files_and_items_that_do_not_fit(photos: TestClient, png: bytes) -> None:
    path = "/collections/photos/items"
    image = ("image", ("x", png))
    one, none = json.dumps({"items": [{"id": "a"}]}), json.dumps({"items": [{"id": "a", "text": "x"}]})
    for files in (
        [image], [image, image, ("id", (None, "a"))], [("id", (None, "a"))],
        [image, ("request", (None, none))], [("request", (None, one))],
    ):  # fmt: skip
        error(photos.post(path, files=files), 422, "invalid_field", "items")
    both = [image, ("request", (None, one)), ("id", (None, "a"))]
    error(photos.post(path, files=both), 422, "invalid_field", "id")
    error(photos.post(path, content=png, headers={"Content-Type": "image/png"}), 422, "invalid_field", "items")
    error(upsert(photos, {"id": "a"}), 422, "invalid_field", "items[0]")
    assert photos.get("/collections/photos").json()["count"] == 0


GOOD = {"id": "good", "vector": unit(3)}
BAD_ITEMS = [
    ({"id": "a", "vector": [1.0] * (DIM - 1)}, "invalid_vector", ".vector"),
    ({"id": "a", "vector": as_base64([1.0] * (DIM + 1))}, "invalid_vector", ".vector"),
    ({"id": "a", "vector": "*" * 172}, "invalid_vector", ".vector"),
    ({"id": "a", "vector": as_base64([np.nan] + [1.0] * (DIM - 1))}, "invalid_vector", ".vector"),
    ({"id": "a", "vector": as_base64([np.inf] + [1.0] * (DIM - 1))}, "invalid_vector", ".vector"),
    ({"id": "a", "vector": [0] * DIM}, "no_direction", ".vector"),
    ({"id": "", "vector": unit(0)}, "invalid_item", ""),
    ({"id": "a\u0007", "vector": unit(0)}, "invalid_item", ""),
    ({"id": "ü" * 257, "vector": unit(0)}, "invalid_item", ""),
    ({"id": "a\n", "text": "a cat"}, "invalid_item", ""),
    ({"id": "a", "text": "a cat", "metadata": {"year": "old"}}, "invalid_item", ""),
    ({"id": "a", "vector": unit(0), "metadata": {"n": 2**70}}, "invalid_item", ""),
    ({"id": "a", "vector": unit(0), "metadata": {"n": "x" * 70_000}}, "invalid_item", ""),
    ({"id": "a", "image": "bm90IGFuIGltYWdl"}, "unsupported_image", ".image"),
    ({"id": "a", "image": "*"}, "invalid_image", ".image"),
    ({"id": "a", "text": "x" * 200_000}, "invalid_text", ".text"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "code", "field"), BAD_ITEMS)
def test_a_bad_item(photos: TestClient, item: dict[str, object], code: str, field: str) -> None:
    """With "fail" nothing is written, with "item" all but the bad one."""
    message = error(upsert(photos, GOOD, item, GOOD), 422, code, f"items[1]{field}")
    assert photos.get("/collections/photos").json()["count"] == 0
    answer = upsert(photos, GOOD, item, {"id": "text", "text": "a dog"}, on_error="item")
    assert answer.status_code == 200, answer.text  # type: ignore[attr-defined]
    data = answer.json()["data"]  # type: ignore[attr-defined]
    assert answer.json()["upserted"] == 2  # type: ignore[attr-defined]
    assert (data[0], data[2]) == ({"index": 0, "id": "good"}, {"index": 2, "id": "text"})
    assert data[1]["index"] == 1
    assert (data[1]["error"]["code"], data[1]["error"]["message"]) == (code, message)
    assert photos.get("/collections/photos").json()["count"] == 2


def test_the_first_bad_item_decides_whoever_finds_it(photos: TestClient, png: bytes) -> None:
    """Ids are the store's to check, vectors ours, pictures the decoder's, URLs the door's."""
    bad = [
        ({"id": "", "vector": unit(0)}, "invalid_item", 422), ({"id": "v", "vector": [0] * DIM}, "no_direction", 422),
        ({"id": "p", "image": base64.b64encode(png[:60]).decode()}, "invalid_image", 422),
        ({"id": "u", "image_url": "https://example.com/a.jpg"}, "url_fetch_disabled", 403),
    ]  # fmt: skip
    for first, code, status in bad:
        for second, _, _ in bad:
            answer = upsert(photos, GOOD, first, {"id": "t", "text": "cat"}, second)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)  # type: ignore[attr-defined]
            assert answer.json()["error"]["param"].startswith("items[1]")  # type: ignore[attr-defined]
    assert photos.get("/collections/photos").json()["count"] == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [{"text": "a"}]}, "items[0].id"),
        ({"items": [GOOD, {"id": 1, "text": "a"}]}, "items[1].id"),
        ({"items": [{"id": "a", "text": "a", "image": ""}]}, "items[0]"),
        ({"items": [{"id": "a", "vector": ["1"]}]}, "items[0].vector[0]"),
        ({"items": [{"id": "a", "vector": unit(0), "metadata": []}]}, "items[0].metadata"),
        ({"items": [{"id": "a", "vector": unit(0), "what": 1}]}, "items[0].what"),
        ({"items": [GOOD], "on_error": "skip"}, "on_error"),
    ],
)
def test_a_wrong_upsert(photos: TestClient, body: dict[str, object], param: str) -> None:
    error(photos.post("/collections/photos/items", json=body), 422, "invalid_field", param)


def test_bodies_that_are_not_taken(photos: TestClient) -> None:
    path = "/collections/photos/items"
    error(photos.post(path, content=b"{", headers={"Content-Type": "application/json"}), 400, "invalid_json", None)
    error(photos.post(path, content=b"x", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type", None)
    for other in (f"{path}:delete", "/collections/photos"):
        method = "POST" if other != "/collections/photos" else "PUT"
        error(photos.request(method, other, content=b"x"), 415, "unsupported_media_type", None)
    inf = b'{"items": [{"id": "a", "vector": [Infinity]}]}'
    error(photos.post(path, content=inf, headers={"Content-Type": "application/json"}), 400, "invalid_json", None)
    answer = photos.patch(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_limits_of_number_and_size(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_items=2, max_upsert_items=3, max_hits=50, max_offset=20, max_body_bytes=4096)
    assert client.put("/collections/photos", json={}).status_code == 201
    vectors = [{"id": str(n), "vector": as_base64(unit(n))} for n in range(4)]
    assert upsert(client, *vectors[:3]).status_code == 200  # type: ignore[attr-defined]
    assert "3" in error(upsert(client, *vectors), 413, "too_many_items", None)
    texts = [{"id": str(n), "text": "a"} for n in range(3)]
    assert "CLIPWORKS_MAX_ITEMS" in error(upsert(client, *texts), 413, "too_many_items", None)
    large = {"id": "a", "text": "x" * 5000}
    error(upsert(client, large), 413, "body_too_large", None)
    ids = [str(n) for n in range(4)]
    error(client.post("/collections/photos/items:delete", json={"ids": ids}), 413, "too_many_items", None)

    def search(**body: object) -> object:
        return client.post("/collections/photos/search", json=body)

    query = {"vector": as_base64(unit(0))}
    error(search(queries=[query] * 3), 413, "too_many_items", None)
    error(search(queries=[{"combine": [{"text": "a"}] * 3}]), 413, "too_many_items", None)
    assert search(queries=[query] * 2, top_k=20).status_code == 200  # type: ignore[attr-defined]
    error(search(queries=[query], top_k=21), 422, "invalid_field", "top_k")
    error(search(queries=[query], top_k=20, offset=1), 422, "invalid_field", "top_k")
    error(search(queries=[query], top_k=6, include=["vector"]), 413, "too_many_items", None)
    error(client.get("/collections/photos/items?limit=21"), 422, "invalid_field", "limit")


def test_pages_give_every_item_once_in_order(photos: TestClient) -> None:
    ids = sorted((f"{n % 7}/{n}" for n in range(57)), key=lambda id: id.encode())
    for start in range(0, 57, 20):
        upsert(
            photos, *({"id": id, "vector": unit(int(id[0])), "metadata": {"id": id}} for id in ids[start : start + 20])
        )
    seen: list[str] = []
    cursor = None
    while True:
        query = f"?limit=10&cursor={cursor}" if cursor else "?limit=10"
        page = photos.get(f"/collections/photos/items{query}").json()
        schemas.ItemPage.model_validate(page)
        seen += [each["id"] for each in page["data"]]
        assert all(each["metadata"] == {"id": each["id"]} for each in page["data"])
        cursor = page["cursor"]
        if cursor is None:
            break
        photos.delete(f"/collections/photos/items/{seen[0]}")  # what is behind the cursor may go
        upsert(photos, {"id": "0", "vector": unit(0)})
    assert seen == ids
    page = photos.get("/collections/photos/items?limit=1&include=vector&encoding_format=base64").json()
    assert set(page["data"][0]) == {"id", "sequence", "vector"}
    assert page["data"][0]["vector"] == as_base64(unit(0))


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "invalid_field", "limit"), ("limit=x", "invalid_field", "limit"),
        ("cursor=*", "invalid_query", "cursor"), ("cursor=", "invalid_field", "cursor"),
        ("include=everything", "invalid_field", "include[0]"), ("what=1", "invalid_field", None),
        ("limit=1&limit=2", "invalid_field", "limit"), ("encoding_format=hex", "invalid_field", "encoding_format"),
    ],
)  # fmt: skip
def test_a_wrong_page(photos: TestClient, query: str, code: str, param: str | None) -> None:
    error(photos.get(f"/collections/photos/items?{query}"), 422, code, param)


def test_deletion_by_ids_and_by_filter(photos: TestClient) -> None:
    path = "/collections/photos/items:delete"
    upsert(photos, *({"id": str(n), "vector": unit(n), "metadata": {"year": n}} for n in range(10)))
    assert photos.post(path, json={"ids": ["1", "2", "2", "none"]}).json() == {"deleted": 2}
    assert photos.post(path, json={"filter": {"year": {"$gte": 7}}}).json() == {"deleted": 3}
    left = [each["id"] for each in photos.get("/collections/photos/items").json()["data"]]
    assert left == ["0", "3", "4", "5", "6"]
    hits = photos.post("/collections/photos/search", json={"queries": [{"vector": unit(8)}]}).json()["results"][0][
        "hits"
    ]
    assert {hit["id"] for hit in hits} == set(left)
    for body, code, param in (
        ({}, "invalid_field", None), ({"ids": ["a"], "filter": {"a": 1}}, "invalid_field", None),
        ({"ids": []}, "invalid_field", "ids"), ({"filter": {}}, "invalid_field", "filter"),
        ({"ids": ["a\n"]}, "invalid_item", "ids"),
        ({"filter": {"year": {"$near": 1}}}, "invalid_filter", "filter.year.$near"),
    ):  # fmt: skip
        error(photos.post(path, json=body), 422, code, param)
    assert photos.get("/collections/photos").json()["count"] == 5


def test_a_deadline_that_has_passed_writes_nothing(photos: TestClient) -> None:
    """One millisecond is over before 60,000 numbers are read."""
    body = {"items": [{"id": str(n), "vector": unit(n % DIM)} for n in range(2000)]}
    answer = photos.post("/collections/photos/items", json=body, headers={"X-Request-Timeout-Ms": "1"})
    error(answer, 504, "deadline_exceeded", None)
    assert photos.get("/collections/photos").json()["count"] == 0


def test_metrics_count_collections_and_items(photos: TestClient) -> None:
    upsert(photos, {"id": "a", "vector": unit(0)}, {"id": "b", "vector": unit(1)})
    answer = photos.post("/collections/photos/search", json={"queries": [{"vector": unit(0)}]})
    assert "search;dur=" in answer.headers["server-timing"]
    lines = photos.get("/metrics").text.splitlines()
    assert "clipworks_collections 1.0" in lines
    assert "clipworks_collection_items 2.0" in lines
    counts = {line.split()[0]: float(line.split()[1]) for line in lines if "stage_seconds_count" in line}
    assert counts['clipworks_stage_seconds_count{stage="search"}'] >= 1
    assert counts['clipworks_stage_seconds_count{stage="store"}'] >= 1
