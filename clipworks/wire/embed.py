"""Bodies of /embed. Import them from clipworks.schemas."""

from __future__ import annotations

from pydantic import Field

from clipworks.wire.common import (
    MAX_WHOLE,
    EncoderFingerprint,
    EncodingFormat,
    Input,
    ItemError,
    ModelName,
    OnError,
    OnUnknownField,
    Warnings,
    Weak,
    Wire,
)


class EmbedRequest(Wire):
    model: ModelName | None = None
    inputs: list[Input] = Field(min_length=1, fail_fast=True)
    normalize: bool = True
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(default=None, ge=1, le=MAX_WHOLE)
    on_error: OnError = "fail"
    on_unknown: OnUnknownField = "warn"


class Embedding(Wire):
    index: int
    embedding: list[float] | str
    weak: Weak = False


class Usage(Wire):
    texts: int
    images: int
    tokens: int


class EmbedResponse(Wire):
    model: str
    fingerprint: EncoderFingerprint
    space: str
    dim: int
    data: list[Embedding | ItemError]
    usage: Usage
    warnings: Warnings = []
