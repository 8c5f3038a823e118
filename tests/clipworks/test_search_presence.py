"""How likely hits are right, and whether anything matches: by both clients and by the command line."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipworks import AsyncClient, Client, errors
from clipworks.results import Hits
from model_store.manifest import SearchCalibration
from model_store.seal import write_manifest
from model_store.search_presence import evidence, hit_probabilities, match_probability, neutral_mean
from model_store.store import Store
from tests.stores import SHOP_STORE, TINY_STORE

Cli = Callable[..., tuple[int, str, str]]
Search = Callable[..., Any]
CURVES = SearchCalibration(
    neutral_texts=("shoes", "bag"), hit_slope=9, hit_offset=-2, match_slope=7, match_offset=-1, threshold=0.3
)
TEXTS = {"shirt": "a blue shirt", "watch": "a watch", "jeans": "black jeans"}
WORDS = "a red shirt"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presence") / "store"
    shutil.copytree(SHOP_STORE, folder)
    shutil.copytree(TINY_STORE / "tiny", folder / "tiny")
    shop = Store(folder, builtin=False).open("fashion-small")
    write_manifest(shop.folder, shop.manifest.model_copy(update={"search": CURVES}))
    return folder


@pytest.fixture(scope="module")
def url(serving: Callable[..., AbstractContextManager[str]], store: Path) -> Iterator[str]:
    with serving("--store", store, "--model", "fashion-small", "--data", "memory") as found, Client(found) as client:
        target = client.create_collection("things")
        target.upsert([{"id": id, "text": text} for id, text in TEXTS.items()])
        yield found


@pytest.fixture(params=["sync", "async"])
def search(request: pytest.FixtureRequest, url: str) -> Search:
    """search(queries, client={...}, **options) of either kind of client."""

    def sync(queries: list[str], *, client: dict[str, Any] | None = None, **options: Any) -> list[Hits]:
        with Client(url, **(client or {})) as opened:
            return opened.collection("things").search(queries, **options)

    def awaited(queries: list[str], *, client: dict[str, Any] | None = None, **options: Any) -> list[Hits]:
        async def run() -> list[Hits]:
            async with AsyncClient(url, **(client or {})) as opened:
                return await opened.collection("things").search(queries, **options)

        return asyncio.run(run())

    return sync if request.param == "sync" else awaited


def test_both_clients_tell_it(search: Search, url: str) -> None:
    with Client(url) as client:
        vectors = client.embed(texts=[WORDS, *TEXTS.values(), *CURVES.neutral_texts])
    query, rows, neutral = vectors[0], vectors[1:4], neutral_mean(vectors[4:])
    known = dict(zip(TEXTS, evidence(rows, query, neutral), strict=True))
    [found] = search([WORDS], presence={})
    assert found.match is not None
    assert found.match.probability == pytest.approx(match_probability(np.array([*known.values()]), CURVES), abs=1e-5)
    assert (found.match.threshold, found.match.good) == (0.3, found.match.probability >= 0.3)
    for hit in found.hits:
        assert hit.presence == pytest.approx(hit_probabilities(np.array([known[hit.id]]), CURVES)[0], abs=1e-5)
    [found] = search([WORDS], presence={"threshold": 0.999})
    assert found.match is not None
    assert (found.match.threshold, found.match.good) == (0.999, False)
    [found] = search([WORDS])
    assert found.match is None
    assert found.hits[0].presence is None
    many = search([WORDS, "watch", WORDS], presence={}, client={"batch_size": 2})
    assert many[0] == many[2] != many[1]
    with pytest.raises(TypeError, match=r"presence: expected \{'threshold': ...\}, got True"):
        search([WORDS], presence=True)
    with pytest.raises(errors.InvalidInput, match=r"threshold"):
        search([WORDS], presence={"threshold": 7})


def test_the_command_line_tells_it(cli: Cli, url: str, tmp_path: Path) -> None:
    words = ("search", WORDS, "-c", "things", "--url", url)
    code, out, err = cli(*words, "--json", "--presence")
    said = json.loads(out)
    assert (code, said["match"]["threshold"]) == (0, 0.3)
    code, out, err = cli(*words, "--presence")
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["#", "score", "presence", "id", "metadata"]
    assert [line[2] for line in lines[1:]] == [f"{hit['presence']:.2f}" for hit in said["hits"]]
    told = f"that anything shows it has the probability {said['match']['probability']:.2f}"
    assert " ".join(err.split()) == told
    code, out, err = cli(*words, "--presence-threshold", "1")
    assert " ".join(err.split()) == f"no good match: {told}, below 1.00"
    code, out, _ = cli(*words, "--json")
    assert (code, "match" in json.loads(out), "presence" in json.loads(out)["hits"][0]) == (0, False, False)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    code, out, err = cli("search", tmp_path / "red.png", "-c", "things", "--url", url, "--presence")
    assert (code, out.splitlines()[0]) == (0, "#\tscore\tid\tmetadata")
    assert "no probabilities: --presence is of words alone" in " ".join(err.split())


def test_a_model_without_curves_is_named(cli: Cli, server_url: str) -> None:
    with Client(server_url) as client:
        client.create_collection("uncalibrated").upsert([{"id": "a", "text": "a dog"}])
    code, _, err = cli("search", "dog", "-c", "uncalibrated", "--url", server_url, "--presence")
    assert code != 0
    assert "tiny@1 was not calibrated for searches" in " ".join(err.split())
