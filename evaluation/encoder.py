"""What evaluation asks of a model: vectors of pictures and of texts in one space, wherever the model runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import httpx2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipworks.client import Client
from evaluation.metrics import normalize
from model_store.errors import ArtifactNotFound
from model_store.graph import Graph, SessionSettings, open_graph
from model_store.manifest import Precision, Role
from model_store.modality.image import decode, prepare
from model_store.store import Artifact
from model_store.towers import Head, Tower, open_head, open_tower

Vectors = NDArray[np.float32]
Shown = NDArray[np.uint8] | bytes
Dialect = Literal["jina", "infinity"]
Item = TypeVar("Item")
_BATCH = 32
_TIMEOUT_S = 120.0


@runtime_checkable
class Encoder(Protocol):
    """A dual encoder. Vectors may be compared when `space` is equal; `fingerprint` says which weights answered.

    image_px: the side of the square that the model sees, None if unknown. Pictures are uint8 [H, W, 3] arrays or
    encoded bytes (PNG, JPEG, ...).
    """

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def image_px(self) -> int | None: ...
    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        """Unit float32 [n, D]."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit float32 [n, D]."""
        ...


@runtime_checkable
class DenseEncoder(Encoder, Protocol):
    """An encoder that also has a vector for each cell of a grid over the picture."""

    def encode_dense(self, images: Sequence[Shown]) -> Vectors:
        """Unit float32 [n, rows, columns, D]; the grid covers the square that the model sees."""
        ...


def own_templates(encoder: Encoder) -> tuple[str, ...] | None:
    """The prompts, each with one {}, that a model comes with (its attribute `templates`); None where none are known."""
    return getattr(encoder, "templates", None)


