"""/collections: made for one model, listed, shown and deleted."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import (
    COLLECTION_PATTERN,
    CollectionInfo,
    CollectionList,
    CollectionRequest,
)
from service.collections.views import OneVector, views_of
from service.http.errors import located
from service.http.ingress import read_json
from service.http.openapi import answers, json_body
from service.http.respond import model_response
from service.http.shown import collection_info, collection_loss
from service.retrieval.errors import CollectionNotFound
from service.routes.common import budget_for, model_for, reranker_for
from service.services import Services, services_of
from service.timing import Budget

if TYPE_CHECKING:
    from service.retrieval.records import RerankSpec

router = APIRouter(prefix="/collections")
Name = Annotated[str, Path(pattern=COLLECTION_PATTERN, description="name of the collection")]


@router.get("", summary="List collections", responses=answers(CollectionList, 422, 429, 500, 503, 504))
async def list_collections(request: Request) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    found = await collections.list(budget=budget_for(request))
    losses = [collection_loss(each) for each in collections.losses()]
    has_media = services.settings.media_root is not None
    data = [collection_info(each) for each in found]
    return model_response(CollectionList(data=data, media_root=has_media, losses=losses))


@router.put(
    "/{name}",
    status_code=201,
    summary="Make a collection",
    description="It is bound to one version of one model. 200 if an equal one is there, 409 if another one is.",
    responses={
        **answers(CollectionInfo, 400, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=201),
        200: {"model": CollectionInfo, "description": "It was there"},
    },
    openapi_extra=json_body(CollectionRequest),
)
async def put_collection(request: Request, name: Name) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    budget = budget_for(request)
    body = await read_json(request, CollectionRequest, services.limits, budget=budget)
    model = model_for(services, body.model)
    try:
        views = None if body.views is None else views_of(model)
    except OneVector as error:
        raise located(error, "views") from None
    info, is_new = await collections.create(
        name,
        model,
        index=body.index.model_dump(),
        schema=dict(body.metadata_schema),
        thumbnails=body.thumbnails,
        rerank=None if body.rerank is None else await _rerank_spec(services, name, body.rerank, budget),
        views=views,
        budget=budget,
    )
    return model_response(collection_info(info), status=201 if is_new else 200)


async def _rerank_spec(services: Services, name: str, asked: str, budget: Budget) -> RerankSpec:
    """That of a collection which is there and keeps it, whose model need not be loaded for that; else of a model that
    runs."""
    with suppress(CollectionNotFound):
        there = (await services.require_collections().get(name, budget=budget)).spec.rerank
        if there is not None and asked in (there.model, there.model.partition("@")[0]):
            return there
    from service.collections.facade import kept_positions  # collections are there; without them it would not be

    return kept_positions(reranker_for(services, asked, "rerank"))


@router.get("/{name}", summary="Show a collection", responses=answers(CollectionInfo, 404, 422, 429, 500, 503, 504))
async def get_collection(request: Request, name: Name) -> Response:
    collections = services_of(request).require_collections()
    return model_response(collection_info(await collections.describe(name, budget=budget_for(request))))


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete a collection and all its items",
    responses=answers(None, 404, 409, 422, 429, 500, 503, 504, 507, status=204),
)
async def delete_collection(request: Request, name: Name) -> Response:
    await services_of(request).require_collections().drop(name, budget=budget_for(request))
    return Response(status_code=204)
