"""The client for asyncio: steps are awaited, several requests are tasks, files are read in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import httpx2

from clipworks import errors
from clipworks._calls import CallPlan, Labels, label_fields, unknown_fields, weigh_fields
from clipworks._collections_async import AsyncCollection
from clipworks._exchange import Answer, Broken, Call, Pause, Request, Send, Steps
from clipworks._progress import Progress, progress_bar
from clipworks._setup import MIB, Setup, lower_case
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

T = TypeVar("T")


class AsyncClient:
    """The same on an asyncio event loop; files are read in threads. Close it, or use it in an `async with` block."""

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
        transport: httpx2.AsyncBaseTransport | None = None,
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
        self._http = httpx2.AsyncClient(
            base_url=self._setup.url,
            headers=self._setup.headers,
            timeout=self._setup.httpx_timeout,
            limits=self._setup.limits,
            transport=transport,
        )

    @property
    def url(self) -> str:
        return self._setup.url

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    @overload
    async def embed(
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
    async def embed(
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
    async def embed(
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
        """See `Client.embed`."""
        plan = self._setup.calls.embed(
            texts,
            images,
            model=model,
            normalize=normalize,
            dimensions=dimensions,
            on_error=on_error,
            on_unknown=on_unknown,
        )
        result = await self._run(plan, progress)
        return result if on_error == "item" else result.vectors

    @overload
    async def classify(
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
    async def classify(
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
    async def classify(
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
        """See `Client.classify`."""
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
        result = await self._run(plan, progress)
        return result if on_error == "item" else result.predictions

    @overload
    async def localize(
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
    async def localize(
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
    async def localize(
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
        """See `Client.localize`."""
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
        result = await self._run(plan, progress)
        return result if on_error == "item" else [each for each in result.images if each is not None]

    async def models(self) -> list[ModelSummary]:
        return await self._drive(self._setup.queries.models())

    async def model(self, name: str) -> ModelDetail:
        return await self._drive(self._setup.queries.model(name))

    async def load_model(self, name: str) -> None:
        """Needs an admin key."""
        await self._drive(self._setup.queries.load_model(name))

    async def unload_model(self, name: str) -> None:
        """Needs an admin key."""
        await self._drive(self._setup.queries.unload_model(name))

    async def label_sets(self) -> list[LabelSetInfo]:
        return await self._drive(self._setup.queries.label_sets())

    async def label_set(self, name: str) -> LabelSetDetail:
        return await self._drive(self._setup.queries.label_set(name))

    async def put_label_set(
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
        """See `Client.put_label_set`."""
        body = label_fields(labels, templates) | ({"model": model} if model else {})
        body |= weigh_fields(weigh_templates) | unknown_fields(on_unknown)
        return await self._drive(self._setup.queries.put_label_set(name, body, wait=wait))

    async def teach(
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
        """See `Client.teach`."""
        sources = example_sources(examples)
        body = label_fields(list(examples) if labels is None else labels, templates) | (
            {"model": model} if model else {}
        )
        await self._drive(self._setup.teaching.begin(name, body, sources, on_error=on_error))
        return await self._taught(name, sources, on_error, progress)

    async def add_examples(
        self, name: str, examples: Examples, *, on_error: OnError = "item", progress: bool = False
    ) -> TeachResult:
        """See `Client.add_examples`."""
        return await self._taught(name, example_sources(examples), on_error, progress)

    async def remove_examples(
        self, name: str, *, ids: Iterable[str] = (), labels: Iterable[str] = ()
    ) -> LabelSetDetail:
        """See `Client.remove_examples`."""
        for key, given in removed(ids=ids, labels=labels).items():
            if given:
                await self._drive(self._setup.queries.remove_examples(name, {key: given}))
        return await self._drive(self._setup.queries.taught(name))

    async def examples(self, name: str) -> list[KnownExample]:
        """See `Client.examples`."""
        return await self._drive(self._setup.queries.examples(name))

    async def _taught(self, name: str, sources: list[ExampleSource], on_error: OnError, progress: bool) -> TeachResult:
        parts = await self._run(self._setup.teaching.add(name, sources, on_error=on_error), progress)
        found = await self._drive(self._setup.queries.taught(name))
        return TeachResult(label_set=found, ids=parts.ids, errors=parts.errors)

    async def delete_label_set(self, name: str) -> None:
        await self._drive(self._setup.queries.delete_label_set(name))

    @overload
    async def rerank(
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
    async def rerank(
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
    async def rerank(
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
        """See `Client.rerank`."""
        plan = self._setup.reranking.rerank(
            query, documents, model=model, top_n=top_n, on_error=on_error, on_unknown=on_unknown
        )
        result = await self._run(plan, progress)
        return result if on_error == "item" else result.documents

    def collection(self, name: str) -> AsyncCollection:
        """A handle; nothing is sent until it is used."""
        return AsyncCollection(name, self._setup.collections, drive=self._drive, run=self._run)

    async def collections(self) -> list[CollectionInfo]:
        """Every collection of the server, by name."""
        return await self._drive(self._setup.collections.every())

    async def losses(self) -> list[CollectionLoss]:
        """See `Client.losses`."""
        return await self._drive(self._setup.collections.losses())

    async def create_collection(
        self,
        name: str,
        *,
        model: str | None = None,
        index: IndexKind | Mapping[str, Any] | None = None,
        metadata_schema: Mapping[str, str] | None = None,
        thumbnails: bool = False,
        rerank: str | None = None,
        views: Sequence[str] | None = None,
    ) -> AsyncCollection:
        """See `Client.create_collection`."""
        await self._drive(
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

    async def delete_collection(self, name: str) -> None:
        """With all its items, for good."""
        await self._drive(self._setup.collections.drop(name))

    async def aliases(self) -> dict[str, str]:
        """See `Client.aliases`."""
        return await self._drive(self._setup.collections.aliases())

    async def set_alias(
        self, name: str, collection: str, *, keep_as: str | None = None, if_sequence: int | None = None
    ) -> str:
        """See `Client.set_alias`."""
        steps = self._setup.collections.set_alias(name, collection, keep_as=keep_as, if_sequence=if_sequence)
        return await self._drive(steps)

    async def delete_alias(self, name: str) -> None:
        """See `Client.delete_alias`."""
        await self._drive(self._setup.collections.delete_alias(name))

    async def health(self) -> Health:
        """See `Client.health`."""
        return await self._drive(self._setup.queries.health())

    async def _run(self, plan: CallPlan[T], progress: Progress) -> T:
        """All chunks, at most `concurrency` at a time; the first error cancels the others."""
        waiting = iter(plan.chunks)

        async def work() -> None:
            for chunk in waiting:
                await self._drive(plan.batch.steps(chunk))

        with progress_bar(plan.label, plan.total, shown=progress) as advance:
            plan.batch.done = advance
            workers = min(self._setup.calls.limits.concurrency, len(plan.chunks))
            tasks = [asyncio.create_task(work()) for _ in range(workers)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return plan.finish()

    async def _drive(self, steps: Steps[T]) -> T:
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                return done.value
            match step:
                case Send():
                    step.result = await self._send(step.request)
                case Pause():
                    await asyncio.sleep(step.seconds)
                case Call():
                    await asyncio.to_thread(step.run)

    async def _send(self, request: Request) -> Answer | Broken:
        try:
            async with asyncio.timeout(self._setup.timeout_s):
                response = await self._http.request(
                    request.method, request.path, content=request.content, headers=dict(request.headers)
                )
        except TimeoutError:
            return self._setup.too_slow(request)
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return self._setup.broken(request, error)
        except httpx2.InvalidURL as error:
            raise errors.ConnectionFailed(f"{self._setup.url}{request.path}: {error}") from error
        return Answer(response.status_code, lower_case(response.headers), response.content)