def png(image: NDArray[np.uint8]) -> bytes:
    """Lossless bytes of uint8 [H, W, 3]."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


class ArtifactEncoder:
    """The graphs of a published artifact in this process, adapters included, chosen and batched as in the server: what
    was not built in `precision` runs in fp32, and a graph whose vectors depend on their company runs one by one.

    Raises:
        ArtifactNotFound: the artifact lacks an image or a text encoder, or neither was built in `precision`.
        IntegrityError, GraphError: a file is not the one in the manifest, or does not load.
    """

    def __init__(
        self, artifact: Artifact, *, precision: Precision = "fp32", settings: SessionSettings | None = None
    ) -> None:
        image_spec = artifact.image_spec
        if image_spec is None or artifact.text_spec is None:
            raise ArtifactNotFound(f"{artifact.reference} cannot be evaluated: it needs an image and a text encoder")
        self._image_spec = image_spec
        self._tokenizer = artifact.tokenizer()
        settings = settings or SessionSettings()
        self._artifact, self._settings = artifact, settings
        image: Precision = artifact.served_precision("image_encoder", precision)
        text: Precision = artifact.served_precision("text_encoder", precision)
        self._image = open_tower(artifact, "image_encoder", image, settings)
        self._text = open_tower(artifact, "text_encoder", text, settings)
        self._heads: dict[str, Head] = {}
        found = image, text
        if precision not in found:
            raise ArtifactNotFound(f"{artifact.reference} was not built in {precision}")
        self.name = (
            f"{artifact.reference} ({precision if len(set(found)) == 1 else 'image {}, text {}'.format(*found)})"
        )
        self.space = artifact.manifest.space
        self.fingerprint = _fingerprint(
            artifact.manifest.fingerprint.image, artifact.manifest.fingerprint.text, artifact.build(precision)
        )
        self.image_px: int | None = min(image_spec.height_px, image_spec.width_px)
        self.templates: tuple[str, ...] | None = artifact.manifest.templates

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        return _batched(images, lambda part: normalize(self._image(self._pixels(part))), size=_batch_of(self._image))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        def encode(part: Sequence[str]) -> Vectors:
            return normalize(self._text(self._tokenizer.pad([self._tokenizer.encode(text) for text in part])))

        return _batched(texts, encode, size=_batch_of(self._text))

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """Labels of each class head, in the order of its columns."""
        return {name: head.labels for name, head in self._artifact.heads().items()}

    def class_scores(self, head: str, images: Sequence[Shown]) -> NDArray[np.float64]:
        """Scores [n, C] of a class head with its own activation, as POST /classify with this label set gives them.

        Raises:
            ArtifactNotFound: no such head.
            ValueError: a picture's vector is zero; the server refuses it as well.
        """
        opened = self._head(head)

        def logits(part: Sequence[Shown]) -> Vectors:
            vectors = self._image(self._pixels(part))
            if not np.linalg.norm(vectors, axis=1).all():
                raise ValueError("the vector of a picture is zero: a class head has nothing to go by")
            return opened(vectors)

        size = _batch_of(self._image) if opened.graph.spec.batch_invariant else 1
        return opened.scores(_batched(images, logits, size=size))

    def _head(self, name: str) -> Head:
        if name not in self._heads:
            self._heads[name] = open_head(self._artifact, name, self._settings)
        return self._heads[name]

    def _pixels(self, images: Sequence[Shown]) -> NDArray[np.uint8]:
        opened = [decode(image) if isinstance(image, bytes) else Image.fromarray(image) for image in images]
        return np.stack([prepare(image, self._image_spec) for image in opened])


class DenseArtifactEncoder(ArtifactEncoder):
    """An artifact with a `dense_encoder` graph, whose output is [n, rows, columns, D]."""

    def __init__(
        self, artifact: Artifact, *, precision: Precision = "fp32", settings: SessionSettings | None = None
    ) -> None:
        super().__init__(artifact, precision=precision, settings=settings)
        self._dense = _graph(artifact, "dense_encoder", precision, settings or SessionSettings())

    def encode_dense(self, images: Sequence[Shown]) -> Vectors:
        return _batched(images, lambda part: normalize(self._dense(self._pixels(part))), size=_batch_of(self._dense))


def open_artifact(
    artifact: Artifact, *, precision: Precision = "fp32", settings: SessionSettings | None = None
) -> ArtifactEncoder:
    """With a grid of vectors where the artifact has them."""
    kind = DenseArtifactEncoder if "dense_encoder" in artifact.roles() else ArtifactEncoder
    return kind(artifact, precision=precision, settings=settings)


class ServerEncoder:
    """A clipworks server, through its client. The version is pinned at the start, so that one run judges one model.

    Raises:
        ValueError: no `model` given and the server has several.
        ClientError: see clipworks.errors.
    """

    def __init__(self, client: Client, *, model: str | None = None) -> None:
        if model is None:
            references = [f"{found.name}@{found.version}" for found in client.models()]
            if len(references) != 1:
                raise ValueError(f"the server has {len(references)} models, name one of {references}")
            model = references[0]
        detail = client.model(model)
        self._client = client
        self._model = f"{detail.name}@{detail.version}"
        spec = detail.image_spec
        self.name = f"{self._model} at {client.url}"
        self.space = detail.space
        self.fingerprint = _fingerprint(detail.fingerprint.image, detail.fingerprint.text, detail.build)
        self.image_px: int | None = min(spec["height_px"], spec["width_px"]) if spec else None
        self.templates: tuple[str, ...] | None = tuple(detail.templates)

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        sent = [image if isinstance(image, bytes) else png(image) for image in images]
        return normalize(self._client.embed(images=sent, model=self._model))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return normalize(self._client.embed(texts=texts, model=self._model))


class OpenAIEncoder:
    """Any endpoint that answers POST {url}/embeddings as OpenAI's does, with one of two ways to send pictures.

    jina: `input` is [{"image": base64}]. infinity: `input` is [data URI] and `modality` is "image". Nobody tells such
    an endpoint's weights, so `fingerprint` names the address and the model only.
    url: with its prefix, such as http://host:7997 or http://host:8000/v1.

    Raises:
        ConnectionError: no answer, another status than 200, or an answer that is no list of embeddings.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        dialect: Dialect,
        api_key: str | None = None,
        image_px: int | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=httpx2.Timeout(_TIMEOUT_S), transport=transport
        )
        self._model, self._dialect = model, dialect
        self.name = f"{model} at {url}"
        self.space = self.fingerprint = f"{url.rstrip('/')}#{model}"
        self.image_px = image_px
        self.templates: tuple[str, ...] | None = None

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        return _batched(images, self._ask_images)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return _batched(texts, lambda part: self._ask({"input": list(part)}, len(part)))

    def close(self) -> None:
        self._http.close()

    def _ask_images(self, images: Sequence[Shown]) -> Vectors:
        encoded = [image if isinstance(image, bytes) else png(image) for image in images]
        texts = [base64.b64encode(data).decode("ascii") for data in encoded]
        if self._dialect == "jina":
            return self._ask({"input": [{"image": text} for text in texts]}, len(texts))
        addresses = [f"data:{_media_type(data)};base64,{text}" for data, text in zip(encoded, texts, strict=True)]
        return self._ask({"input": addresses, "modality": "image"}, len(texts))

    def _ask(self, body: dict[str, object], count: int) -> Vectors:
        where = f"{str(self._http.base_url).rstrip('/')}/embeddings"
        try:
            answer = self._http.post("/embeddings", json={"model": self._model, "encoding_format": "float", **body})
        except httpx2.HTTPError as error:
            raise ConnectionError(f"{where}: {error or type(error).__name__}") from error
        if answer.status_code != 200:
            raise ConnectionError(f"{where}: status {answer.status_code}: {answer.text[:300]}")
        try:
            found = sorted(answer.json()["data"], key=lambda entry: entry["index"])
            vectors = np.array([entry["embedding"] for entry in found], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise ConnectionError(f"{where}: not a list of embeddings: {type(error).__name__} {error}") from error
        if vectors.ndim != 2 or len(vectors) != count:
            raise ConnectionError(f"{where}: expected {count} vectors, got shape {vectors.shape}")
        return normalize(vectors)


def _graph(artifact: Artifact, role: Role, precision: Precision, settings: SessionSettings) -> Graph:
    found = artifact.graph_spec(role, artifact.served_precision(role, precision))
    if found is None:
        raise ArtifactNotFound(f"{artifact.reference} has no {role} in {precision}")
    return open_graph(*found, settings)


def _batch_of(graph: Graph | Tower) -> int:
    spec = graph if isinstance(graph, Tower) else graph.spec
    return _BATCH if spec.batch_invariant else 1


def _media_type(data: bytes) -> str:
    """By the first bytes; what is not PNG or JPEG is left to the endpoint to find out."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    return "image/jpeg" if data.startswith(b"\xff\xd8") else "application/octet-stream"


def _fingerprint(image: str | None, text: str | None, build: str) -> str:
    return f"image {image}, text {text}, build {build}"


def _batched(items: Sequence[Item], encode: Callable[[Sequence[Item]], Vectors], *, size: int = _BATCH) -> Vectors:
    """`encode` over parts of at most `size` items.

    Raises:
        ValueError: no items: the width of the answer would be unknown.
    """
    if not items:
        raise ValueError("nothing to encode")
    return np.concatenate([encode(items[start : start + size]) for start in range(0, len(items), size)])
