"""The calls of many inputs, `embed`, `classify` and `localize`, as batches: their fields, answers and results."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clipworks import errors
from clipworks._batches import Batch, BatchPart, Loadable
from clipworks._inputs import InputSource, chunks, sources
from clipworks._located import located
from clipworks.results import ClassifyResult, EmbedResult, LocalizeResult, Located, ModelIdentity, Rows
from clipworks.retry import RetryPolicy
from clipworks.schemas import (
    Activation,
    ClassifyResponse,
    EmbedResponse,
    HeatmapFormat,
    Included,
    ItemError,
    LabelPrompts,
    LocalizeResponse,
    OnError,
    OnUnknown,
    Prediction,
)

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource

T = TypeVar("T")
LabelLike = str | LabelPrompts | Mapping[str, Any]
Labels = Iterable[LabelLike] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How many inputs and image bytes go into one request, and how many requests run at the same time."""

    items: int
    image_bytes: int
    concurrency: int

    def __post_init__(self) -> None:
        if min(self.items, self.image_bytes, self.concurrency) < 1:
            raise ValueError("batch_size, batch_bytes and concurrency must be at least 1")


@dataclass(kw_only=True)
class CallPlan(Generic[T]):
    """Everything a client needs for one call: chunks to run with `batch.steps`, then `finish`."""

    label: str
    total: int
    batch: Batch[Any]
    chunks: Sequence[Sequence[Loadable]]
    finish: Callable[[], T]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Makes plans; holds what is the same for all calls of one client."""

    limits: BatchLimits
    policy: RetryPolicy
    chance: random.Random = field(default_factory=random.Random)

    def embed(
        self,
        texts: Iterable[str],
        images: Iterable[ImageSource],
        *,
        model: str | None,
        normalize: bool,
        dimensions: int | None,
        on_error: OnError,
        on_unknown: OnUnknown,
    ) -> CallPlan[EmbedResult]:
        items = _not_empty(sources(texts, images))
        rows = Rows(len(items))
        fields = _given(model=model, dimensions=dimensions)
        fields |= {"normalize": normalize, "encoding_format": "base64", "on_error": on_error}
        fields |= unknown_fields(on_unknown)
        batch = self._batch("/embed", fields, on_error, _read_embeddings, rows.put)

        def finish() -> EmbedResult:
            usages = [body.usage for body in batch.bodies]
            dim = batch.identity.dim if batch.identity else None
            try:
                vectors = rows.assemble(dim or 0)
            except ValueError as error:
                raise errors.BadAnswer(f"/embed: {error}") from error
            return EmbedResult(
                vectors=vectors,
                errors=dict(sorted(batch.failed.items())),
                identity=batch.identity,
                texts=sum(usage.texts for usage in usages),
                images=sum(usage.images for usage in usages),
                tokens=sum(usage.tokens for usage in usages),
                warnings=batch.said(),
            )

        return self._plan("embed", items, batch, finish)

    def classify(
        self,
        images: Iterable[ImageSource],
        *,
        labels: Labels | None,
        label_set: str | None,
        templates: str | Sequence[str] | None,
        model: str | None,
        activation: Activation | None,
        top_k: int | None,
        threshold: float | None,
        on_error: OnError,
        on_unknown: OnUnknown,
    ) -> CallPlan[ClassifyResult]:
        items = _not_empty(sources((), images))
        found: list[list[Prediction]] = [[] for _ in items]
        fields = _given(model=model, label_set=label_set, activation=activation, top_k=top_k, threshold=threshold)
        fields |= label_fields(labels, templates) | {"on_error": on_error} | unknown_fields(on_unknown)
        batch = self._batch("/classify", fields, on_error, _read_predictions, found.__setitem__)

        def finish() -> ClassifyResult:
            failed = dict(sorted(batch.failed.items()))
            return ClassifyResult(predictions=found, errors=failed, identity=batch.identity, warnings=batch.said())

        return self._plan("classify", items, batch, finish)

    def localize(
        self,
        images: Iterable[ImageSource],
        *,
        labels: Labels | None,
        label_set: str | None,
        templates: str | Sequence[str] | None,
        model: str | None,
        threshold: float | None,
        include: Sequence[Included],
        heatmap_format: HeatmapFormat,
        heatmap_labels: Sequence[str] | None,
        short_px: int | None,
        on_error: OnError,
        on_unknown: OnUnknown,
    ) -> CallPlan[LocalizeResult]:
        items = _not_empty(sources((), images))
        found: list[Located | None] = [None for _ in items]
        for name, several in (("include", include), ("heatmap_labels", heatmap_labels)):
            if isinstance(several, str):
                raise TypeError(f"{name}: expected several, got one string; write {name}=[{several!r}]")
        fields = _given(model=model, label_set=label_set, threshold=threshold, short_px=short_px)
        fields |= label_fields(labels, templates) | {"on_error": on_error} | unknown_fields(on_unknown)
        fields |= {"include": list(include), "heatmap_format": heatmap_format}
        fields |= {} if heatmap_labels is None else {"heatmap_labels": list(heatmap_labels)}
        batch = self._batch("/localize", fields, on_error, _read_locations, found.__setitem__)

        def finish() -> LocalizeResult:
            failed = dict(sorted(batch.failed.items()))
            threshold = batch.bodies[0].threshold if batch.bodies else None
            return LocalizeResult(
                images=found, errors=failed, identity=batch.identity, threshold=threshold, warnings=batch.said()
            )

        return self._plan("localize", items, batch, finish)

    def _batch(
        self,
        path: str,
        fields: dict[str, Any],
        on_error: OnError,
        read: Callable[[bytes], BatchPart[Any]],
        keep: Callable[[int, Any], None],
    ) -> Batch[Any]:
        return Batch[Any](
            path=path,
            fields=fields,
            on_error=on_error,
            max_bytes=self.limits.image_bytes,
            policy=self.policy,
            chance=self.chance,
            read=read,
            keep=keep,
        )

    def _plan(
        self, label: str, items: Sequence[InputSource], batch: Batch[Any], finish: Callable[[], T]
    ) -> CallPlan[T]:
        parts = chunks(items, self.limits.items)
        return CallPlan(label=label, total=len(items), batch=batch, chunks=parts, finish=finish)


def label_fields(labels: Labels | None, templates: str | Sequence[str] | None) -> dict[str, Any]:
    """The JSON of labels and templates.

    labels: names, LabelPrompts or {"name", "prompts"}, mixed; or one mapping of name -> its prompt or prompts.

    Raises:
        TypeError: one string where several are expected, or a label that is none of these.
    """
    if isinstance(labels, (str, bytes)):
        raise TypeError("labels: expected several, got one string; write labels=['cat', 'dog']")
    if isinstance(labels, Mapping):
        labels = [{"name": name, "prompts": _several(prompts)} for name, prompts in labels.items()]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    shown = None if labels is None else [_label(each, index) for index, each in enumerate(labels)]
    return _given(labels=shown, templates=templates if isinstance(templates, str | None) else list(templates))


def unknown_fields(on_unknown: OnUnknown) -> dict[str, Any]:
    """Nothing for what servers do by themselves, so that older ones understand the request."""
    return {} if on_unknown == "warn" else {"on_unknown": on_unknown}


def weigh_fields(weigh_templates: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The JSON of pictures by which templates are weighed: the name of a collection, or all that is said of it."""
    named = {"collection": weigh_templates} if isinstance(weigh_templates, str) else weigh_templates
    return _given(weigh_templates=None if named is None else dict(named))


