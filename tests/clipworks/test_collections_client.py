"""Collections through both clients, against a real server; what they find is compared with numpy."""

import asyncio
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from clipworks import AsyncClient, Client, Item, RetryPolicy, errors

DIM = 32
Ask = Callable[..., Any]
_numbers = itertools.count()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(url, name, method, *args, client={...}, **kwargs): one method of a collection, of either kind of client."""

    def sync(url: str, name: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with Client(url, **(client or {})) as opened:
            answer = getattr(opened.collection(name), method)(*args, **kwargs)
            return list(answer) if method == "items" else answer

    def awaited(
        url: str, name: str, method: str, *args: Any, client: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, **(client or {})) as opened:
                answer = getattr(opened.collection(name), method)(*args, **kwargs)
                return [each async for each in answer] if method == "items" else await answer

        return asyncio.run(run())

    return sync if request.param == "sync" else awaited


@pytest.fixture
def name(server_url: str) -> str:
    """An empty collection that declares `year` as a number."""
    made = f"client-{next(_numbers)}"
    with Client(server_url) as client:
        client.create_collection(made, metadata_schema={"year": "number"})
    return made


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        Image.effect_noise((40 + index, 30), 20 * index + 10).save(path)
    return paths


def units(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pictures_are_stored_and_bad_ones_reported(ask: Ask, server_url: str, name: str, pictures: list[Path]) -> None:
    told: list[tuple[int, int]] = []
    given = [*pictures, pictures[0].with_name("missing.png"), b"no picture"]
    ids = [f"p/{index}" for index in range(7)]
    metadata = [{"year": 2000 + index} for index in range(4)] + [{"year": "x"}, {}, {}]
    result = ask(
        server_url,
        name,
        "upsert_images",
        given,
        ids=ids,
        metadata=metadata,
        progress=lambda done, total: told.append((done, total)),
        client={"batch_size": 2},
    )
    assert (result.upserted, result.ids) == (4, ids[:4])
    kinds = {index: type(error) for index, error in result.errors.items()}
    assert kinds == {4: errors.InvalidInput, 5: errors.UnreadableInput, 6: errors.InvalidInput}
    assert [result.errors[index].index for index in (4, 5, 6)] == [4, 5, 6]
    assert told[-1] == (7, 7)
    assert told == sorted(told)
    stored = ask(server_url, name, "get", "p/2", vector=True)
    with Client(server_url) as client:
        assert_array_equal(stored.vector, client.embed(images=[pictures[2]])[0])
    assert (stored.id, stored.metadata) == ("p/2", {"year": 2002})
    assert ask(server_url, name, "info").count == 4


def test_ids_of_pictures_are_their_paths(ask: Ask, server_url: str, name: str, pictures: list[Path]) -> None:
    assert ask(server_url, name, "upsert_images", pictures[:1]).ids == [str(pictures[0])]
    with pytest.raises(ValueError, match=r"images\[0\]: it has no path"):
        ask(server_url, name, "upsert_images", [b"bytes"])
    with pytest.raises(ValueError, match="expected one for each of 1 images, got 2"):
        ask(server_url, name, "upsert_images", pictures[:1], ids=["a", "b"])


def test_search_gives_what_numpy_gives(ask: Ask, server_url: str, name: str, pictures: list[Path]) -> None:
    rows = units(300)
    items = [Item(id=f"{index:03d}", vector=row, metadata={"year": index % 7}) for index, row in enumerate(rows)]
    assert ask(server_url, name, "upsert", items).upserted == 300
    with Client(server_url) as client:
        text, picture = client.embed(texts=["a red car"], images=[pictures[0]])
    both = text.astype(np.float64) - 0.5 * picture
    queries = [
        "a red car",
        pictures[0],
        {"id": "007"},
        rows[3].tolist(),
        {"vector": 5 * rows[4]},
        {"combine": ["a red car", {"image": pictures[0], "weight": -0.5}]},
    ]
    wanted = [text, picture, rows[7], rows[3], rows[4], both / np.linalg.norm(both)]
    # Small requests, several at a time: the answers must still stand in the order of the queries.
    found = ask(server_url, name, "search", queries, top_k=4, client={"batch_size": 2}, include=["vector"])
    for query, result, vector in zip(queries, found, wanted, strict=True):
        scores = rows @ np.asarray(vector, dtype=np.float32)
        order = [place for place in np.argsort(-scores) if query != {"id": "007"} or place != 7][:4]
        assert result.exact
        assert [hit.id for hit in result.hits] == [f"{place:03d}" for place in order]
        assert_allclose([hit.score for hit in result.hits], scores[order], atol=1e-5)
        assert_allclose(np.stack([hit.vector for hit in result.hits]), rows[order], atol=1e-6)
        assert [hit.metadata for hit in result.hits] == [{}] * 4
    best = (rows @ text)[3::7].argmax() * 7 + 3
    [filtered] = ask(server_url, name, "search", ["a red car"], top_k=1, filter={"year": 3})
    assert [(hit.id, hit.metadata, hit.vector) for hit in filtered.hits] == [(f"{best:03d}", {"year": 3}, None)]
    assert ask(server_url, name, "search", ["a red car"], min_score=0.999)[0].hits == []


def test_bad_queries_raise_or_are_reported(ask: Ask, server_url: str, name: str) -> None:
    with pytest.raises(errors.NotFound) as caught:
        ask(server_url, name, "search", ["x", {"id": "none"}])
    assert (caught.value.code, caught.value.param, caught.value.index) == ("item_not_found", "queries[1].id", 1)
    result = ask(server_url, name, "search", ["x", {"id": "none"}, b"none"], on_error="item", client={"batch_size": 2})
    assert sorted(result.errors) == [1, 2]
    assert [len(each.hits) for each in result.results] == [0, 0, 0]
    with pytest.raises(errors.InvalidInput, match=r"filter\.\$bad"):
        ask(server_url, name, "search", ["x"], filter={"$bad": 1})


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("one", "write"),
        ([], "at least one"),
        ([{"text": "a", "id": "b"}], r"queries\[0\]: expected exactly one of"),
        (["a", {"combine": []}], r"queries\[1\]: expected"),
        ([{"combine": [{"text": "a", "wieght": 1}]}], r"queries\[0\]\.combine\[0\]: .*weight"),
    ],
)
def test_wrong_queries_are_told_before_anything_is_sent(queries: Any, message: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises((ValueError, TypeError), match=message):
        client.collection("x").search(queries)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "at least one"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], r"items\[0\] and items\[1\] have the same id 'a'"),
        ([{"id": "a"}], r"items\[0\]: expected exactly one of"),
        ([{"id": "a", "text": "x", "vector": [1.0]}], r"items\[0\]: expected exactly one of"),
        ([{"id": "a", "txt": "x"}], "unknown txt"),
        ([{"text": "x"}], "has no id"),
        ([{"id": 3, "text": "x"}], "expected str, got int"),
    ],
)
def test_wrong_items_are_told_before_anything_is_sent(items: Any, message: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises((ValueError, TypeError), match=message):
        client.collection("x").upsert(items)


def test_an_item_that_cannot_be_written_spoils_no_other(ask: Ask, server_url: str, name: str) -> None:
    items = [
        {"id": "good", "text": "a"},
        {"id": "\ud800", "text": "a"},
        {"id": "nan", "text": "a", "metadata": {"x": float("nan")}},
        {"id": "set", "text": "a", "metadata": {"x": {1}}},
        {"id": "rows", "vector": [[1.0]]},
        {"id": "zero", "vector": [0.0] * DIM},
        {"id": "last", "vector": [1.0] * DIM},
    ]
    result = ask(server_url, name, "upsert", items)
    assert result.ids == ["good", "last"]
    assert [type(result.errors[index]) for index in range(1, 5)] == [errors.UnreadableInput] * 4
    assert isinstance(result.errors[5], errors.InvalidInput)


def test_items_come_page_by_page_and_are_deleted(ask: Ask, server_url: str, name: str) -> None:
    rows = units(100, seed=1)
    ids = [f"{index * 37 % 100}" for index in range(100)]
    items = [Item(id=id, vector=row, metadata={"year": int(id)}) for id, row in zip(ids, rows, strict=True)]
    assert ask(server_url, name, "upsert", items).upserted == 100
    listed = ask(server_url, name, "items", page=7, include=["vector"])
    assert [each.id for each in listed] == sorted(ids)
    assert_allclose(listed[0].vector, rows[ids.index("0")], atol=1e-6)
    assert ask(server_url, name, "delete", ["1", "2", "1", "none"]) == 2
    assert ask(server_url, name, "delete", filter={"year": {"$gte": 90}}) == 10
    assert len(ask(server_url, name, "items")) == 88
    with pytest.raises(ValueError, match="either ids or filter"):
        ask(server_url, name, "delete")


def test_a_server_with_smaller_limits_gets_smaller_requests(ask: Ask, server_url: str, name: str) -> None:
    texts = [{"id": str(index), "text": f"text {index}"} for index in range(300)]
    result = ask(server_url, name, "upsert", texts, client={"batch_size": 300})
    assert (result.upserted, result.errors) == (300, {})


@given(
    ids=st.lists(
        st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
@settings(max_examples=25)
def test_any_id_comes_back_as_it_went(server_url: str, ids: list[str]) -> None:
    with Client(server_url) as client:
        target = client.create_collection("any-ids")
        assert target.upsert([Item(id=id, vector=[1.0] * DIM) for id in ids]).ids == ids
        assert [target.get(id).id for id in ids] == ids
        assert target.delete(ids) == len(ids)


@pytest.mark.parametrize("id", [".", "..", "a/../b", "/", "//a", "a//", "%2F", "a?b#c", "ü/日本"])
def test_ids_that_look_like_paths(ask: Ask, server_url: str, name: str, id: str) -> None:
    ask(server_url, name, "upsert", [Item(id=id, vector=[1.0] * DIM)])
    assert ask(server_url, name, "get", id).id == id


def test_collections_are_made_listed_and_deleted(call: Callable[..., Any], server_url: str) -> None:
    name = f"made-{next(_numbers)}"
    index = {"kind": "sq8", "oversample": 8}
    call(server_url, "create_collection", name, model="tiny", index=index, metadata_schema={"a.b": "string"})
    call(server_url, "create_collection", name, model="tiny", index=index, metadata_schema={"a.b": "string"})
    [info] = [each for each in call(server_url, "collections") if each.name == name]
    assert (info.model, info.dim, info.index.oversample, info.metadata_schema) == ("tiny@1", DIM, 8, {"a.b": "string"})
    with pytest.raises(errors.Conflict):
        call(server_url, "create_collection", name, index="flat")
    call(server_url, "delete_collection", name)
    with pytest.raises(errors.NotFound) as caught:
        call(server_url, "delete_collection", name)
    assert caught.value.code == "collection_not_found"


def test_vectors_of_another_space_are_refused(ask: Ask, server_url: str, name: str) -> None:
    with pytest.raises(errors.Conflict) as caught:
        ask(server_url, name, "upsert", [Item(id="a", vector=[1.0] * DIM)], space="another")
    assert caught.value.code == "space_mismatch"
    with pytest.raises(errors.Conflict):
        ask(server_url, name, "search", [[1.0] * DIM], space="another")


def test_numpy_is_optional(server_url: str, name: str) -> None:
    program = f"""
