"""POST /localize: which labels are in an image, how sure, and where."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import LocalizeRequest, LocalizeResponse
from model_store.manifest import Presence
from model_store.presence import presence_of
from service.engine.running import RunningModel
from service.faults import TooManyItems
from service.http.errors import Refusal
from service.http.openapi import answers, bodies
from service.http.options import Options
from service.routes.common import classes_of
from service.routes.direct import DirectRoute
from service.routes.labelled import LabelledAnswer, LabelledRequest, answer, label_vectors, read_asked, warnings_of
from service.services import Services
from service.tasks import pipeline
from service.tasks.localize import LabelAt, LabelHeatmap, LocalizeOptions, LocatedLabels
from service.tasks.scoring import ClassMatrix

OPTIONS: Options = {
    "model": "text",
    "labels": "list",
    "label_set": "text",
    "templates": "templates",
    "threshold": "number",
    "include": "list",
    "heatmap_format": "text",
    "heatmap_labels": "list",
    "short_px": "whole",
    "on_error": "text",
    "on_unknown": "text",
}
router = APIRouter(route_class=DirectRoute)


@router.post(
    "/localize",
    summary="Find labels given as text in images",
    description="Scores each label, best first, and says where those are that are present: boxes, masks, heatmaps.",
    responses=answers(LocalizeResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=bodies(LocalizeRequest, OPTIONS),
)
async def localize(request: Request) -> Response:
    asked = await read_asked(request, LocalizeRequest, OPTIONS)
    _check_dense(asked.model, asked.body)
    presence = presence_of(asked.model.artifact)
    threshold = presence.threshold if asked.body.threshold is None else asked.body.threshold
    return await answer(request, asked, _find(asked, presence, threshold), _shown, {"threshold": threshold})


def _check_dense(model: RunningModel, body: LocalizeRequest) -> None:
    """Raises Refusal (422) for a model that cannot localise, or a size that it cannot look at."""
    spec = model.dense_spec
    if spec is None:
        message = (
            f"{model.reference} has no dense_encoder, so it knows what is in a picture but not where: take a model "
            "whose roles (GET /models) have dense_encoder, or export this one with a dense role (docs/localize.md)"
        )
        raise Refusal(422, "unsupported_input", message, param="model")
    if body.short_px is not None and spec.sizes == "fixed":
        message = f"{model.reference} looks at every picture as {spec.width_px}x{spec.height_px} px: leave it out"
        raise Refusal(422, "unsupported_input", f"short_px: {message}", param="short_px")


async def _find(
    asked: LabelledRequest[LocalizeRequest], presence: Presence, threshold: float
) -> LabelledAnswer[LocatedLabels]:
    services, model, body = asked.services, asked.model, asked.body
    if body.labels is not None:
        _check_amount(services, body, [each if isinstance(each, str) else each.name for each in body.labels])
    templates = body.templates if body.templates is not None else list(presence.positive_templates)
    classes = await classes_of(services, model, body, templates, asked.budget)
    if not isinstance(classes, ClassMatrix):
        message = (
            f"label set {body.label_set} judges whole pictures (a class head, or a set taught by example) and has no "
            "vectors to point with; "
            "send the labels themselves, or store them under another name with PUT /label-sets/{name}"
        )
        raise Refusal(422, "unsupported_input", message, param="label_set")
    _check_amount(services, body, classes.names)
    wanted = LocalizeOptions(
        threshold=threshold,
        boxes="boxes" in body.include,
        masks="mask" in body.include,
        heatmap=body.heatmap_format if "heatmap" in body.include else None,
        heatmap_of=None if body.heatmap_labels is None else frozenset(body.heatmap_labels),
    )
    outcomes = await pipeline.localize(
        model,
        asked.images,
        classes,
        await label_vectors(asked, classes, presence),
        presence,
        wanted=wanted,
        short_px=body.short_px,
        pool=services.pool,
        budget=asked.budget,
    )
    return LabelledAnswer(outcomes, warnings_of(classes))


def _check_amount(services: Services, body: LocalizeRequest, names: Sequence[str]) -> None:
    """Raises TooManyItems for more labels than a picture is asked for, or more maps or masks than an answer holds."""
    limits = services.settings
    if body.label_set is not None and len(names) > limits.max_label_texts:
        raise TooManyItems(
            f"label set {body.label_set} has {len(names)} labels, /localize takes {limits.max_label_texts} "
            "(CLIPWORKS_MAX_LABEL_TEXTS)"
        )
    known = set(names)
    unknown = [name for name in body.heatmap_labels or () if name not in known]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        message = f"heatmap_labels: {unknown[0]!r}{more} is none of the labels"
        raise Refusal(422, "invalid_field", message, param="heatmap_labels")
    images = len(body.inputs)
    asked = len(names) if body.heatmap_labels is None else sum(name in body.heatmap_labels for name in names)
    if "heatmap" in body.include and asked * images > limits.max_heatmaps:
        raise TooManyItems(
            f"{images} images x {asked} labels are {asked * images} heatmaps, the limit is {limits.max_heatmaps} "
            "(CLIPWORKS_MAX_HEATMAPS): name fewer in heatmap_labels, or leave heatmap out of include"
        )
    if "mask" in body.include and len(names) * images > limits.max_masks:
        raise TooManyItems(
            f"{images} images x {len(names)} labels with masks are {len(names) * images}, the limit is "
            f"{limits.max_masks} (CLIPWORKS_MAX_MASKS): send fewer, or ask for boxes alone"
        )


def _shown(located: LocatedLabels) -> dict[str, Any]:
    labels = [_label(each, [located.height, located.width]) for each in located.labels]
    return {"width": located.width, "height": located.height, "labels": labels}


def _label(found: LabelAt, size: list[int]) -> dict[str, Any]:
    boxes: list[dict[str, Any]] = []
    for box in found.boxes:
        shown: dict[str, Any] = {"x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1, "score": box.score}
        if box.mask is not None:
            shown["mask"] = {"size": size, "counts": box.mask}
        boxes.append(shown)
    entry: dict[str, Any] = {"label": found.label, "score": found.score, "present": found.present, "boxes": boxes}
    if found.weak:
        entry["weak"] = True
    if found.heatmap is not None:
        entry["heatmap"] = _heatmap(found.heatmap)
    return entry


def _heatmap(heatmap: LabelHeatmap) -> dict[str, Any]:
    rows, columns = heatmap.values.shape
    if heatmap.png is None:
        return {"rows": rows, "columns": columns, "values": heatmap.values}
    return {
        "width": heatmap.size[0],
        "height": heatmap.size[1],
        "low": float(heatmap.values.min()),
        "high": float(heatmap.values.max()),
        "png": base64.b64encode(heatmap.png).decode("ascii"),
    }
