"""The Encoder protocol (picture and text vectors of one space), and encoders that run an artifact or ask a server."""

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
from clipworks.results import Located
from clipworks.schemas import LabelPrompts
from evaluation.locating import Found, Label, Locator, Shown, Vectors
from evaluation.metrics import normalize
from model_store.errors import ArtifactNotFound
from model_store.graph import SessionSettings
from model_store.manifest import Precision
from model_store.modality.image import OWN_FILES, decode, prepare
from model_store.presence import presence_of
from model_store.store import Artifact
from model_store.towers import (
    ConditionalHead,
    OpenedHead,
    Tower,
    open_conditional_head,
    open_dense_tower,
    open_head,
    open_tower,
)

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
    """An encoder that also says where: see `evaluation.locating`."""

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        """Score, map and boxes of every label in each picture; without `boxes` there are none in the answers.

        short_px: as in `/localize`. Raises ValueError where the model takes one size only.
        """
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
    was not built in `precision` runs in fp32, and a graph whose vectors depend on their batch mates runs one by one.

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
        self._heads: dict[str, OpenedHead] = {}
        self._conditional: ConditionalHead | None = None
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

    def prepared(self, images: Sequence[Shown]) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] as the model sees them."""
        return self._pixels(images)

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

    def label_logits(self, labels: Sequence[str], images: Sequence[Shown]) -> NDArray[np.float32]:
        """Logits [n, C] of the conditional head for any labels, as POST /classify with activation "none" scores them.

        Raises:
            ArtifactNotFound: the artifact has none.
        """
        if self._conditional is None:
            self._conditional = open_conditional_head(self._artifact, self._settings)
        ids = self._tokenizer.pad([self._tokenizer.encode(label) for label in labels])
        return self._conditional.in_blocks(self.encode_images(images), ids)

    def _head(self, name: str) -> OpenedHead:
        if name not in self._heads:
            self._heads[name] = open_head(self._artifact, name, self._settings)
        return self._heads[name]

    def _pixels(self, images: Sequence[Shown]) -> NDArray[np.uint8]:
        opened = [decode(image, OWN_FILES) if isinstance(image, bytes) else Image.fromarray(image) for image in images]
        return np.stack([prepare(image, self._image_spec) for image in opened])


class DenseArtifactEncoder(ArtifactEncoder):
    """An artifact with a `dense_encoder` graph, which runs one picture at a time.

    Raises:
        ArtifactNotFound, IntegrityError, GraphError: as `ArtifactEncoder` and `open_dense_tower`.
    """

    def __init__(
        self, artifact: Artifact, *, precision: Precision = "fp32", settings: SessionSettings | None = None
    ) -> None:
        super().__init__(artifact, precision=precision, settings=settings)
        spec = artifact.dense_spec
        if spec is None:
            raise ArtifactNotFound(f"{artifact.reference} has no dense_encoder")
        served: Precision = artifact.served_precision("dense_encoder", precision)
        tower = open_dense_tower(artifact, served, settings or SessionSettings())

        def run(pixels: NDArray[np.uint8]) -> tuple[Vectors, Vectors]:
            vectors = tower(pixels)
            return vectors.positions, vectors.pooled

        self.locator = Locator(run, spec, presence_of(artifact), self.encode_texts)

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        return self.locator.locate(images, labels, boxes=boxes, short_px=short_px)


def open_artifact(
    artifact: Artifact, *, precision: Precision = "fp32", settings: SessionSettings | None = None
) -> ArtifactEncoder:
    """One that says where, if the artifact can."""
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
        self.model = f"{detail.name}@{detail.version}"
        self.roles: tuple[str, ...] = tuple(detail.roles)
        self._threshold = float(detail.presence["threshold"]) if detail.presence else 0.5
        spec = detail.image_spec
        self.name = f"{self.model} at {client.url}"
        self.space = detail.space
        self.fingerprint = _fingerprint(detail.fingerprint.image, detail.fingerprint.text, detail.build)
        self.image_px: int | None = min(spec["height_px"], spec["width_px"]) if spec else None
        self.templates: tuple[str, ...] | None = tuple(detail.templates)

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        sent = [_encoded(image) for image in images]
        return normalize(self._client.embed(images=sent, model=self.model))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return normalize(self._client.embed(texts=texts, model=self.model))


class DenseServerEncoder(ServerEncoder):
    """A served model that says where, through `POST /localize`, a picture at a time.

    maps_per_request: the server's CLIPWORKS_MAX_HEATMAPS; more labels than that are several requests for each picture.
    """

    def __init__(self, client: Client, *, model: str | None = None, maps_per_request: int = 64) -> None:
        super().__init__(client, model=model)
        self._maps_per_request = maps_per_request

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        """Raises:
        ValueError: no labels, or two of one name.
        ClientError: see clipworks.errors.
        """
        names = [label.name for label in labels]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{len(names)} labels of {len(set(names))} names, expected some, of different names")
        said = [LabelPrompts(name=one.name, prompts=list(one.prompts)) if one.prompts else one.name for one in labels]
        return [self._locate(_encoded(image), said, names, boxes=boxes, short_px=short_px) for image in images]

    def _locate(
        self, image: bytes, said: list[str | LabelPrompts], names: list[str], *, boxes: bool, short_px: int | None
    ) -> Found:
        maps: dict[str, Vectors] = {}
        first: Located | None = None
        for start in range(0, len(names), self._maps_per_request):
            result = self._client.localize(
                [image],
                said,
                model=self.model,
                threshold=0.0,  # boxes of every label, whatever its score
                include=("boxes", "heatmap") if boxes and first is None else ("heatmap",),
                short_px=short_px,
                heatmap_labels=names[start : start + self._maps_per_request],
            )[0]
            first = first or result
            maps |= {
                one.label: np.asarray(one.heatmap.values, dtype=np.float32)
                for one in result.labels
                if one.heatmap is not None
            }
        if first is None:
            raise ValueError("no labels to look for")
        scores = {one.label: one.score for one in first.labels}
        edges = {one.label: [[b.x0, b.y0, b.x1, b.y1, b.score] for b in one.boxes] for one in first.labels}
        return Found(
            width=first.width,
            height=first.height,
            scores=np.array([scores[name] for name in names]),
            maps=np.stack([maps[name] for name in names]),
            boxes=tuple(np.array(edges[name], dtype=np.float64).reshape(-1, 5) for name in names) if boxes else (),
            threshold=self._threshold,
        )


def open_server(client: Client, *, model: str | None = None) -> ServerEncoder:
    """One that says where, if the served model can.

    Raises:
        ValueError, ClientError: as `ServerEncoder`.
    """
    found = ServerEncoder(client, model=model)
    return DenseServerEncoder(client, model=found.model) if "dense_encoder" in found.roles else found


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
        encoded = [_encoded(image) for image in images]
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


def _encoded(image: Shown) -> bytes:
    return image if isinstance(image, bytes) else png(image)


def _batch_of(tower: Tower) -> int:
    return _BATCH if tower.batch_invariant else 1


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
