"""clipworks.integrations beside the libraries that they are for; `make test-batch` has all of these."""

import asyncio
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipworks import Client
from clipworks.batch import Embedder
from clipworks.errors import InvalidInput
from clipworks.integrations.sentence_transformers import ClipworksEncoder
from clipworks.local import LocalModel
from tests.clipworks.conftest import GOLDENS, TINY_STORE

TEXTS = ["a red shoe", "a blue hat on a chair", "seven grey elephants"]
PICTURES = [str(GOLDENS / "rgb_jpeg_331x227.bin"), str(GOLDENS / "rgb_png_331x227.bin")]
UNINSTALLED = "{} is not installed: make test-batch"


@pytest.fixture(scope="module")
def wanted(server_url: str) -> dict[str, np.ndarray]:
    """What the server says of TEXTS and PICTURES."""
    with Client(server_url) as client:
        return {"texts": client.embed(texts=TEXTS), "images": client.embed(images=PICTURES)}


@pytest.fixture(scope="module", params=["a server", "this process"])
def where(request: pytest.FixtureRequest, server_url: str) -> dict[str, Any]:
    """The arguments that every adapter takes."""
    return {"url": server_url} if request.param == "a server" else {"local": LocalModel("tiny", TINY_STORE)}


def same(found: Any, wanted: np.ndarray) -> bool:
    return np.array(found, dtype=np.float32).tobytes() == wanted.tobytes()


def test_langchain(where: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    pytest.importorskip("langchain_core", reason=UNINSTALLED.format("langchain-core"))
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    from clipworks.integrations.langchain import ClipworksEmbeddings

    embeddings = ClipworksEmbeddings(**where)
    assert isinstance(embeddings, Embeddings)
    assert same(embeddings.embed_documents(TEXTS), wanted["texts"])
    assert same(embeddings.embed_query(TEXTS[1]), wanted["texts"][1])
    assert same(embeddings.embed_image(PICTURES), wanted["images"])
    assert embeddings.embed_documents([]) == []

    async def awaited() -> None:
        assert same(await embeddings.aembed_documents(TEXTS), wanted["texts"])
        assert same(await embeddings.aembed_query(TEXTS[1]), wanted["texts"][1])
        assert same(await embeddings.aembed_image(PICTURES), wanted["images"])

    asyncio.run(awaited())
    with pytest.raises(InvalidInput):
        embeddings.embed_image([b"<svg/>"])
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS, ids=["shoe", "hat", "elephants"])
    assert [each.id for each in store.similarity_search(TEXTS[2], k=1)] == ["elephants"]
    by_picture = store.similarity_search_by_vector(embeddings.embed_image(PICTURES[:1])[0], k=3)
    nearest = np.argsort(-(wanted["texts"] @ wanted["images"][0]))
    assert [each.page_content for each in by_picture] == [TEXTS[index] for index in nearest]


