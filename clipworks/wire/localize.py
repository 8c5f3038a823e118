"""Bodies of /localize. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipworks.wire.common import (
    EncoderFingerprint,
    ItemError,
    OnError,
    Warnings,
    Weak,
    Wire,
)
from clipworks.wire.labels import Labelled

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
    weak: Weak = False


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
    warnings: Warnings = []
