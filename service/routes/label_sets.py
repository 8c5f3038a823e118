"""/label-sets: labels and templates stored by name and encoded once."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import LABEL_SET_PATTERN, LabelSetDetail, LabelSetInfo, LabelSetList, LabelSetRequest
from service.http.given_labels import distinct_labels
from service.http.ingress import read_json
from service.http.openapi import answers, json_body
from service.http.respond import model_response
from service.routes.common import budget_for, check_text_tower, model_for
from service.services import services_of

router = APIRouter(prefix="/label-sets")
Name = Annotated[str, Path(pattern=LABEL_SET_PATTERN, description="name of the label set")]


@router.get("", summary="List label sets", responses=answers(LabelSetList))
async def list_label_sets(request: Request) -> Response:
    return model_response(LabelSetList(data=services_of(request).label_sets.list()))


@router.put(
    "/{name}",
    status_code=202,
    summary="Store a label set",
    description="Its texts are encoded in the background; other content under the same name replaces the old set. "
    "The name of a model's class head is refused.",
    responses=answers(LabelSetInfo, 400, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=202),
    openapi_extra=json_body(LabelSetRequest),
)
async def put_label_set(request: Request, name: Name) -> Response:
    services = services_of(request)
    limits, budget = services.label_set_limits, budget_for(request)
    body = await read_json(request, LabelSetRequest, limits, budget=budget)
    model = model_for(services, body.model)
    check_text_tower(model)
    body = body.model_copy(update={"labels": distinct_labels(body.labels)})
    return model_response(await services.label_sets.put(name, body), status=202)


@router.get("/{name}", summary="Show a label set", responses=answers(LabelSetDetail, 404, 409, 422))
async def get_label_set(request: Request, name: Name) -> Response:
    return model_response(services_of(request).label_sets.get(name))


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete a label set",
    responses=answers(None, 404, 409, 422, 500, 507, status=204),
)
async def delete_label_set(request: Request, name: Name) -> Response:
    await services_of(request).label_sets.delete(name)
    return Response(status_code=204)