def _label(label: LabelLike, index: int) -> Any:
    if isinstance(label, str):
        return str(label)
    if isinstance(label, LabelPrompts):
        return label.model_dump()
    if isinstance(label, Mapping) and set(label) == {"name", "prompts"}:  # pyright: ignore[reportUnnecessaryIsInstance]
        return {"name": label["name"], "prompts": _several(label["prompts"])}
    raise TypeError(
        f"labels[{index}]: expected a string, LabelPrompts or {{'name': ..., 'prompts': [...]}}, got {label!r:.80}"
    )


def _several(prompts: str | Iterable[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _not_empty(items: list[InputSource]) -> list[InputSource]:
    if not items:
        raise ValueError("expected at least one input, got none")
    return items


def _read_embeddings(body: bytes) -> BatchPart[EmbedResponse]:
    answer = EmbedResponse.model_validate_json(body, extra="ignore")
    identity = ModelIdentity(model=answer.model, fingerprint=answer.fingerprint, space=answer.space, dim=answer.dim)
    entries = [(e.index, e.error if isinstance(e, ItemError) else e.embedding) for e in answer.data]
    return BatchPart(answer, identity, entries, answer.warnings)


def _read_predictions(body: bytes) -> BatchPart[ClassifyResponse]:
    answer = ClassifyResponse.model_validate_json(body, extra="ignore")
    identity = ModelIdentity(model=answer.model, fingerprint=answer.fingerprint)
    entries = [(e.index, e.error if isinstance(e, ItemError) else e.predictions) for e in answer.data]
    return BatchPart(answer, identity, entries, answer.warnings)


def _read_locations(body: bytes) -> BatchPart[LocalizeResponse]:
    answer = LocalizeResponse.model_validate_json(body, extra="ignore")
    identity = ModelIdentity(model=answer.model, fingerprint=answer.fingerprint)
    entries = [(e.index, e.error if isinstance(e, ItemError) else located(e)) for e in answer.data]
    return BatchPart(answer, identity, entries, answer.warnings)
