"""/aliases: other names of collections, moved from one to another in one step that searches never notice."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import COLLECTION_PATTERN, AliasInfo, AliasList, AliasRequest
from service.http.errors import Refusal
from service.http.ingress import read_json
from service.http.openapi import answers, json_body
from service.http.respond import model_response
from service.routes.common import budget_for
from service.services import services_of

router = APIRouter(prefix="/aliases")
Alias = Annotated[str, Path(pattern=COLLECTION_PATTERN, description="name of the alias")]


@router.get("", summary="List aliases", responses=answers(AliasList, 422, 429, 500, 503, 504))
async def list_aliases(request: Request) -> Response:
    found = await services_of(request).require_collections().aliases(budget=budget_for(request))
    return model_response(AliasList(data=[AliasInfo(name=name, collection=target) for name, target in found.items()]))


@router.get("/{name}", summary="Show an alias", responses=answers(AliasInfo, 404, 422, 429, 500, 503, 504))
async def get_alias(request: Request, name: Alias) -> Response:
    found = await services_of(request).require_collections().aliases(budget=budget_for(request))
    if name not in found:
        raise Refusal(404, "alias_not_found", f"there is no alias {name!r}")
    return model_response(AliasInfo(name=name, collection=found[name]))


@router.put(
    "/{name}",
    status_code=201,
    summary="Point an alias to a collection",
    description=(
        "At once and durably; a search is answered from one collection or the other, never from none. A name that is a "
        "collection's own becomes an alias with `keep_as`, which renames that collection in the same step. "
        "200 if the alias was there."
    ),
    responses={
        **answers(AliasInfo, 400, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=201),
        200: {"model": AliasInfo, "description": "It was there, and names this collection now"},
    },
    openapi_extra=json_body(AliasRequest),
)
async def put_alias(request: Request, name: Alias) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    budget = budget_for(request)
    body = await read_json(request, AliasRequest, services.limits, budget=budget)
    is_new = await collections.set_alias(
        name, body.collection, keep_as=body.keep_as, if_sequence=body.if_sequence, budget=budget
    )
    target = (await collections.aliases(budget=budget)).get(name, body.collection)
    return model_response(AliasInfo(name=name, collection=target), status=201 if is_new else 200)


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete an alias",
    description="The collection stays.",
    responses=answers(None, 404, 422, 429, 500, 503, 504, 507, status=204),
)
async def delete_alias(request: Request, name: Alias) -> Response:
    await services_of(request).require_collections().delete_alias(name, budget=budget_for(request))
    return Response(status_code=204)
