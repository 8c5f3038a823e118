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
from service.errors import located
from service.faults import Conflict, UnknownName
from service.ingress import Options, items_of, param_of, read_request
from service.openapi import answers, bodies
from service.pipeline import FailedItem, ImageItem
from service.respond import entries, json_response, model_headers
from service.routes.common import (
    check_count,
    check_text_tower,
    check_towers,
    deadline_for,
    model_for,
    until_first_failure,
)
from service.running import RunningModel
from service.scoring import Scored
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
    model = _model_of(services, body)
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


def _model_of(services: Services, body: ClassifyRequest) -> RunningModel:
    """The named model, or that of the label set."""
    if body.label_set is None or body.model is not None:
        return model_for(services, body.model)
    try:
        return model_for(services, services.label_sets.model_of(body.label_set))
    except (UnknownName, Conflict) as error:
        raise located(error, "label_set") from None


async def _score(
    services: Services,
    model: RunningModel,
    images: Sequence[ImageItem | FailedItem],
    body: ClassifyRequest,
    deadline: Deadline,
    context: Context,
) -> list[list[Scored] | ClipworksError]:
    if body.label_set is not None:
        try:
            classes = services.label_sets.classes(body.label_set, model)
        except UnknownName as error:
            raise located(error, "label_set") from None
    else:
        check_text_tower(model)
        classes = await services.zero_shot.class_matrix(
            model,
            body.labels or (),
            body.templates,
            max_texts=services.settings.max_label_texts,
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
