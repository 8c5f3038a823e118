"""One artifact in this process, through its server and through OpenAI's dialects: the same vectors."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipworks.client import Client
from evaluation.encoder import (
    ArtifactEncoder,
    DenseEncoder,
    DenseServerEncoder,
    Dialect,
    Encoder,
    OpenAIEncoder,
    ServerEncoder,
    open_artifact,
    open_server,
    png,
)
from evaluation.locating import Label
from evaluation.probes.pool import PoolSize
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.palette import COLOURS, SHAPES
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.suites import Suite, run
from model_store.errors import ArtifactNotFound
from model_store.golden import GOLDEN_TEXTS, Goldens
from model_store.modality.image import prepare_dense
from model_store.presence import presence_of
from model_store.session import SessionSettings
from model_store.store import Artifact, Store, file_entries
from model_store.towers import open_dense_tower

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
READY_S = 60
TEXTS = ("a red circle", "there is no blue square", "a red circle")


@pytest.fixture(scope="module")
def encoder() -> ArtifactEncoder:
    return open_artifact(Store(TINY_STORE, builtin=False).open("tiny"))


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return [render(sample(seed, SceneConfig()), size_px).image for seed, size_px in ((0, 48), (1, 96), (2, 130))]


@pytest.fixture(scope="module")
def server_url(serving: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """Address of `clipworks serve` with the tiny model, ready; its port is the one it prints."""
    with serving("--store", TINY_STORE, "--model", "tiny", start_s=READY_S) as url:
        yield url


def test_an_artifact_gives_its_golden_vectors_as_unit_rows(encoder: ArtifactEncoder) -> None:
    artifact = Store(TINY_STORE, builtin=False).open("tiny")
    goldens = Goldens(artifact)
    kept = [case for case in goldens.cases.images if case.raises is None]
    for found, stored in (
        (encoder.encode_images([artifact.read(case.file) for case in kept]), goldens.arrays["image_embeds"]),
        (encoder.encode_texts(list(GOLDEN_TEXTS)), goldens.arrays["text_embeds"]),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found, stored / np.linalg.norm(stored, axis=1, keepdims=True), atol=1e-5)


def test_an_array_and_its_png_are_one_picture(encoder: ArtifactEncoder, pictures: list[NDArray[np.uint8]]) -> None:
    found = encoder.encode_images([*pictures, *(png(picture) for picture in pictures)])
    np.testing.assert_array_equal(found[:3], found[3:])


def test_more_inputs_than_a_batch_keep_their_order(encoder: ArtifactEncoder) -> None:
    texts = [f"{number} circles" for number in range(70)]
    found = encoder.encode_texts(texts)
    np.testing.assert_allclose(found[69], encoder.encode_texts(texts[69:])[0], atol=1e-6)
    assert found.shape == (70, 32)


def without_grid(root: Path) -> Artifact:
    """The tiny artifact as version 2, without its dense role."""
    shutil.copytree(TINY_STORE, root)
    store = Store(root, builtin=False)
    tiny = store.open("tiny@1")
    with store.staging() as folder:
        shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
        for name in ("manifest.json", "dense_encoder.fp32.onnx"):
            (folder / name).unlink()
        graphs = tuple(graph for graph in tiny.manifest.graphs if graph.role != "dense_encoder")
        changes = {"version": 2, "graphs": graphs, "dense": None, "files": file_entries(folder)}
        return store.publish(folder, tiny.manifest.model_copy(update=changes))


def test_an_encoder_without_a_grid_is_no_dense_encoder(tmp_path: Path) -> None:
    encoder = open_artifact(without_grid(tmp_path / "store"))
    assert isinstance(encoder, Encoder)
    assert not isinstance(encoder, DenseEncoder)
    assert encoder.image_px == 48


def projections(
    encoder: ArtifactEncoder, picture: NDArray[np.uint8], prompts: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """Maps by the formula of docs/localize.md: un-normalised cells on each text, less the mean of the other texts."""
    artifact = Store(TINY_STORE, builtin=False).open("tiny")
    presence, spec = presence_of(artifact), artifact.dense_spec
    assert spec is not None
    prepared = prepare_dense(Image.fromarray(picture), spec)
    positions = open_dense_tower(artifact, "fp32", SessionSettings())(prepared[None]).positions[0]
    texts = [encoder.encode_texts(each).astype(np.float64).mean(axis=0) for each in prompts]
    units = [text / np.linalg.norm(text) for text in texts]
    everything = [*units, *encoder.encode_texts(presence.neutral_texts).astype(np.float64)]
    others = [np.mean([one for one in everything if one is not unit], axis=0) for unit in units]
    return np.stack([positions @ (unit - other) for unit, other in zip(units, others, strict=True)])


@pytest.mark.parametrize("door", ["artifact", "server"])
def test_places_are_projections_less_the_other_labels(
    encoder: ArtifactEncoder, pictures: list[NDArray[np.uint8]], server_url: str, door: str
) -> None:
    wide = np.ascontiguousarray(np.hstack([pictures[1], pictures[1][:, :40]]))
    names = ["red circle", "blue square", "green star"]
    said = [[template.format(name) for template in encoder.templates or ()] for name in names]
    with Client(server_url) as client:
        asked = encoder if door == "artifact" else open_server(client)
        assert isinstance(asked, DenseEncoder)
        found = asked.locate([wide, png(pictures[2])], [Label(name) for name in names])
        named = asked.locate([wide], [Label("first", ("red circle",)), Label("blue square")], boxes=False)[0]
    for one, picture in zip(found, (wide, pictures[2]), strict=True):
        np.testing.assert_allclose(one.maps, projections(encoder, picture, said), atol=2e-5)
        assert (one.height, one.width) == picture.shape[:2]
        assert [len(boxes) > 0 for boxes in one.boxes] == [True] * 3
        for boxes, score in zip(one.boxes, one.scores, strict=True):
            assert boxes[0, 4] == pytest.approx(score)
    rows, columns = found[0].grid
    assert columns > rows
    assert named.boxes == ()
    np.testing.assert_allclose(named.maps, projections(encoder, wide, [["red circle"], said[1]]), atol=2e-5)


def test_a_server_and_its_artifact_say_the_same_places(
    encoder: ArtifactEncoder, pictures: list[NDArray[np.uint8]], server_url: str
) -> None:
    labels = [Label(f"{colour} {shape}") for colour in COLOURS for shape in SHAPES]
    assert isinstance(encoder, DenseEncoder)
    with Client(server_url) as client:
        asked = DenseServerEncoder(client, maps_per_request=60)  # 64 labels: two requests
        for picture in pictures:
            (here,), (there,) = (each.locate([picture], labels, short_px=64) for each in (encoder, asked))
            np.testing.assert_allclose(there.maps, here.maps, atol=1e-6)
            np.testing.assert_allclose(there.scores, here.scores, atol=1e-6)
            assert there.threshold == here.threshold
            for one, other in zip(here.boxes, there.boxes, strict=True):
                np.testing.assert_allclose(other, one, atol=1e-4)
        with pytest.raises(ValueError, match="2 labels of 1 names"):
            asked.locate(pictures[:1], labels[:1] * 2)


def test_nothing_to_encode_is_refused(encoder: ArtifactEncoder) -> None:
    with pytest.raises(ValueError, match="nothing to encode"):
        encoder.encode_texts([])


def test_a_precision_that_was_not_built_is_refused() -> None:
    with pytest.raises(ArtifactNotFound, match="fp16"):
        open_artifact(Store(TINY_STORE, builtin=False).open("tiny"), precision="fp16")


def test_a_server_gives_the_artifacts_vectors_and_identity(
    encoder: ArtifactEncoder, pictures: list[NDArray[np.uint8]], server_url: str
) -> None:
    with Client(server_url) as client:
        served = ServerEncoder(client)
        np.testing.assert_allclose(served.encode_images(pictures), encoder.encode_images(pictures), atol=1e-5)
        np.testing.assert_allclose(served.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)
    assert isinstance(served, Encoder)
    assert served.space == encoder.space
    assert served.fingerprint.split(", build")[0] == encoder.fingerprint.split(", build")[0]
    assert served.image_px == 48
    assert served.templates == encoder.templates
    assert encoder.templates


@pytest.mark.parametrize("dialect", ["jina", "infinity"])
def test_both_dialects_give_the_artifacts_vectors(
    encoder: ArtifactEncoder, pictures: list[NDArray[np.uint8]], server_url: str, dialect: Dialect
) -> None:
    asked = OpenAIEncoder(f"{server_url}/v1", "tiny", dialect=dialect)
    try:
        np.testing.assert_allclose(asked.encode_images(pictures), encoder.encode_images(pictures), atol=1e-5)
        np.testing.assert_allclose(asked.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)
    finally:
        asked.close()


def foreign(status: int, body: str) -> httpx2.MockTransport:
    """Somebody else's endpoint that always answers this."""
    return httpx2.MockTransport(lambda request: httpx2.Response(status, text=body))


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "no key", "status 401: no key"),
        (200, "<html>", "not a list of embeddings"),
        (200, json.dumps({"data": [{"index": 0}]}), "not a list of embeddings"),
        (200, json.dumps({"data": [{"index": 0, "embedding": [1.0]}]}), "expected 3 vectors"),
    ],
)
def test_an_endpoint_that_speaks_otherwise_is_named(status: int, body: str, message: str) -> None:
    asked = OpenAIEncoder("http://models.test/v1", "m", dialect="jina", transport=foreign(status, body))
    with pytest.raises(ConnectionError, match=message):
        asked.encode_texts(TEXTS)