import sys
sys.modules["numpy"] = None
from clipworks import Client
with Client({server_url!r}) as client:
    target = client.collection({name!r})
    target.upsert([{{"id": "a", "vector": [2.0] * {DIM}}}])
    [[hit]] = [each.hits for each in target.search([[1.0] * {DIM}], include=["vector"])]
    print(type(hit.vector).__name__, round(hit.vector[0] * {DIM} ** 0.5, 4))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["list", "1.0"]


@pytest.fixture
def busy_url() -> Iterator[tuple[str, list[float]]]:
    """A server that is full twice, then stores; and what it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            full = len(seen) < 3
            status = (429, 503)[len(seen) - 1] if full else 200
            error = {"message": "full", "type": "t", "code": "overloaded", "param": None}
            body = {"error": error} if full else {"upserted": 1, "data": [{"index": 0, "id": "a"}]}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_full_server_is_asked_again(ask: Ask, busy_url: tuple[str, list[Any]]) -> None:
    url, seen = busy_url
    patient = {"retry": RetryPolicy(attempts=3, first_pause_s=0.01)}
    assert ask(url, "x", "upsert", [{"id": "a", "text": "t"}], client=patient).ids == ["a"]
    assert seen == [{"on_error": "item", "items": [{"id": "a", "text": "t"}]}] * 3


def test_thumbnails(call: Callable[..., Any], ask: Ask, server_url: str, pictures: list[Path]) -> None:
    name = f"thumbnails-{next(_numbers)}"
    call(server_url, "create_collection", name, thumbnails=True)
    call(server_url, "create_collection", name, thumbnails=True)
    with pytest.raises(errors.Conflict):
        call(server_url, "create_collection", name)
    ids = ["x", "a/b c", "%2F", ".."]
    ask(server_url, name, "upsert", [Item(id=id, image=pictures[0]) for id in ids])
    for id in ids:
        image = Image.open(BytesIO(ask(server_url, name, "thumbnail", id)))
        assert (image.format, max(image.size) <= 256) == ("WEBP", True)
    assert ask(server_url, name, "info").thumbnails.count == len(ids)
    with pytest.raises(errors.NotFound) as caught:
        ask(server_url, name, "get", "x/thumbnail")
    assert caught.value.code == "item_not_found"
    ask(server_url, name, "upsert", [Item(id="x/thumbnail", vector=[1.0] * DIM)])
    assert ask(server_url, name, "get", "x/thumbnail").id == "x/thumbnail"
    with pytest.raises(errors.BadAnswer, match="is there an item of the id 'x/thumbnail'"):
        ask(server_url, name, "thumbnail", "x")
    for id, code in (("x/thumbnail", "thumbnail_not_found"), ("nobody", "item_not_found")):
        with pytest.raises(errors.NotFound) as caught:
            ask(server_url, name, "thumbnail", id)
        assert caught.value.code == code
