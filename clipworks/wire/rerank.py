"""Bodies of /rerank, in the dialect of Jina's and Cohere's. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clipworks.wire.common import (
    INPUT_FIELDS,
    MAX_WHOLE,
    ByContent,
    EncoderFingerprint,
    ImageInput,
    ImageUrlInput,
    Input,
    ItemError,
    ModelName,
    OnError,
    OnUnknownField,
    TextInput,
    Warnings,
    Weak,
    Wire,
)
from clipworks.wire.embed import Usage
from clipworks.wire.labels import ItemReference


class StoredPicture(Wire):
    """A picture of a collection that keeps its position vectors (`rerank` of the collection)."""

    item: ItemReference


RerankDocument = Annotated[
    str | TextInput | ImageInput | ImageUrlInput | StoredPicture,
    ByContent({**INPUT_FIELDS, "item": StoredPicture}, string=True),
]


class RerankRequest(Wire):
    """A text and pictures, or a picture and texts."""

    model: ModelName | None = Field(default=None, description="one with a reranker; without it the default model")
    query: Input = Field(
        description="a text where the documents are pictures, a picture where they are texts. In multipart/form-data "
        "and raw bodies the first file stands here if nothing does"
    )
    documents: list[RerankDocument] = Field(min_length=1, fail_fast=True)
    top_n: int | None = Field(default=None, ge=1, le=MAX_WHOLE, description="the best so many; without it all")
    return_documents: bool = Field(default=False, description="send back each document as it came in JSON")
    on_error: OnError = "fail"
    on_unknown: OnUnknownField = "warn"


class ReturnedDocument(Wire):
    """One of the fields: what the document was."""

    text: str | None = None
    image: str | None = None
    item: ItemReference | None = None


class RerankResult(Wire):
    index: int = Field(description="of the document in the request")
    relevance_score: float = Field(description="sigmoid of the match logit, 0 to 1")
    document: ReturnedDocument | None = Field(
        default=None, description="if asked for; left out for a file, which had no place in JSON"
    )
    weak: Weak = False


class RerankUsage(Usage):
    total_tokens: int = Field(description="the same as `tokens`, where clients of Jina's API look")


class RerankResponse(Wire):
    model: str
    fingerprint: EncoderFingerprint
    results: list[RerankResult | ItemError] = Field(
        description="best first, equal ones by index; behind them documents that failed, by index, whatever `top_n`"
    )
    usage: RerankUsage
    warnings: Warnings = []
