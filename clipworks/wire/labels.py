"""Labels of a request, and bodies of /classify and /label-sets. Import them from clipworks.schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from clipworks.wire.common import (
    MAX_WHOLE,
    ByContent,
    EncoderFingerprint,
    ImageInput,
    ImageOnly,
    ImageUrlInput,
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
_EXAMPLES = (
    "pictures by label: {label: [picture, ...]}, or a list of pictures that each have a label; a picture is an image, "
    "or an item of a collection"
)


class ItemReference(Wire):
    collection: str = Field(min_length=1, max_length=128)
    id: str = Field(min_length=1, max_length=512)


class ExampleImage(ImageInput):
    label: str


class ExampleImageUrl(ImageUrlInput):
    label: str


class ExampleItem(Wire):
    """An image that a collection holds: its vector is taken as it is."""

    label: str
    item: ItemReference


_EXAMPLE_FIELDS: Mapping[str, type[Wire]] = {"image": ExampleImage, "image_url": ExampleImageUrl, "item": ExampleItem}
Example = Annotated[ExampleImage | ExampleImageUrl | ExampleItem, ByContent(_EXAMPLE_FIELDS)]
_ExampleList = Annotated[list[Example], Field(min_length=1, fail_fast=True)]
_Picture = ImageInput | ImageUrlInput


class _ItemPicture(Wire):
    item: ItemReference


_ExampleMapping = Annotated[dict[_LabelName, list[_Picture | _ItemPicture]], Field(min_length=1)]


def _examples_of_mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    by_label = cast(dict[Any, Any], value)
    if any(not isinstance(each, list) for each in by_label.values()):
        raise ValueError("expected a list of pictures for each label")
    pictures = (picture for pictures in by_label.values() for picture in pictures)
    if any(isinstance(picture, dict) and "label" in picture for picture in pictures):
        raise ValueError("a picture has its label from where it stands: leave its own out, or give a list")
    return [
        {**cast(dict[Any, Any], picture), "label": label} if isinstance(picture, dict) else picture
        for label, pictures in by_label.items()
        for picture in pictures
    ]


Examples = Annotated[
    _ExampleList,
    BeforeValidator(_examples_of_mapping, json_schema_input_type=_ExampleList | _ExampleMapping),
    Field(description=_EXAMPLES),
]
_AnyExamples = Annotated[list[Example], Field(fail_fast=True)]
ExamplesOrNone = Annotated[
    _AnyExamples | None,
    BeforeValidator(_examples_of_mapping, json_schema_input_type=_AnyExamples | None | _ExampleMapping),
    Field(description=f"{_EXAMPLES}; none yet: they will come with POST /label-sets/{{name}}/examples"),
]
OnExampleError = Annotated[
    OnError,
    Field(description="item: an example that cannot be read is named in the answer, and the others are taken"),
]
LabelSetStatus = Literal["ready", "encoding", "fitting", "failed"]
Template = Annotated[str, StringConstraints(pattern=r"^[^{}]*\{\}[^{}]*$")]
Templates = NamedTemplates | Annotated[list[Template], Field(min_length=1, fail_fast=True)]

Weighting = Literal["softmax", "select"]


class WeighTemplates(Wire):
    """Pictures without labels that say how much each template counts: images of a collection of the same model."""

    collection: str = Field(min_length=1, max_length=128)
    reference: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="a collection of pictures of any kind, whose answers are half of what is expected of a prompt",
    )
    limit: int = Field(default=1000, ge=10, le=4096, description="pictures of each collection, chosen by their ids")
    how: Weighting = Field(
        default="softmax",
        description="softmax: weights by score; select: equal ones of those that are clearly above the median",
    )

    @model_validator(mode="after")
    def _two_collections(self) -> WeighTemplates:
        if self.reference == self.collection:
            raise ValueError("reference: other pictures than those of collection")
        return self


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
        description="cosine of image and class; null for a class head or conditional head, and for a label without a "
        "direction"
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
    """Labels as texts, pictures that show them, or both."""

    model: ModelName | None = None
    labels: LabelsOrNone = None
    templates: Templates | None = None
    examples: ExamplesOrNone = None
    weigh_templates: WeighTemplates | None = None
    on_unknown: OnUnknownField = "warn"
    on_error: OnExampleError = "item"
    needs_example: bool = Field(
        default=False,
        description="refuse the request, and keep what has this name, if no example of it can be used; true where "
        "there are examples and no `labels`",
    )

    @model_validator(mode="before")
    @classmethod
    def _labels_of_examples(cls, value: Any) -> Any:
        """Without labels the names in `examples` are them, also those that have no picture yet."""
        whole = cast(dict[str, Any], value) if isinstance(value, dict) else {}
        given = whole.get("examples")
        if whole.get("labels") is not None or not given:
            return cast(Any, value)
        filled = dict(whole)
        if isinstance(given, dict):
            by_label = cast(dict[str, Any], given)
            filled["labels"] = list(by_label)
            given = any(by_label.values())
        return {"needs_example": True, **filled} if given else filled

    @model_validator(mode="after")
    def _labels_or_examples(self) -> LabelSetRequest:
        if self.labels is None and not self.examples:
            raise ValueError("give labels, examples, or both")
        return self


class LabelSetInfo(Wire):
    name: str
    model: str
    labels: int
    texts: int
    encoded: int = Field(description="texts encoded so far; ready when equal to `texts`")
    ready: bool
    status: LabelSetStatus = Field(
        default="ready", description="encoding: its texts; fitting: its examples; failed: see `failed`"
    )
    failed: str | None = None
    examples: int = Field(default=0, description="pictures that it was taught with")
    version: int | None = Field(default=None, description="of a taught set: grows with every change of its examples")
    warnings: Warnings = []
    built_in: bool = Field(default=False, description="a class head of `model`: it cannot be replaced or deleted")


class WeighedTemplates(Wire):
    """How a set's templates were weighed; see `weigh_templates` of the request."""

    collection: str
    reference: str | None
    how: Weighting
    pictures: int = Field(description="of the collection that were looked at")
    weights: list[float] | None = Field(
        description="of `templates`, in their order, in all 1; null until they are worked out"
    )


