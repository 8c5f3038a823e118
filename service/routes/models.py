"""/models: what the store has, what runs, and (for admins) loading and unloading."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import MODEL_PATTERN, ModelDetail, ModelList
from service.http.gate import require_admin
from service.http.openapi import answers
from service.http.respond import model_response
from service.http.shown import model_detail, model_summary
from service.services import services_of

router = APIRouter(prefix="/models")
Name = Annotated[str, Path(pattern=MODEL_PATTERN, description="name, or name@version")]
Admin = Depends(require_admin)


@router.get("", summary="List models", responses=answers(ModelList))
async def list_models(request: Request) -> Response:
    registry = services_of(request).registry

    def read() -> ModelList:
        return ModelList(data=[model_summary(registry, artifact) for artifact in registry.store.list()])

    return model_response(await asyncio.to_thread(read))


@router.get("/{name}", summary="Show a model", responses=answers(ModelDetail, 404, 422, 500))
async def get_model(request: Request, name: Name) -> Response:
    registry = services_of(request).registry
    return model_response(await asyncio.to_thread(model_detail, registry, name))


@router.post(
    "/{name}/load",
    dependencies=[Admin],
    summary="Load a model (admin)",
    description="Returns when the model has proven itself on its golden cases; whatever runs goes on meanwhile.",
    responses=answers(ModelDetail, 401, 403, 404, 409, 422, 500, 503),
)
async def load_model(request: Request, name: Name) -> Response:
    registry = services_of(request).registry
    model = await registry.load(name)
    return model_response(await asyncio.to_thread(model_detail, registry, model.reference))


@router.post(
    "/{name}/unload",
    status_code=204,
    dependencies=[Admin],
    summary="Unload a model (admin)",
    responses=answers(None, 401, 403, 404, 409, 422, status=204),
)
async def unload_model(request: Request, name: Name) -> Response:
    await services_of(request).registry.unload(name)
    return Response(status_code=204)
