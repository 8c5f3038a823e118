"""Search over HTTP against numpy: every kind of query, filters, pages of hits, and what is refused."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from clipworks import schemas

DIM, ROWS = 32, 300
COLOURS = ("red", "green", "blue")


class Indexed:
    """A collection, and the same rows in numpy."""

    def __init__(self, client: TestClient, pictures: list[bytes]) -> None:
        self.client = client
        self.pictures = pictures
        rng = np.random.default_rng(0)
        raw = rng.standard_normal((ROWS, DIM))
        raw[ROWS // 2] = raw[0]  # equal scores: the id decides
        self.vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        self.ids = [f"row/{n:03}" for n in range(ROWS)]
        self.metadata = [{"n": n, "colour": COLOURS[n % 3], "even": n % 2 == 0} for n in range(ROWS)]
        rows = zip(self.ids, raw, self.metadata, strict=True)
        items = [{"id": id, "vector": row.tolist(), "metadata": data} for id, row, data in rows]
        client.put("/collections/numbers", json={"metadata_schema": {"n": "number"}}).raise_for_status()
        client.post("/collections/numbers/items", json={"items": items}).raise_for_status()

    def search(self, *queries: object, **more: object) -> list[dict[str, Any]]:
        answer = self.client.post("/collections/numbers/search", json={"queries": queries, **more})
        assert answer.status_code == 200, answer.text
        schemas.SearchResponse.model_validate_json(answer.content)
        return answer.json()["results"]

    def refused(self, *queries: object, **more: object) -> tuple[int, str, str | None]:
        answer = self.client.post("/collections/numbers/search", json={"queries": queries, **more})
        found = answer.json()["error"]
        return answer.status_code, found["code"], found["param"]

    def embed(self, given: object) -> np.ndarray:
        answer = self.client.post("/embed", json={"inputs": [given]}).raise_for_status()
        return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)

    def expect(self, hits: list[dict[str, Any]], query: np.ndarray, rows: list[int], *, top_k: int = 10) -> None:
        """`hits` are the best of `rows` for `query`, by brute force."""
        scores = self.vectors.astype(np.float64) @ (query / np.linalg.norm(query)).astype(np.float64)
        best = sorted(rows, key=lambda row: (-np.float32(scores[row]), self.ids[row]))[:top_k]
        assert [hit["id"] for hit in hits] == [self.ids[row] for row in best]
        np.testing.assert_allclose([hit["score"] for hit in hits], scores[best], atol=2e-6)


ALL = list(range(ROWS))


@pytest.fixture(scope="module")
def indexed(make_client: Callable[..., TestClient], make_picture: Callable[..., bytes]) -> Iterator[Indexed]:
    return Indexed(make_client(), [make_picture("PNG", 40, 30, seed=seed) for seed in range(3)])


def base64_of(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def test_vectors_in_one_batch(indexed: Indexed) -> None:
    raw = np.random.default_rng(1).standard_normal((40, DIM)) * np.logspace(-20, 20, 40)[:, None]
    queries = [{"vector": row.tolist()} if n % 2 else {"vector": base64_of(row)} for n, row in enumerate(raw)]
    results = indexed.search(*queries)
    assert [each["index"] for each in results] == list(range(40))
    for row, result in zip(raw, results, strict=True):
        assert result["exact"] is True
        indexed.expect(result["hits"], row, ALL)
        assert all(hit["metadata"] == indexed.metadata[int(hit["id"][4:])] for hit in result["hits"])


def test_texts_and_images_in_one_batch(indexed: Indexed) -> None:
    pictures = [base64.b64encode(each).decode() for each in indexed.pictures]
    queries = ["a red shoe", {"text": "a cat"}, *({"image": each} for each in pictures), "a red shoe"]
    results = indexed.search(*queries)
    for query, result in zip(queries, results, strict=True):
        indexed.expect(result["hits"], indexed.embed(query), ALL)


def test_a_stored_id_does_not_return_itself(indexed: Indexed) -> None:
    results = indexed.search({"id": "row/007"}, {"id": "row/000"}, top_k=5)
    indexed.expect(results[0]["hits"], indexed.vectors[7], [row for row in ALL if row != 7], top_k=5)
    indexed.expect(results[1]["hits"], indexed.vectors[0], [row for row in ALL if row != 0], top_k=5)
    assert results[1]["hits"][0]["score"] == pytest.approx(1, abs=1e-6)  # its twin


def test_equal_scores_are_by_id(indexed: Indexed) -> None:
    hits = indexed.search({"vector": indexed.vectors[0].tolist()}, top_k=2)[0]["hits"]
    assert [hit["id"] for hit in hits] == ["row/000", f"row/{ROWS // 2}"]
    assert hits[0]["score"] == hits[1]["score"]


def test_combinations(indexed: Indexed) -> None:
    """Each part has length 1 before its weight, also a given vector that is long."""
    image = {"image": base64.b64encode(indexed.pictures[0]).decode()}
    long = (1000 * indexed.vectors[9]).tolist()
    cases: list[tuple[list[dict[str, Any]], list[tuple[float, np.ndarray]]]] = [
        ([image, {"text": "at night"}], [(1, indexed.embed(image)), (1, indexed.embed("at night"))]),
        (
            [{"text": "a cat", "weight": 2}, {"id": "row/003", "weight": -0.75}],
            [(2, indexed.embed("a cat")), (-0.75, indexed.vectors[3])],
        ),
        (
            [{"id": "row/003", "weight": -1}, {"id": "row/004"}, {"vector": long, "weight": 0.5}],
            [(-1, indexed.vectors[3]), (1, indexed.vectors[4]), (0.5, indexed.vectors[9])],
        ),
        ([{"id": "row/003", "weight": -2}], [(-1, indexed.vectors[3])]),
        (
            [{"id": "row/005", "weight": 1e300}, {"id": "row/006", "weight": -1e300}],
            [(1, indexed.vectors[5]), (-1, indexed.vectors[6])],
        ),
    ]
    results = indexed.search(*({"combine": parts} for parts, _ in cases))
    for (parts, terms), result in zip(cases, results, strict=True):
        named = {int(part["id"][4:]) for part in parts if "id" in part}
        query = np.sum([weight * vector.astype(np.float64) for weight, vector in terms], axis=0)
        indexed.expect(result["hits"], query, [row for row in ALL if row not in named])


@pytest.mark.parametrize(
    "parts",
    [
        [{"text": "a cat"}, {"text": "a cat", "weight": -1}],
        [{"id": "row/001", "weight": 3}, {"id": "row/001", "weight": -3}],
        [{"id": "row/001", "weight": 0}],
    ],
)
def test_a_combination_that_leaves_nothing_is_refused(indexed: Indexed, parts: list[object]) -> None:
    assert indexed.refused("a dog", {"combine": parts}) == (422, "no_direction", "queries[1].combine")


FILTERS: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
    ({"colour": "red"}, lambda n: n % 3 == 0),
    ({"n": {"$gte": 10, "$lt": 20}}, lambda n: 10 <= n < 20),
    ({"even": True, "colour": {"$ne": "red"}}, lambda n: n % 2 == 0 and n % 3 != 0),
    ({"$or": [{"n": 5}, {"n": {"$in": [6, 700]}}]}, lambda n: n in (5, 6)),
    ({"$not": {"colour": {"$in": ["red", "green"]}}}, lambda n: n % 3 == 2),
    ({"even": 1}, lambda n: False),
    ({"none": {"$exists": False}, "n": 4}, lambda n: n == 4),
    ({}, lambda n: True),
]


@pytest.mark.parametrize(("filter", "keeps"), FILTERS)
def test_filters(indexed: Indexed, filter: dict[str, Any], keeps: Callable[[int], bool]) -> None:
    query = np.random.default_rng(2).standard_normal(DIM)
    hits = indexed.search({"vector": query.tolist()}, filter=filter, top_k=20)[0]["hits"]
    indexed.expect(hits, query, [n for n in ALL if keeps(n)], top_k=20)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    top_k=st.integers(1, 40),
    offset=st.integers(0, 40),
    least=st.none() | st.floats(-0.5, 0.5),
    low=st.integers(0, ROWS),
)
def test_pages_of_hits_against_numpy(
    indexed: Indexed, seed: int, top_k: int, offset: int, least: float | None, low: int
) -> None:
    query = np.random.default_rng(seed).standard_normal(DIM)
    scores = indexed.vectors @ (query / np.linalg.norm(query)).astype(np.float32)
    if least is not None and np.abs(scores - least).min() < 1e-6:
        return  # on the edge, one rounding decides
    more: dict[str, Any] = {"top_k": top_k, "offset": offset, "filter": {"n": {"$gte": low}}}
    hits = indexed.search({"vector": query.tolist()}, min_score=least, **more)[0]["hits"]
    rows = [n for n in ALL if n >= low and (least is None or scores[n] > least)]
    best = sorted(rows, key=lambda row: (-scores[row], indexed.ids[row]))[offset : offset + top_k]
    indexed.expect(hits, query, best, top_k=top_k)


def test_what_an_answer_includes(indexed: Indexed) -> None:
    query = {"vector": indexed.vectors[3].tolist()}
    assert set(indexed.search(query, top_k=1)[0]["hits"][0]) == {"id", "score", "metadata"}
    assert set(indexed.search(query, top_k=1, include=[])[0]["hits"][0]) == {"id", "score"}
    both = indexed.search(query, top_k=3, include=["vector", "metadata"])[0]["hits"]
    for hit in both:
        assert hit["vector"] == pytest.approx(indexed.vectors[int(hit["id"][4:])].tolist(), abs=1e-6)
    packed = indexed.search(query, top_k=3, include=["vector"], encoding_format="base64")[0]["hits"]
    assert [np.frombuffer(base64.b64decode(hit["vector"]), "<f4").tolist() for hit in packed] == [
        pytest.approx(hit["vector"], abs=1e-7) for hit in both
    ]


def test_the_model_is_named_when_there_was_something_to_encode(indexed: Indexed) -> None:
    path = "/collections/numbers/search"
    by_text = indexed.client.post(path, json={"queries": ["a"]})
    assert (by_text.json()["model"], "x-model-fingerprint" in by_text.headers) == ("tiny@1", True)
    by_id = indexed.client.post(path, json={"queries": [{"id": "row/001"}]})
    assert (by_id.json()["model"], "x-model-fingerprint" in by_id.headers) == (None, False)
    space = indexed.client.get("/collections/numbers").json()["space"]
    assert by_text.json()["space"] == by_id.json()["space"] == space
    assert indexed.search({"id": "row/001"}, space=space, model="tiny@1")


def test_files_and_raw_images_are_queries(indexed: Indexed) -> None:
    path = "/collections/numbers/search"
    files = [
        ("image", ("a", indexed.pictures[1])),
        ("request", (None, '{"queries": ["a cat"], "filter": {"colour": "red"}}')),
        ("top_k", (None, "3")),
        ("include", (None, "metadata,vector")),
        ("image", ("b", indexed.pictures[2])),
    ]
    results = indexed.client.post(path, files=files).json()["results"]
    queries = [indexed.embed("a cat")]
    queries += [indexed.embed({"image": base64.b64encode(each).decode()}) for each in indexed.pictures[1:]]
    for query, result in zip(queries, results, strict=True):
        indexed.expect(result["hits"], query, ALL[::3], top_k=3)
        assert len(result["hits"][0]["vector"]) == DIM
    query = "?top_k=4&offset=1&min_score=-1&include=metadata"
    raw = indexed.client.post(path + query, content=indexed.pictures[1], headers={"Content-Type": "image/png"})
    scores = indexed.vectors @ queries[1]
    best = sorted(ALL, key=lambda row: -scores[row])[1:5]
    indexed.expect(raw.json()["results"][0]["hits"], queries[1], best)


def test_a_bad_query(indexed: Indexed) -> None:
    """With "fail" it decides the answer; with "item" it has its own, and the others are what they were."""
    vector = {"vector": indexed.vectors[2].tolist()}
    bad: list[tuple[object, int, str, str]] = [
        ({"id": "none"}, 404, "item_not_found", ".id"),
        ({"id": "a\n"}, 422, "invalid_item", ".id"),
        ({"vector": [1.0]}, 422, "invalid_vector", ".vector"),
        ({"vector": [0.0] * DIM}, 422, "no_direction", ".vector"),
        ({"vector": "AAAA"}, 422, "invalid_vector", ".vector"),
        ({"image": "AAAA"}, 422, "unsupported_image", ".image"),
        ({"image_url": "https://example.com/x.jpg"}, 403, "url_fetch_disabled", ".image_url"),
        ("x" * 200_000, 422, "invalid_text", ""),
        ({"combine": [{"text": "a"}, {"id": "none"}]}, 404, "item_not_found", ".combine[1].id"),
        ({"combine": [{"image": "*"}, {"id": "none"}]}, 422, "invalid_image", ".combine[0].image"),
        ({"combine": [{"id": "row/001"}, {"vector": [1]}]}, 422, "invalid_vector", ".combine[1].vector"),
    ]
    alone = indexed.search(vector, "a cat")
    for query, status, code, place in bad:
        assert indexed.refused(vector, query, "a cat") == (status, code, f"queries[1]{place}")
    results = indexed.search(vector, *(query for query, *_ in bad), "a cat", on_error="item")
    assert [each.get("hits") for each in (results[0], results[-1])] == [each["hits"] for each in alone]
    for index, (_, _, code, place) in enumerate(bad, 1):
        assert results[index]["index"] == index
        assert (results[index]["error"]["code"], results[index]["error"]["param"]) == (code, f"queries[{index}]{place}")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "invalid_field", "queries"),
        ({"queries": []}, "invalid_field", "queries"),
        ({"queries": [1]}, "invalid_field", "queries[0]"),
        ({"queries": [{"combine": []}]}, "invalid_field", "queries[0].combine"),
        ({"queries": [{"combine": [{"combine": []}]}]}, "invalid_field", "queries[0]"),
        ({"queries": [{"id": "a", "text": "b"}]}, "invalid_field", "queries[0]"),
        ({"queries": ["a"], "top_k": 0}, "invalid_field", "top_k"),
        ({"queries": ["a"], "offset": -1}, "invalid_field", "offset"),
        ({"queries": ["a"], "include": ["score"]}, "invalid_field", "include[0]"),
        ({"queries": ["a"], "filter": []}, "invalid_field", "filter"),
        ({"queries": ["a"], "filter": {"n": {"$near": 1}}}, "invalid_filter", "filter.n.$near"),
        ({"queries": ["a"], "filter": {"$and": [{"n": 1}, {"$or": []}]}}, "invalid_filter", "filter.$and[1].$or"),
    ],
)
def test_a_wrong_search(indexed: Indexed, body: dict[str, Any], code: str, param: str) -> None:
    answer = indexed.client.post("/collections/numbers/search", json=body)
    assert answer.status_code == 422, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param), answer.text
