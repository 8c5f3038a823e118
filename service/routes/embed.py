"""POST /embed: texts and images, mixed, to vectors."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import EmbedRequest, EmbedResponse
from model_store.errors import InputError
from service.engine.vectors import unknown_inputs
from service.http.context import while_connected
from service.http.errors import Refusal, located
from service.http.ingress import read_request
from service.http.inputs import items_of, param_of
from service.http.openapi import answers, bodies
from service.http.options import Options
from service.http.respond import encoded, entries, json_response, model_headers, npy_response, wants_npy
from service.http.unknown import warning_header
from service.routes.common import budget_for, check_count, check_towers, model_for, until_first_failure
from service.routes.direct import DirectRoute
from service.services import services_of
from service.tasks import pipeline

OPTIONS: Options = {
    "model": "text",
    "normalize": "flag",
    "encoding_format": "text",
    "dimensions": "whole",
    "on_error": "text",
    "on_unknown": "text",
}
router = APIRouter(route_class=DirectRoute)


@router.post(
    "/embed",
    summary="Embed texts and images",
    description="Each input becomes one vector of the model's space. Accept: application/x-npy gives float32 [n, dim].",
    responses=answers(EmbedResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, npy=True),
    openapi_extra=bodies(EmbedRequest, OPTIONS),
)
async def embed(request: Request) -> Response:
    services = services_of(request)
    budget = budget_for(request)
    received = await read_request(request, EmbedRequest, services.limits, budget=budget, options=OPTIONS)
    body = received.body
    as_npy = wants_npy(request)
    if as_npy and body.on_error == "item":
        raise Refusal(422, "invalid_field", "an array has no place for errors: on_error must be fail", param="on_error")
    check_count(services, len(body.inputs))
    model = model_for(services, body.model)
    items = await items_of(request, received, body.inputs, services.limits, budget)
    check_towers(model, items, body.inputs)
    work = pipeline.embed(
        model,
        until_first_failure(items, body.on_error),
        pool=services.pool,
        normalize=body.normalize,
        dimensions=body.dimensions,
        on_unknown=body.on_unknown,
        budget=budget,
    )
    try:
        result = await while_connected(request, work)
    except InputError as error:  # an item's own error is among the outcomes
        raise located(error, "dimensions") from None

    def show(vector: pipeline.Vector) -> dict[str, Any]:
        return {"embedding": encoded(vector, body.encoding_format)}

    warnings = unknown_inputs([param_of(body.inputs, index) for index in result.weak])
    data = entries(
        result.outcomes,
        show,
        on_error=body.on_error,
        place=lambda index: param_of(body.inputs, index),
        telemetry=services.telemetry,
        weak=frozenset(result.weak),
    )
    if as_npy:
        vectors = [each for each in result.outcomes if not isinstance(each, Exception)]
        return npy_response(vectors, headers={**model_headers(model), **warning_header(warnings)})
    payload: dict[str, Any] = {
        "model": model.reference,
        "fingerprint": {"image": model.fingerprint.image, "text": model.fingerprint.text},
        "space": model.space,
        "dim": body.dimensions or model.dim,
        "data": data,
        "usage": {"texts": result.texts, "images": result.images, "tokens": result.tokens},
    }
    if warnings:
        payload["warnings"] = warnings
    return json_response(payload, headers=model_headers(model))