def test_rows_are_put_in_the_order_of_their_index_and_pictures_sent_as_the_dialect_wants() -> None:
    seen: list[dict[str, object]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        assert request.headers["authorization"] == "Bearer secret"
        assert request.url.path == "/v1/embeddings"
        rows = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 0.0]}]
        return httpx2.Response(200, json={"data": rows})

    data = [png(np.full((4, 4, 3), level, dtype=np.uint8)) for level in (0, 255)]
    coded = [base64.b64encode(each).decode() for each in data]
    for dialect, expected in (
        ("jina", {"input": [{"image": each} for each in coded]}),
        ("infinity", {"input": [f"data:image/png;base64,{each}" for each in coded], "modality": "image"}),
    ):
        asked = OpenAIEncoder(
            "http://models.test/v1/", "m", dialect=dialect, api_key="secret", transport=httpx2.MockTransport(answer)
        )
        np.testing.assert_array_equal(asked.encode_images(data), [[1, 0], [0, 1]])
        assert expected.items() <= seen[-1].items()


def test_probes_score_alike_through_the_server(encoder: ArtifactEncoder, server_url: str) -> None:
    """Vectors differ by rounding, so at most a near tie may fall the other way: one question in twenty."""
    size = PoolSize(compass=3, class_groups=2, squares=1, counts=1, additions=1, spoilt=16)
    chosen = Suite(name="small", probes=("binding", "relation", "few-shot", "count"), size=size)
    with Client(server_url) as client:
        served = run(ServerEncoder(client), chosen)
    for here, there in zip(run(encoder, chosen), served, strict=True):
        for mine, other in zip(here.rows, there.rows, strict=True):
            assert (mine.name, mine.n, mine.chance) == (other.name, other.n, other.chance)
            assert mine.score == pytest.approx(other.score, abs=0.05), mine.name
