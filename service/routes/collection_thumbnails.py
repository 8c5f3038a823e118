"""/collections/{name}/items/{id}/thumbnail: a small picture of an item, to show beside a hit."""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model_store.errors import InputError
from service.http.errors import located
from service.http.ingress import read_query
from service.http.openapi import answers
from service.routes.collection_items import Id, get_item
from service.routes.collections import Name
from service.routes.common import budget_for, caller_of
from service.services import services_of

MEDIA_TYPE = "image/webp"
_ENDING = "/thumbnail"
_TAG = re.compile(r'"([^"]*)"')
# A picture is a picture whatever a browser thinks of it; and only who has the key may keep it.
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
}
router = APIRouter(prefix="/collections/{name}")
_PICTURE = {
    "description": "A WebP of at most 256 x 256 px, upright and without metadata",
    "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    "headers": {"ETag": {"schema": {"type": "string"}}},
}


@router.get(
    "/items/{id:path}/thumbnail",
    summary="Show a small picture of an item",
    description=(
        "The one that was stored with the item (`thumbnails` of the collection), else one made of the file that its "
        "metadata names, if that lies below the server's media root. An item whose own id ends in /thumbnail comes "
        "first, and is shown as by `GET .../items/{id}`; with the last slash as %2F it is always the item."
    ),
    response_class=Response,
    responses={
        **answers(None, 400, 404, 413, 422, 429, 500, 503, 504),
        200: _PICTURE,
        304: {"description": "If-None-Match has its ETag"},
    },
)
async def get_thumbnail(request: Request, name: Name, id: Id) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    budget = budget_for(request)
    collection = await collections.get(name, budget=budget)
    whole = f"{id}{_ENDING}"
    if not _is_asked_for(request) or await collections.holds(collection, whole, budget=budget):
        return await get_item(request, name, whole)
    read_query(request, {}, services.limits)
    known = ",".join(request.headers.getlist("if-none-match"))
    try:
        found = await collections.thumbnail(
            collection, id, known=frozenset(_TAG.findall(known)), caller=caller_of(request), budget=budget
        )
    except InputError as error:
        raise located(error, "id") from None
    headers = {**_HEADERS, "ETag": f'"{found.tag}"'}
    if found.picture is None or known.strip() == "*":
        return Response(status_code=304, headers=headers)
    return Response(found.picture, headers=headers, media_type=MEDIA_TYPE)


def _is_asked_for(request: Request) -> bool:
    """Whether the last slash of the path was sent as it is: a client that writes %2F means an id that has it."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return raw.partition(b"?")[0].endswith(_ENDING.encode())
