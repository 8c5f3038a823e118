"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import httpx2

from clipworks._calls import Labels, label_fields, unknown_fields, weigh_fields
from clipworks._collections_sync import Collection
from clipworks._setup import MIB, Setup
from clipworks._sync_carrier import Carrier
from clipworks._teaching import ExampleSource, example_sources, removed
from clipworks.results import (
    ClassifyResult,
    EmbedResult,
    LocalizeResult,
    Located,
    RankedDocument,
    RerankedDocuments,
    TeachResult,
)
from clipworks.retry import RetryPolicy
from clipworks.schemas import (
    Activation,
    CollectionInfo,
    CollectionLoss,
    Health,
    HeatmapFormat,
    Included,
    IndexKind,
    KnownExample,
    LabelSetDetail,
    LabelSetInfo,
    ModelDetail,
    ModelSummary,
    OnError,
    OnUnknown,
    Prediction,
)

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource
    from clipworks._teaching import Examples
    from clipworks.results import Vectors


class Client:
    """A blocking client; may be used from several threads. Close it, or use it in a `with` block."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        connect_timeout_s: float = 5.0,
        retry: RetryPolicy | None = None,
        batch_size: int = 32,
        batch_bytes: int = 8 * MIB,
        concurrency: int = 4,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._setup = Setup(
            url,
            api_key=api_key,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            retry=retry,
            batch_size=batch_size,
            batch_bytes=batch_bytes,
            concurrency=concurrency,
        )
        self._http = httpx2.Client(
            base_url=self._setup.url,
            headers=self._setup.headers,
            timeout=self._setup.httpx_timeout,
            limits=self._setup.limits,
            transport=transport,
        )
        carrier = Carrier(self._setup, self._http)
        self._run, self._drive = carrier.run, carrier.drive

    @property
    def url(self) -> str:
        return self._setup.url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @overload
    def embed(
        self,
        *,
        texts: Iterable[str] = (),
        images: Iterable[ImageSource] = (),
        model: str | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        on_error: Literal["fail"] = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> Vectors: ...
    @overload
    def embed(
        self,
        *,
        texts: Iterable[str] = (),
        images: Iterable[ImageSource] = (),
        model: str | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        on_error: Literal["item"],
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> EmbedResult: ...
    def embed(
        self,
        *,
        texts: Iterable[str] = (),
        images: Iterable[ImageSource] = (),
        model: str | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        on_error: OnError = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> Vectors | EmbedResult:
        """Vectors of texts and images, float32 [n, dim]: texts first, then images, each in the order given.

        images: paths, bytes of encoded images, PIL images, or http addresses (which the server may refuse).
        on_error: "fail" raises for the first bad input; "item" returns an EmbedResult with errors by index.
        on_unknown: what an input is of which the model knows nothing: "warn" gives it a vector that says nothing (most
        often zeros) and a Python warning, "error" makes it a bad input.
        progress: draw a bar on stderr where rich is installed. Without numpy, a list of lists is returned.

        Raises:
            ClientError: see `clipworks.errors`; `index` says which input is to blame.
        """
        plan = self._setup.calls.embed(
            texts,
            images,
            model=model,
            normalize=normalize,
            dimensions=dimensions,
            on_error=on_error,
            on_unknown=on_unknown,
        )
        result = self._run(plan, progress)
        return result if on_error == "item" else result.vectors

    @overload
    def classify(
        self,
        images: Iterable[ImageSource],
        labels: Labels | None = None,
        *,
        label_set: str | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        activation: Activation | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        on_error: Literal["fail"] = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> list[list[Prediction]]: ...
    @overload
    def classify(
        self,
        images: Iterable[ImageSource],
        labels: Labels | None = None,
        *,
        label_set: str | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        activation: Activation | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        on_error: Literal["item"],
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> ClassifyResult: ...
    def classify(
        self,
        images: Iterable[ImageSource],
        labels: Labels | None = None,
        *,
        label_set: str | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        activation: Activation | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        on_error: OnError = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> list[list[Prediction]] | ClassifyResult:
        """Scores of `labels` (or of a stored label set) for each image, best first.

        templates: "none", "simple", "imagenet" or strings with one {}; default: the model's own.
        activation: "softmax" over the labels, "sigmoid" for each, "none" for cosines; default: the model's own.

        Raises:
            ClientError: as `embed`.
        """
        plan = self._setup.calls.classify(
            images,
            labels=labels,
            label_set=label_set,
            templates=templates,
            model=model,
            activation=activation,
            top_k=top_k,
            threshold=threshold,
            on_error=on_error,
            on_unknown=on_unknown,
        )
        result = self._run(plan, progress)
        return result if on_error == "item" else result.predictions

    @overload
    def localize(
        self,
        images: Iterable[ImageSource],
        labels: Labels | None = None,
        *,
        label_set: str | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        threshold: float | None = None,
        include: Sequence[Included] = ("boxes",),
        heatmap_format: HeatmapFormat = "array",
        heatmap_labels: Sequence[str] | None = None,
        short_px: int | None = None,
        on_error: Literal["fail"] = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> list[Located]: ...
    @overload
    def localize(
        self,
        images: Iterable[ImageSource],
        labels: Labels | None = None,
        *,
        label_set: str | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        threshold: float | None = None,
        include: Sequence[Included] = ("boxes",),
        heatmap_format: HeatmapFormat = "array",
        heatmap_labels: Sequence[str] | None = None,
        short_px: int | None = None,
        on_error: Literal["item"],
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> LocalizeResult: ...
    def localize(
        self,
        images: Iterable[ImageSource],
        labels: Labels | None = None,
        *,
        label_set: str | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        threshold: float | None = None,
        include: Sequence[Included] = ("boxes",),
        heatmap_format: HeatmapFormat = "array",
        heatmap_labels: Sequence[str] | None = None,
        short_px: int | None = None,
        on_error: OnError = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> list[Located] | LocalizeResult:
        """Which of `labels` (or of a stored label set) are in each image, how sure, and where.

        include: "boxes", "mask" (boxes with masks), "heatmap" (of every label or of heatmap_labels, as heatmap_format).
        threshold: score of a present label; short_px: size at which the model looks. Default: the model's own.

        Raises:
            ClientError: as `embed`; InvalidInput (`unsupported_input`) when the model has no dense encoder.
        """
        plan = self._setup.calls.localize(
            images,
            labels=labels,
            label_set=label_set,
            templates=templates,
            model=model,
            threshold=threshold,
            include=include,
            heatmap_format=heatmap_format,
            heatmap_labels=heatmap_labels,
            short_px=short_px,
            on_error=on_error,
            on_unknown=on_unknown,
        )
        result = self._run(plan, progress)
        return result if on_error == "item" else [each for each in result.images if each is not None]

    def models(self) -> list[ModelSummary]:
        """Every model of the server's store, loaded or not."""
        return self._drive(self._setup.queries.models())

    def model(self, name: str) -> ModelDetail:
        return self._drive(self._setup.queries.model(name))

    def load_model(self, name: str) -> None:
        """Needs an admin key."""
        self._drive(self._setup.queries.load_model(name))

    def unload_model(self, name: str) -> None:
        """Needs an admin key."""
        self._drive(self._setup.queries.unload_model(name))

    def label_sets(self) -> list[LabelSetInfo]:
        return self._drive(self._setup.queries.label_sets())

    def label_set(self, name: str) -> LabelSetDetail:
        return self._drive(self._setup.queries.label_set(name))

    def put_label_set(
        self,
        name: str,
        labels: Labels,
        *,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        weigh_templates: str | Mapping[str, Any] | None = None,
        on_unknown: OnUnknown = "warn",
        wait: bool = True,
    ) -> LabelSetInfo:
        """Store labels under a name, replacing what it held; with `wait`, return when they are encoded.

        weigh_templates: a collection of pictures without labels, which decide how much each template counts; or
            {"collection", "reference", "limit", "how"}.
        """
        body = label_fields(labels, templates) | ({"model": model} if model else {})
        body |= weigh_fields(weigh_templates) | unknown_fields(on_unknown)
        return self._drive(self._setup.queries.put_label_set(name, body, wait=wait))

    def teach(
        self,
        name: str,
        examples: Examples,
        *,
        labels: Labels | None = None,
        templates: str | Sequence[str] | None = None,
        model: str | None = None,
        on_error: OnError = "item",
        progress: bool = False,
    ) -> TeachResult:
        """Teach a label set with pictures by label, replacing what `name` held; returns when they are fitted.

        examples: label -> pictures (paths, bytes, arrays or Pillow images), or {"item": {"collection": ..., "id": ...}}
            for an image that a collection holds.
        labels: their texts, as for `put_label_set`; default: the names in `examples`. Labels without examples are
            judged by their texts alone.
        on_error: "item": a picture that cannot be read is in `errors`, and the others are taken.

        What was taught before an error or an interruption stays taught: the set is stored with every request.

        Raises:
            ApiError: `no_usable_example`, none of the pictures can be used; what `name` held is as it was.
            ServerFault: nothing could be fitted, with the reason.
        """
        sources = example_sources(examples)
        body = label_fields(list(examples) if labels is None else labels, templates) | (
            {"model": model} if model else {}
        )
        self._drive(self._setup.teaching.begin(name, body, sources, on_error=on_error))
        return self._taught(name, sources, on_error, progress)

    def add_examples(
        self, name: str, examples: Examples, *, on_error: OnError = "item", progress: bool = False
    ) -> TeachResult:
        """As `teach`, in addition to what the label set was taught with."""
        return self._taught(name, example_sources(examples), on_error, progress)

    def remove_examples(self, name: str, *, ids: Iterable[str] = (), labels: Iterable[str] = ()) -> LabelSetDetail:
        """Take examples away, by their ids or all of some labels; returns when the others are fitted."""
        for key, given in removed(ids=ids, labels=labels).items():
            if given:
                self._drive(self._setup.queries.remove_examples(name, {key: given}))
        return self._drive(self._setup.queries.taught(name))

    def examples(self, name: str) -> list[KnownExample]:
        """Every example of a label set, and what it is taken for when it is left out."""
        return self._drive(self._setup.queries.examples(name))

    def _taught(self, name: str, sources: list[ExampleSource], on_error: OnError, progress: bool) -> TeachResult:
        parts = self._run(self._setup.teaching.add(name, sources, on_error=on_error), progress)
        found = self._drive(self._setup.queries.taught(name))
        return TeachResult(label_set=found, ids=parts.ids, errors=parts.errors)

    def delete_label_set(self, name: str) -> None:
        self._drive(self._setup.queries.delete_label_set(name))

    @overload
    def rerank(
        self,
        query: str | ImageSource,
        documents: Iterable[str] | Iterable[ImageSource],
        *,
        model: str | None = None,
        top_n: int | None = None,
        on_error: Literal["fail"] = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> list[RankedDocument]: ...
    @overload
    def rerank(
        self,
        query: str | ImageSource,
        documents: Iterable[str] | Iterable[ImageSource],
        *,
        model: str | None = None,
        top_n: int | None = None,
        on_error: Literal["item"],
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> RerankedDocuments: ...
    def rerank(
        self,
        query: str | ImageSource,
        documents: Iterable[str] | Iterable[ImageSource],
        *,
        model: str | None = None,
        top_n: int | None = None,
        on_error: OnError = "fail",
        on_unknown: OnUnknown = "warn",
        progress: bool = False,
    ) -> list[RankedDocument] | RerankedDocuments:
        """Documents by how well they match the query, best first, the `top_n` best or all.

        query: a str is a text, and the documents are pictures (paths, bytes, arrays or Pillow images); anything else (a
            Path, bytes, a Pillow image) is a picture, and the documents are texts.
        model: one with a reranker; default: the server's.

        Raises:
            ClientError: as `embed`; `index` says which document is to blame.
        """
        plan = self._setup.reranking.rerank(
            query, documents, model=model, top_n=top_n, on_error=on_error, on_unknown=on_unknown
        )
        result = self._run(plan, progress)
        return result if on_error == "item" else result.documents

    def collection(self, name: str) -> Collection:
        """A handle; nothing is sent until it is used."""
        return Collection(name, self._setup.collections, drive=self._drive, run=self._run)

    def collections(self) -> list[CollectionInfo]:
        """Every collection of the server, by name."""
        return self._drive(self._setup.collections.every())

    def losses(self) -> list[CollectionLoss]:
        """What a damaged store lost, of every collection, until it is acknowledged."""
        return self._drive(self._setup.collections.losses())

    def create_collection(
        self,
        name: str,
        *,
        model: str | None = None,
        index: IndexKind | Mapping[str, Any] | None = None,
        metadata_schema: Mapping[str, str] | None = None,
        thumbnails: bool = False,
        rerank: str | None = None,
        views: Sequence[str] | None = None,
    ) -> Collection:
        """Make a collection; one that is equal is given back as it is.

        model: whose vectors it holds, `name@version` or name; default: the server's. Its version is pinned.
        index: auto, flat, sq8, ivf_sq8, or {"kind", "nprobe", "oversample"}.
        metadata_schema: dotted field -> string, number, boolean, date, string[] or number[].
        thumbnails: keep a small picture of each item that is given as a picture; see `Collection.thumbnail`.
        rerank: a model with a reranker; keep what it reads of each item that is given as a picture, so that searches
            can be reranked.
        views: ["cross", "intra"]: keep two vectors of each item, of the base of `model`, in which texts find pictures,
            and of `model` itself, for searches inside one modality; see docs/intra-modal.md.

        Raises:
            Conflict: one of this name is there and differs.
        """
        self._drive(
            self._setup.collections.create(
                name,
                model=model,
                index=index,
                metadata_schema=metadata_schema,
                thumbnails=thumbnails,
                rerank=rerank,
                views=views,
            )
        )
        return self.collection(name)

    def delete_collection(self, name: str) -> None:
        """With all its items, for good."""
        self._drive(self._setup.collections.drop(name))

    def aliases(self) -> dict[str, str]:
        """Other names of collections: the collection that each means now."""
        return self._drive(self._setup.collections.aliases())

    def set_alias(
        self, name: str, collection: str, *, keep_as: str | None = None, if_sequence: int | None = None
    ) -> str:
        """Let `name` mean a collection from now on, at once; the collection's own name is returned.

        keep_as: new name of the collection that has `name` as its own; it changes at the same moment.
        if_sequence: refuse if the collection that `name` means now is at another change than this one.

        Raises:
            Conflict: `name` is a collection's own and there is no keep_as, keep_as is taken, or another sequence.
        """
        steps = self._setup.collections.set_alias(name, collection, keep_as=keep_as, if_sequence=if_sequence)
        return self._drive(steps)

    def delete_alias(self, name: str) -> None:
        """The collection stays. Raises NotFound."""
        self._drive(self._setup.collections.delete_alias(name))

    def health(self) -> Health:
        """Whether the server is ready to answer; says why when it is not. Not retried."""
        return self._drive(self._setup.queries.health())
