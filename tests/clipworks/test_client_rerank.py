"""rerank by both clients and by the command line, over an application in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from clipworks import AsyncClient, errors
from clipworks.results import RankedDocument
from service.app import create_app
from service.settings import Settings
from tests.service.http.rerank_truth import Truth, mosaic

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, the colour model, and `judge`, a reranker behind it."""
    pytest.importorskip("onnx")
    from tests.service.http import colour_model, rerank_model

    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("rerank") / "store"))
    colour_model.publish(folder, "colours")
    rerank_model.publish(folder, "judge")
    return folder


@pytest.fixture(scope="module")
def truth(store: Path) -> Truth:
    from model_store.store import Store

    return Truth(Store(store, builtin=False).open("judge"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        (folder / f"{seed}.png").write_bytes(mosaic(seed))
    return sorted(folder.iterdir())


def best_first(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def test_the_client_puts_answers_of_several_requests_in_one_order(store: Path, truth: Truth, paths: list[Path]) -> None:
    scores = [truth.score(path.read_bytes(), "blue and red") for path in paths]
    texts = ["red", "green", "blue, or no red", "blue blue"]
    of_texts = [truth.score(paths[0].read_bytes(), text) for text in texts]
    app = create_app(
        Settings(
            store=store,
            builtin=False,
            data=None,
            probe=False,
            access_log=False,
            model="judge",
            extra_models=("colours",),
        )
    )

    async def run() -> None:
        client = AsyncClient("http://here", transport=httpx2.ASGITransport(app=app), batch_size=2)
        found = await client.rerank("blue and red", paths)
        assert [each.index for each in found] == best_first(scores)
        assert [each.score for each in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        assert await client.rerank("blue and red", [path.read_bytes() for path in paths], top_n=2) == found[:2]
        found = await client.rerank(paths[0], texts, model="judge@1")
        assert [each.index for each in found] == best_first(of_texts)
        assert isinstance(found[0], RankedDocument)
        broken = [paths[0], b"QUJD", paths[1], paths[0].parent / "gone.png"]
        result = await client.rerank("red", broken, on_error="item")
        assert {each.index for each in result.documents} == {0, 2}
        assert {index: type(error) for index, error in result.errors.items()} == {
            1: errors.InvalidInput,
            3: errors.UnreadableInput,
        }
        assert result.identity
        assert result.identity.model == "judge@1"
        with pytest.raises(errors.InvalidInput) as failed:
            await client.rerank("red", [paths[0], paths[1], paths[2], b"QUJD"])
        assert failed.value.index == 3
        with pytest.raises(errors.UnreadableInput, match="query: .*gone"):
            await client.rerank(paths[0].parent / "gone.png", texts)
        with pytest.raises(ValueError, match="at least one document"):
            await client.rerank("red", [])
        with pytest.raises(errors.InvalidInput, match="judge@1"):
            await client.rerank("red", paths, model="colours")

        target = await client.create_collection("kept", model="colours", rerank="judge")
        await target.upsert_images(paths, ids=[path.name for path in paths])
        info = await target.info()
        assert info.rerank
        assert (info.rerank.model, info.rerank.count) == ("judge@1", len(paths))
        [plain] = await target.search(["blue and red"])
        [hits] = await target.search(["blue and red"], rerank={"top": 3})
        assert hits.reranked == 3
        first = sorted(plain.hits[:3], key=lambda hit: -scores[int(hit.id[0])])
        assert [hit.id for hit in hits.hits] == [hit.id for hit in (*first, *plain.hits[3:])]
        assert [hit.rerank_score is None for hit in hits.hits] == [False] * 3 + [True] * 2
        many = await target.search(["red"] * 12, rerank={"model": "judge", "top": 90})
        assert len({hits.hits[0].id for hits in many}) == 1, "in requests that the server takes"
        with pytest.raises(TypeError, match="rerank: expected"):
            await target.search(["red"], rerank=100)  # type: ignore[arg-type]

    with TestClient(app) as ready:
        while ready.get("/readyz").status_code != 200:
            pass
        assert ready.portal
        ready.portal.call(run)


def test_the_command_line_reranks(cli: Cli, store: Path, truth: Truth, paths: list[Path]) -> None:
    scores = [truth.score(path.read_bytes(), "blue and red") for path in paths]
    where = ("--store", store, "--model", "judge")
    code, out, err = cli("rerank", "blue and red", paths[0].parent, paths[0].parent / "gone.png", "-n", "3", *where)
    assert code == 1, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0] == ["#", "score", "image"]
    assert [row[2] for row in rows[1:]] == [str(paths[index]) for index in best_first(scores)[:3]]
    assert "gone.png" in err
    code, out, _ = cli("rerank", paths[0], "red", "green", "--json", *where)
    of_texts = [truth.score(paths[0].read_bytes(), text) for text in ("red", "green")]
    shown = json.loads(out)
    assert (code, shown["model"]) == (0, "judge@1")
    assert [each["document"] for each in shown["results"]] == [("red", "green")[i] for i in best_first(of_texts)]

    where = ("--store", store, "--model", "colours")
    code, _, err = cli("index", paths[0].parent, "-c", "kept", "--rerank", "judge", *where)
    assert code == 0, err
    code, _, err = cli("index", paths[0].parent, "-c", "kept", *where)
    assert code == 0, err  # the reranker need not be loaded for that
    code, out, err = cli("search", "blue and red", "-c", "kept", "--rerank", "judge", "--rerank-top", "2", *where)
    assert code == 0, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0][:4] == ["#", "score", "match", "id"]
    matched = [row[2] for row in rows[1:]]
    assert matched == [*sorted(matched[:2], reverse=True), "", "", ""]
    names = [Path(row[3]).name for row in rows[1:3]]
    scores = [truth.score((paths[0].parent / name).read_bytes(), "blue and red") for name in names]
    assert [float(shown) for shown in matched[:2]] == pytest.approx(scores, abs=1e-3), "kept in half precision"
