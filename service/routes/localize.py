"""POST /localize: which labels are in an image, how sure, and where."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import LocalizeRequest, LocalizeResponse
from model_store.errors import ClipworksError
from model_store.manifest import Presence
from model_store.presence import presence_of
from service import pipeline
from service.context import Context, context_of, while_connected
from service.errors import Refusal
from service.faults import TooManyItems
from service.ingress import Options, items_of, param_of, read_request
from service.localize import Heatmap, LabelAt, Located, Wanted
from service.openapi import answers, bodies
from service.pipeline import FailedItem, ImageItem
from service.respond import entries, json_response, model_headers
from service.routes.common import (
    check_count,
    check_towers,
    classes_of,
    deadline_for,
    model_of,
    until_first_failure,
)
from service.running import RunningModel
from service.scoring import ClassMatrix
from service.services import Services, services_of
from service.timing import Deadline

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
}
router = APIRouter()


@router.post(
    "/localize",
    summary="Find labels given as text in images",
    description="Scores each label, best first, and says where those are that are present: boxes, masks, heatmaps.",
    responses=answers(LocalizeResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=bodies(LocalizeRequest, OPTIONS),
)
async def localize(request: Request) -> Response:
    services, context = services_of(request), context_of(request.scope)
    deadline = deadline_for(request)
    received = await read_request(request, LocalizeRequest, services.limits, options=OPTIONS)
    body = received.body
    check_count(services, len(body.inputs))
    model = model_of(services, body.model, body.label_set)
    _check_dense(model, body)
    items = items_of(received, body.inputs, services.limits)
    check_towers(model, items, body.inputs)
    images = [item for item in items if isinstance(item, (ImageItem, FailedItem))]
    presence = presence_of(model.artifact)
    threshold = presence.threshold if body.threshold is None else body.threshold
    work = _find(services, model, until_first_failure(images, body.on_error), body, presence, deadline, context)
    outcomes = await while_connected(request, work)
    data = entries(
        outcomes,
        _shown,
        on_error=body.on_error,
        place=lambda index: param_of(body.inputs, index),
        telemetry=services.telemetry,
    )
    fingerprint = {"image": model.fingerprint.image, "text": model.fingerprint.text}
    payload = {"model": model.reference, "fingerprint": fingerprint, "threshold": threshold, "data": data}
    return json_response(payload, headers=model_headers(model))


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
    services: Services,
    model: RunningModel,
    images: Sequence[ImageItem | FailedItem],
    body: LocalizeRequest,
    presence: Presence,
    deadline: Deadline,
    context: Context,
) -> list[Located | ClipworksError]:
    if body.labels is not None:
        _check_amount(services, body, [each if isinstance(each, str) else each.name for each in body.labels])
    templates = body.templates if body.templates is not None else list(presence.positive_templates)
    classes = await classes_of(services, model, body, templates, deadline, context.timings)
    if not isinstance(classes, ClassMatrix):
        message = (
            f"label set {body.label_set} is a class head: it judges whole pictures and has no vectors to point with; "
            "send the labels themselves, or store them under another name with PUT /label-sets/{name}"
        )
        raise Refusal(422, "unsupported_input", message, param="label_set")
    _check_amount(services, body, classes.names)
    labels = await services.zero_shot.label_vectors(
        model,
        classes,
        presence,
        max_texts=services.settings.max_label_texts,
        deadline=deadline,
        timings=context.timings,
    )
    wanted = Wanted(
        threshold=presence.threshold if body.threshold is None else body.threshold,
        boxes="boxes" in body.include,
        masks="mask" in body.include,
        heatmap=body.heatmap_format if "heatmap" in body.include else None,
        heatmap_of=None if body.heatmap_labels is None else frozenset(body.heatmap_labels),
    )
    return await pipeline.localize(
        model,
        images,
        classes.names,
        labels,
        presence,
        wanted=wanted,
        short_px=body.short_px,
        pool=services.pool,
        deadline=deadline,
        timings=context.timings,
    )


def _check_amount(services: Services, body: LocalizeRequest, names: Sequence[str]) -> None:
    """Raises TooManyItems for more labels than a picture is asked for, or more maps than an answer holds."""
    most, maps = services.settings.max_label_texts, services.settings.max_heatmaps
    if body.label_set is not None and len(names) > most:
        raise TooManyItems(
            f"label set {body.label_set} has {len(names)} labels, /localize takes {most} (CLIPWORKS_MAX_LABEL_TEXTS)"
        )
    if body.heatmap_labels is not None and not set(body.heatmap_labels) <= set(names):
        message = "heatmap_labels: one of them is none of the labels"
        raise Refusal(422, "invalid_field", message, param="heatmap_labels")
    asked = len(names) if body.heatmap_labels is None else sum(name in body.heatmap_labels for name in names)
    if "heatmap" in body.include and asked * len(body.inputs) > maps:
        raise TooManyItems(
            f"{len(body.inputs)} images x {asked} labels are {asked * len(body.inputs)} heatmaps, the limit is {maps} "
            "(CLIPWORKS_MAX_HEATMAPS): name fewer in heatmap_labels, or leave heatmap out of include"
        )


def _shown(located: Located) -> dict[str, Any]:
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
    if found.heatmap is not None:
        entry["heatmap"] = _heatmap(found.heatmap)
    return entry


def _heatmap(heatmap: Heatmap) -> dict[str, Any]:
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
