"""The call of `rerank`: one query with many documents, in as many requests as these take."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipworks._batches import Batch, BatchPart
from clipworks._bodies import post
from clipworks._calls import BatchLimits, CallPlan, unknown_fields
from clipworks._exchange import Request
from clipworks._inputs import ImageAddress, ImageBytes, InputSource, Loaded, Text, chunks, sources
from clipworks.errors import UnreadableInput
from clipworks.results import ModelIdentity, RankedDocument, RerankedDocuments
from clipworks.retry import RetryPolicy
from clipworks.schemas import ItemError, OnError, OnUnknown, RerankResponse

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource


@dataclass(frozen=True, kw_only=True)
class RerankCalls:
    """Makes plans; holds what is the same for all calls of one client."""

    limits: BatchLimits
    policy: RetryPolicy
    chance: random.Random = field(default_factory=random.Random)

    def rerank(
        self,
        query: str | ImageSource,
        documents: Iterable[str] | Iterable[ImageSource],
        *,
        model: str | None,
        top_n: int | None,
        on_error: OnError,
        on_unknown: OnUnknown,
    ) -> CallPlan[RerankedDocuments]:
        """A query that is a str is a text, and its documents are pictures; to any other one they are texts.

        Raises:
            TypeError: one document where several are expected.
            ValueError: no document, or top_n below 1.
        """
        is_text = isinstance(query, str)
        items = sources((), documents) if is_text else sources(documents, ())  # pyright: ignore[reportArgumentType]
        if not items:
            raise ValueError("expected at least one document, got none")
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n must be at least 1, got {top_n}")
        found: dict[int, float] = {}
        fields: dict[str, Any] = {} if model is None else {"model": model}
        fields |= {"on_error": on_error} | unknown_fields(on_unknown)
        batch = Batch[RerankResponse](
            path="/rerank",
            fields=fields,
            on_error=on_error,
            max_bytes=self.limits.image_bytes,
            policy=self.policy,
            chance=self.chance,
            read=_read_scores,
            keep=found.__setitem__,
            pack=_packing(InputSource(0, query, is_text)),
        )

        def finish() -> RerankedDocuments:
            best = sorted(found, key=lambda index: (-found[index], index))[:top_n]
            return RerankedDocuments(
                documents=[RankedDocument(index=index, score=found[index]) for index in best],
                errors=dict(sorted(batch.failed.items())),
                identity=batch.identity,
                warnings=batch.said(),
            )

        parts = chunks(items, self.limits.items)
        return CallPlan(label="rerank", total=len(items), batch=batch, chunks=parts, finish=finish)


def _packing(query: InputSource) -> Callable[[str, Mapping[str, Any], Sequence[Loaded]], Request]:
    """Requests of one query, which is read once; a picture is the first file of each."""
    lock, read = threading.Lock(), list[Loaded]()

    def pack(path: str, fields: Mapping[str, Any], documents: Sequence[Loaded]) -> Request:
        with lock:
            if not read:
                try:
                    read.append(query.load())
                except UnreadableInput as error:
                    raise UnreadableInput(f"query: {error}") from error
        asked = read[0]
        files = [each.data for each in (asked, *documents) if isinstance(each, ImageBytes)]
        body = dict(fields)
        if not isinstance(asked, ImageBytes):
            body["query"] = _described(asked)
        if described := [_described(each) for each in documents if not isinstance(each, ImageBytes)]:
            body["documents"] = described
        return post(path, body, files)

    return pack


def _described(value: Text | ImageAddress) -> dict[str, str]:
    return {"text": value.text} if isinstance(value, Text) else {"image_url": value.url}


def _read_scores(body: bytes) -> BatchPart[RerankResponse]:
    answer = RerankResponse.model_validate_json(body, extra="ignore")
    identity = ModelIdentity(model=answer.model, fingerprint=answer.fingerprint)
    entries = [(e.index, e.error if isinstance(e, ItemError) else e.relevance_score) for e in answer.results]
    return BatchPart(answer, identity, entries, answer.warnings)