def test_llama_index(where: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    pytest.importorskip("llama_index.core", reason=UNINSTALLED.format("llama-index-core"))
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from clipworks.integrations.llama_index import ClipworksEmbedding

    embedding = ClipworksEmbedding(**where, embed_batch_size=2)
    assert same(embedding.get_text_embedding_batch(TEXTS), wanted["texts"])
    assert same(embedding.get_query_embedding(TEXTS[1]), wanted["texts"][1])
    assert same(embedding.get_image_embedding(PICTURES[0]), wanted["images"][0])
    assert same(embedding.get_image_embedding(io.BytesIO(Path(PICTURES[1]).read_bytes())), wanted["images"][1])
    assert same(embedding.get_image_embedding_batch(PICTURES), wanted["images"])

    async def awaited() -> None:
        assert same(await embedding.aget_text_embedding_batch(TEXTS), wanted["texts"])
        assert same(await embedding.aget_query_embedding(TEXTS[1]), wanted["texts"][1])
        assert same(await embedding.aget_image_embedding_batch(PICTURES), wanted["images"])

    asyncio.run(awaited())
    nodes = [TextNode(id_=name, text=text) for name, text in zip(("shoe", "hat", "elephants"), TEXTS, strict=True)]
    retriever = VectorStoreIndex(nodes, embed_model=embedding).as_retriever(similarity_top_k=1)
    assert [found.node_id for found in retriever.retrieve(TEXTS[2])] == ["elephants"]


def test_encode_as_a_sentence_transformer_does(where: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    encoder = ClipworksEncoder(**where)
    assert same(encoder.encode(TEXTS, normalize_embeddings=True, batch_size=2), wanted["texts"])
    assert same(encoder.encode(TEXTS[0], normalize_embeddings=True), wanted["texts"][0])
    raw = encoder.encode(TEXTS)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-3)  # as theirs: raw unless it is asked for
    assert encoder.similarity(raw, raw[1]).shape == (3, 1)
    assert encoder.similarity(raw, raw)[1, 1] == pytest.approx(1, abs=1e-6)
    with Image.open(PICTURES[1]) as picture:
        one = encoder.encode(picture, normalize_embeddings=True)
        mixed = encoder.encode([TEXTS[0], picture, Path(PICTURES[0]), TEXTS[1]], normalize_embeddings=True)
    assert same(one, wanted["images"][1])
    expected = [wanted["texts"][0], wanted["images"][1], wanted["images"][0], wanted["texts"][1]]
    assert same(mixed, np.stack(expected))
    assert same(encoder.encode(np.asarray(picture), normalize_embeddings=True), wanted["images"][1])
    assert encoder.get_embedding_dimension() == encoder.get_sentence_embedding_dimension() == wanted["texts"].shape[1]
    assert same(encoder.encode_query(TEXTS[0], normalize_embeddings=True), wanted["texts"][0])
    with pytest.raises(ValueError, match="expected no prompt"):
        encoder.encode(TEXTS, prompt="query: ")


def test_encode_takes_the_arguments_of_sentence_transformers() -> None:
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers, which needs torch, is missing"
    )
    theirs = inspect.signature(library.SentenceTransformer.encode).parameters
    ours = inspect.signature(ClipworksEncoder.encode).parameters
    assert list(ours) == [name for name in theirs if name in ours]  # the same names in the same order
    assert {name: each.default for name, each in ours.items()} == {name: theirs[name].default for name in ours}
    for name in ("encode_query", "encode_document", "get_embedding_dimension", "similarity"):
        assert hasattr(library.SentenceTransformer, name)


@pytest.mark.torch
def test_encode_gives_tensors_where_they_are_asked_for(wanted: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    encoder = ClipworksEncoder(local=LocalModel("tiny", TINY_STORE))
    found = encoder.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    assert isinstance(found, torch.Tensor)
    assert same(found.numpy(), wanted["texts"])
    several = encoder.encode(TEXTS, convert_to_numpy=False, normalize_embeddings=True)
    assert [type(each) for each in several] == [torch.Tensor] * 3


def test_a_data_frame_gets_its_columns(wanted: dict[str, np.ndarray]) -> None:
    pandas = pytest.importorskip("pandas", reason=UNINSTALLED.format("pandas"))
    from clipworks.integrations.pandas import embed_frame, matrix

    frame = pandas.DataFrame({"file": [PICTURES[0], "nowhere.jpg", PICTURES[1]], "year": [1, 2, 3]}, index=[7, 8, 9])
    found = embed_frame(frame, Embedder("tiny", TINY_STORE, column="file"))
    assert list(found.columns) == ["file", "year", "vector", "error", "space", "fingerprint"]
    assert list(found.index) == [7, 8, 9]
    assert found.loc[8, "error"].startswith("unreadable_input: ")
    assert found.loc[8, "vector"] is None
    assert same(matrix(found), wanted["images"])
    assert list(frame.columns) == ["file", "year"]


def test_a_server_and_a_local_model_together_are_refused() -> None:
    with pytest.raises(ValueError, match="or local"):
        ClipworksEncoder("http://localhost:8000", local=LocalModel("tiny", TINY_STORE))
