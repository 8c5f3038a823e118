"""Labels of a request, and bodies of /classify and /label-sets. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from clipworks.wire.common import (
    MAX_WHOLE,
    EncoderFingerprint,
    ImageOnly,
    ItemError,
    ModelName,
    OnError,
    OnUnknownField,
    Warnings,
    Weak,
    Wire,
)

LABEL_SET_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

Activation = Literal["softmax", "sigmoid", "none"]
NamedTemplates = Literal["none", "simple", "imagenet"]


class LabelPrompts(Wire):
    """A label that brings its own complete prompts; templates are not applied to them."""

    name: str = Field(min_length=1)
    prompts: list[str] = Field(min_length=1, fail_fast=True)


Label = Annotated[str, StringConstraints(min_length=1)] | LabelPrompts
LabelList = Annotated[list[Label], Field(min_length=1, fail_fast=True)]
_Prompts = Annotated[list[str], Field(min_length=1)]
_LabelName = Annotated[str, StringConstraints(min_length=1)]
_LabelMapping = Annotated[dict[_LabelName, str | _Prompts], Field(min_length=1)]


def _labels_of_mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return [
        {"name": name, "prompts": [prompts] if isinstance(prompts, str) else prompts}
        for name, prompts in cast(dict[Any, Any], value).items()
    ]


_LABELS = "labels, or an object of each label's own prompts; equal ones count once"
Labels = Annotated[
    LabelList,
    BeforeValidator(_labels_of_mapping, json_schema_input_type=LabelList | _LabelMapping),
    Field(description=_LABELS),
]
LabelsOrNone = Annotated[
    LabelList | None,
    BeforeValidator(_labels_of_mapping, json_schema_input_type=LabelList | None | _LabelMapping),
    Field(description=_LABELS),
]
Template = Annotated[str, StringConstraints(pattern=r"^[^{}]*\{\}[^{}]*$")]
Templates = NamedTemplates | Annotated[list[Template], Field(min_length=1, fail_fast=True)]


class Labelled(Wire):
    """Pictures, and the labels that they are looked at for."""

    model: ModelName | None = None
    inputs: list[ImageOnly] = Field(min_length=1, fail_fast=True)
    labels: LabelsOrNone = None
    label_set: Annotated[str, StringConstraints(pattern=LABEL_SET_PATTERN)] | None = None
    templates: Templates | None = None
    on_unknown: OnUnknownField = "warn"

    @model_validator(mode="after")
    def _labels_or_set(self) -> Labelled:
        if (self.labels is None) == (self.label_set is None):
            raise ValueError("give either labels or label_set")
        if self.label_set is not None and self.templates is not None:
            raise ValueError("a label_set has its own templates")
        return self


class ClassifyRequest(Labelled):
    activation: Activation | None = None
    top_k: int | None = Field(default=None, ge=1, le=MAX_WHOLE)
    threshold: float | None = None
    on_error: OnError = "fail"


class Prediction(Wire):
    label: str
    score: float
    similarity: float | None = Field(
        description="cosine of image and class; null for a class head, and for a label without a direction"
    )
    weak: Weak = False


class Classification(Wire):
    index: int
    predictions: list[Prediction]


class ClassifyResponse(Wire):
    model: str
    fingerprint: EncoderFingerprint
    data: list[Classification | ItemError]
    warnings: Warnings = []


class LabelSetRequest(Wire):
    model: ModelName | None = None
    labels: Labels
    templates: Templates | None = None
    on_unknown: OnUnknownField = "warn"


class LabelSetInfo(Wire):
    name: str
    model: str
    labels: int
    texts: int
    encoded: int = Field(description="texts encoded so far; ready when equal to `texts`")
    ready: bool
    failed: str | None = None
    warnings: Warnings = []
    built_in: bool = Field(default=False, description="a class head of `model`: it cannot be replaced or deleted")


class LabelSetDetail(LabelSetInfo):
    label_names: list[str]
    templates: list[str]


class LabelSetList(Wire):
    data: list[LabelSetInfo]