class LeaveOneOut(Wire):
    """Each example judged by a head that was fitted to the others, beside zero-shot on the same pictures."""

    tested: int = Field(description="examples whose label has another one")
    accuracy: float
    interval: tuple[float, float] = Field(description="of accuracy: 95 %, Wilson")
    zero_shot: float | None = Field(description="accuracy of the labels' texts alone; null without a text encoder")
    zero_shot_interval: tuple[float, float] | None = None


class TaughtLabel(Wire):
    label: str
    examples: int
    tested: int
    accuracy: float | None = Field(description="leave-one-out; null where no example could be left out")
    zero_shot: float | None


class ConfusedLabels(Wire):
    """So many examples of `label` were taken for `taken_for` when they were left out."""

    label: str
    taken_for: str
    count: int


class LabelSetDetail(LabelSetInfo):
    label_names: list[str]
    templates: list[str]
    weighed: WeighedTemplates | None = Field(default=None, description="null: all templates count the same")
    leave_one_out: LeaveOneOut | None = None
    mix: float | None = Field(
        default=None, description="weight of the fitted logits beside those of the texts; 0: the texts alone"
    )
    per_label: list[TaughtLabel] | None = None
    confused: list[ConfusedLabels] | None = None
    calibrated: bool | None = Field(
        default=None,
        description="of a taught set: whether its examples were enough for `sigmoid` scores; null where it has no "
        "fitted head, so that the model decides",
    )


class AddExamplesRequest(Wire):
    examples: Examples
    on_error: OnExampleError = "item"


class StoredExample(Wire):
    index: int
    label: str
    id: str


class TaughtLabelSet(LabelSetInfo):
    """What became of each example, in the order in which they were given; without examples there is no `data`."""

    data: list[StoredExample | ItemError] = []


class RemoveExamplesRequest(Wire):
    """Examples by their ids, or all of these labels."""

    ids: list[str] | None = Field(default=None, min_length=1, fail_fast=True)
    labels: list[str] | None = Field(default=None, min_length=1, fail_fast=True)

    @model_validator(mode="after")
    def _ids_or_labels(self) -> RemoveExamplesRequest:
        if (self.ids is None) == (self.labels is None):
            raise ValueError("give either ids or labels")
        return self


class KnownExample(Wire):
    """id: of the picture's content, or collection/id of an item. predicted: what it is taken for when it is left out;
    null where it was not."""

    id: str
    label: str
    predicted: str | None


class ExampleList(Wire):
    data: list[KnownExample]


class LabelSetList(Wire):
    data: list[LabelSetInfo]
