"""Bodies of /models and of the health routes. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from clipworks.wire.common import (
    EncoderFingerprint,
    Wire,
)


class Providers(Wire):
    requested: list[str]
    active: list[str]


class HeadInfo(Wire):
    """A classifier that a model brings; its name is a label set for `/classify`."""

    name: str
    labels: int
    activation: Literal["softmax", "sigmoid"]


class ModelSummary(Wire):
    name: str
    version: int
    fingerprint: EncoderFingerprint
    build: str
    space: str
    kind: Literal["base", "derivation"]
    dim: int
    roles: list[str]
    precision: dict[str, str] = Field(description="role -> precision that is, or would be, served")
    batch_invariant: bool
    providers: Providers
    loaded: bool
    sealed: bool = Field(default=False, description="its manifest has a digest of its own, which was right")
    sessions: list[str] = Field(
        default_factory=list[str], description="roles that are open now; dense_encoder is opened by the first /localize"
    )
    base: str | None = Field(default=None, description="name@version that a derivation derives from")
    heads: list[HeadInfo] = Field(default_factory=list[HeadInfo])
    verified: Literal["torch", "wrapped"] = Field(
        default="torch", description="compared with the torch model, or another project's graph compared with itself"
    )
    licence: str = Field(default="", description="of the weights, as their source states it")
    source: str = Field(default="", description="where the weights come from; a repository with its revision")


class ModelList(Wire):
    data: list[ModelSummary]


class ModelDetail(ModelSummary):
    image_spec: dict[str, Any] | None
    text_spec: dict[str, Any] | None
    dense_spec: dict[str, Any] | None = Field(default=None, description="how /localize looks at a picture")
    presence: dict[str, Any] | None = Field(default=None, description="how /localize decides what is present")
    search: dict[str, Any] | None = Field(
        default=None, description="how a search that asks for `presence` tells whether anything matches"
    )
    templates: list[str]
    activation: Literal["softmax", "sigmoid", "none"] = Field(description="none: scores of /classify are cosines")
    logit_scale: float | None = Field(description="null: not known, so there is no softmax or sigmoid")
    scale_source: str = Field(default="the weights", description="where scale and bias were read")
    logit_bias: float
    dimensions: list[int]
    metrics: dict[str, float]
    provenance: dict[str, Any]
    skipped: list[dict[str, Any]]
    space_proofs: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]], description="why a changed tower may keep the base's space"
    )


class Health(Wire):
    status: Literal["ok", "starting", "draining", "failed"]
    detail: str | None = None
