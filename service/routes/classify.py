"""POST /classify: images against labels, zero-shot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import ClassifyRequest, ClassifyResponse
from model_store.errors import ClipworksError
from service import pipeline
from service.context import Context, context_of, while_connected
from service.ingress import Options, items_of, param_of, read_request
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
from service.scoring import ClassMatrix, Scored, presence_for
from service.services import Services, services_of
from service.timing import Deadline

OPTIONS: Options = {
    "model": "text",
    "labels": "list",
    "label_set": "text",
    "templates": "templates",
    "activation": "text",
    "top_k": "whole",
    "threshold": "number",
    "on_error": "text",
}
router = APIRouter()


@router.post(
    "/classify",
    summary="Classify images with labels given as text",
    description="Scores each image against each label, best first. Labels come inline or from a stored label set.",
    responses=answers(ClassifyResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=bodies(ClassifyRequest, OPTIONS),
)
async def classify(request: Request) -> Response:
    services, context = services_of(request), context_of(request.scope)
    deadline = deadline_for(request)
    received = await read_request(request, ClassifyRequest, services.limits, options=OPTIONS)
    body = received.body
    check_count(services, len(body.inputs))
    model = model_of(services, body.model, body.label_set)
    items = items_of(received, body.inputs, services.limits)
    check_towers(model, items, body.inputs)
    images = [item for item in items if isinstance(item, (ImageItem, FailedItem))]
    outcomes = await while_connected(
        request, _score(services, model, until_first_failure(images, body.on_error), body, deadline, context)
    )
    data = entries(
        outcomes,
        _shown,
        on_error=body.on_error,
        place=lambda index: param_of(body.inputs, index),
        telemetry=services.telemetry,
    )
    fingerprint = {"image": model.fingerprint.image, "text": model.fingerprint.text}
    payload = {"model": model.reference, "fingerprint": fingerprint, "data": data}
    return json_response(payload, headers=model_headers(model))


async def _score(
    services: Services,
    model: RunningModel,
    images: Sequence[ImageItem | FailedItem],
    body: ClassifyRequest,
    deadline: Deadline,
    context: Context,
) -> list[list[Scored] | ClipworksError]:
    presence = presence_for(model.manifest, body.activation, is_dense=model.dense_spec is not None)
    templates = body.templates
    if templates is None and presence is not None:
        templates = list(presence.positive_templates)  # it was calibrated with them
    classes = await classes_of(services, model, body, templates, deadline, context.timings)
    if presence is not None and isinstance(classes, ClassMatrix):
        labels = await services.zero_shot.label_vectors(
            model,
            classes,
            presence,
            max_texts=services.settings.max_label_texts,
            deadline=deadline,
            timings=context.timings,
        )
        return await pipeline.classify_by_presence(
            model,
            images,
            classes,
            labels,
            presence,
            pool=services.pool,
            top_k=body.top_k,
            threshold=body.threshold,
            deadline=deadline,
            timings=context.timings,
        )
    return await pipeline.classify(
        model,
        images,
        classes,
        pool=services.pool,
        activation=body.activation,
        top_k=body.top_k,
        threshold=body.threshold,
        deadline=deadline,
        timings=context.timings,
    )


def _shown(predictions: list[Scored]) -> dict[str, Any]:
    return {"predictions": [{"label": p.label, "score": p.score, "similarity": p.similarity} for p in predictions]}
