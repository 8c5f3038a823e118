"""The wire: every request and response body, for server, client and OpenAPI alike.

Requests refuse unknown fields, NaN and infinity, except under /v1, where other people's clients send their own.
Counts and sizes are the server's settings (413), not part of these shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from clipworks._wire import IMAGE_FORMAT as IMAGE_FORMAT
from clipworks._wire import (
    MAX_WHOLE,
    EncoderFingerprint,
    EncodingFormat,
    ImageOnly,
    ImageText,
    Input,
    ItemError,
    ModelName,
    OnError,
    Wire,
)
from clipworks._wire import MODEL_PATTERN as MODEL_PATTERN
from clipworks._wire import ErrorDetail as ErrorDetail
from clipworks._wire import ErrorResponse as ErrorResponse
from clipworks._wire import ImageInput as ImageInput
from clipworks._wire import ImageUrlInput as ImageUrlInput
from clipworks._wire import TextInput as TextInput
from clipworks.collection_schemas import *  # noqa: F403 - this module is where everyone finds the whole wire

LABEL_SET_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

Activation = Literal["softmax", "sigmoid", "none"]
NamedTemplates = Literal["none", "simple", "imagenet"]


# ---------------------------------------------------------------- models


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


class ModelList(Wire):
    data: list[ModelSummary]


class ModelDetail(ModelSummary):
    image_spec: dict[str, Any] | None
    text_spec: dict[str, Any] | None
    dense_spec: dict[str, Any] | None = Field(default=None, description="how /localize looks at a picture")
    presence: dict[str, Any] | None = Field(default=None, description="how /localize decides what is present")
    templates: list[str]
    activation: Literal["softmax", "sigmoid"]
    logit_scale: float
    logit_bias: float
    dimensions: list[int]
    metrics: dict[str, float]
    provenance: dict[str, Any]
    skipped: list[dict[str, Any]]
    space_proofs: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]], description="why a changed tower may keep the base's space"
    )


# ---------------------------------------------------------------- embedding


class EmbedRequest(Wire):
    model: ModelName | None = None
    inputs: list[Input] = Field(min_length=1, fail_fast=True)
    normalize: bool = True
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(default=None, ge=1, le=MAX_WHOLE)
    on_error: OnError = "fail"


class Embedding(Wire):
    index: int
    embedding: list[float] | str


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


# ---------------------------------------------------------------- zero-shot classification


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
    similarity: float | None = Field(description="cosine of image and class; null for a class head, which has none")


class Classification(Wire):
    index: int
    predictions: list[Prediction]


class ClassifyResponse(Wire):
    model: str
    fingerprint: EncoderFingerprint
    data: list[Classification | ItemError]


# ---------------------------------------------------------------- multi-label localisation

Included = Literal["boxes", "heatmap", "mask"]
HeatmapFormat = Literal["array", "png"]


class LocalizeRequest(Labelled):
    """Which labels are there, how sure, and where."""

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="score of a label that is present; default: the model's own"
    )
    include: list[Included] = Field(default=["boxes"], fail_fast=True, description="mask: boxes, each with its mask")
    heatmap_format: HeatmapFormat = "array"
    heatmap_labels: list[str] | None = Field(
        default=None, min_length=1, fail_fast=True, description="maps of these labels only"
    )
    short_px: int | None = Field(
        default=None, ge=8, le=4096, description="short side at which pictures are looked at; default: the model's own"
    )
    on_error: OnError = "fail"


class Rle(Wire):
    """COCO's compressed run lengths; `size` is [height, width]."""

    size: tuple[int, int]
    counts: str


class Box(Wire):
    """Edges in pixels of the upright original; x1 and y1 are the far ones."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    mask: Rle | None = None


class HeatmapArray(Wire):
    """The map as the model saw it: `rows` lists of `columns` values, spread evenly over the picture."""

    rows: int
    columns: int
    values: list[list[float]]


class HeatmapPng(Wire):
    """The map enlarged to the picture (long side at most 1024): base64 of a grey PNG, 0 is `low` and 255 is `high`."""

    width: int
    height: int
    low: float
    high: float
    png: str


class LabelLocation(Wire):
    """`boxes` are those of a present label, best first; others have none."""

    label: str
    score: float
    present: bool
    boxes: list[Box]
    heatmap: HeatmapArray | HeatmapPng | None = None


class Localization(Wire):
    index: int
    width: int
    height: int
    labels: list[LabelLocation] = Field(description="every label, best first")


class LocalizeResponse(Wire):
    model: str
    fingerprint: EncoderFingerprint
    threshold: float = Field(description="what decided about `present`")
    data: list[Localization | ItemError]


# ---------------------------------------------------------------- label sets


class LabelSetRequest(Wire):
    model: ModelName | None = None
    labels: Labels
    templates: Templates | None = None


class LabelSetInfo(Wire):
    name: str
    model: str
    labels: int
    texts: int
    encoded: int = Field(description="texts encoded so far; ready when equal to `texts`")
    ready: bool
    failed: str | None = None
    built_in: bool = Field(default=False, description="a class head of `model`: it cannot be replaced or deleted")


class LabelSetDetail(LabelSetInfo):
    label_names: list[str]
    templates: list[str]


class LabelSetList(Wire):
    data: list[LabelSetInfo]


# ---------------------------------------------------------------- OpenAI-compatible


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


class V1Model(V1Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class V1ModelList(V1Wire):
    object: Literal["list"] = "list"
    data: list[V1Model]


# ---------------------------------------------------------------- health


class Health(Wire):
    status: Literal["ok", "starting", "draining", "failed"]
    detail: str | None = None
