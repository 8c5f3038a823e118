"""/collections: made for one model, listed, shown and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import (
    COLLECTION_PATTERN,
    CollectionIndex,
    CollectionInfo,
    CollectionList,
    CollectionLoss,
    CollectionRequest,
    EncoderFingerprint,
)
from service.http.ingress import read_json
from service.http.openapi import answers, json_body
from service.http.respond import model_response
from service.routes.common import deadline_for, model_for
from service.services import services_of

if TYPE_CHECKING:
    from service.retrieval import CollectionInfo as StoredInfo
    from service.retrieval import Loss

router = APIRouter(prefix="/collections")
Name = Annotated[str, Path(pattern=COLLECTION_PATTERN, description="name of the collection")]


@router.get("", summary="List collections", responses=answers(CollectionList, 422, 429, 500, 503, 504))
async def list_collections(request: Request) -> Response:
    collections = services_of(request).require_collections()
    found = await collections.list(deadline=deadline_for(request))
    losses = [shown_loss(each) for each in collections.losses()]
    return model_response(CollectionList(data=[shown(each) for each in found], losses=losses))


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
    deadline = deadline_for(request)
    body = await read_json(request, CollectionRequest, services.limits, deadline=deadline)
    info, is_new = await collections.create(
        name,
        model_for(services, body.model),
        index=body.index.model_dump(),
        schema=dict(body.metadata_schema),
        deadline=deadline,
    )
    return model_response(shown(info), status=201 if is_new else 200)


@router.get("/{name}", summary="Show a collection", responses=answers(CollectionInfo, 404, 422, 429, 500, 503, 504))
async def get_collection(request: Request, name: Name) -> Response:
    collections = services_of(request).require_collections()
    return model_response(shown(await collections.describe(name, deadline=deadline_for(request))))


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete a collection and all its items",
    responses=answers(None, 404, 409, 422, 429, 500, 503, 504, 507, status=204),
)
async def delete_collection(request: Request, name: Name) -> Response:
    await services_of(request).require_collections().drop(name, deadline=deadline_for(request))
    return Response(status_code=204)


def shown(info: StoredInfo) -> CollectionInfo:
    """What the wire shows of the store's own description."""
    spec = info.spec
    return CollectionInfo(
        name=info.name,
        backend=info.backend,
        model=spec.model,
        space=spec.space,
        fingerprint=EncoderFingerprint(image=spec.fingerprints.get("image"), text=spec.fingerprints.get("text")),
        dim=spec.dim,
        metadata_schema=spec.metadata_schema,
        index=CollectionIndex.model_validate(spec.index.model_dump()),
        kind=info.kind,
        exact=info.exact,
        count=info.count,
        dead=info.dead,
        sequence=info.sequence,
        index_bytes=info.index_bytes,
        disk_bytes=info.disk_bytes,
        durability=info.durability,
        rebuilding=info.rebuilding,
        warnings=list(info.warnings),
        aliases=list(info.aliases),
        losses=[shown_loss(each) for each in info.losses],
    )


def shown_loss(loss: Loss) -> CollectionLoss:
    return CollectionLoss(
        collection=loss.collection,
        kind=loss.kind,
        reached=loss.reached,
        found=loss.found,
        items_before=loss.items_before,
        items_after=loss.items_after,
        noticed_at=loss.noticed_at,
    )
