"""Bodies of /v1, the OpenAI-compatible routes; unknown fields are ignored there. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipworks.wire.common import (
    MAX_WHOLE,
    EncodingFormat,
    ImageText,
    OnUnknownField,
    Warnings,
)


class V1Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class V1Item(V1Wire):
    """Jina's dialect of one input."""

    text: str | None = None
    image: ImageText | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> V1Item:
        if (self.text is None) == (self.image is None):
            raise ValueError("give either text or image")
        return self


class V1EmbeddingsRequest(V1Wire):
    """`input` is a text, texts, infinity's images (`modality: image`), or Jina's list of objects."""

    model: str | None = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[V1Item], Field(min_length=1, fail_fast=True)]
        | Annotated[list[int], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(min_length=1, fail_fast=True)]
    )
    encoding_format: EncodingFormat | None = "float"
    dimensions: int | None = Field(default=None, ge=0, le=MAX_WHOLE, description="0 is infinity's word for all")
    modality: Literal["text", "image"] | None = Field(
        default="text", description="what strings of `input` are; data: URIs are pictures whatever it says"
    )
    user: str | None = None
    on_unknown: OnUnknownField | None = "warn"


class V1Embedding(V1Wire):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class V1Usage(V1Wire):
    prompt_tokens: int
    total_tokens: int


class V1EmbeddingsResponse(V1Wire):
    object: Literal["list"] = "list"
    data: list[V1Embedding]
    model: str
    usage: V1Usage
    warnings: Warnings = []


class V1Model(V1Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class V1ModelList(V1Wire):
    object: Literal["list"] = "list"
    data: list[V1Model]
