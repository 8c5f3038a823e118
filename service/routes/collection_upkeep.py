"""Admin routes of collections: doctor, compact, snapshot and restore, while everything else goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from clipworks.schemas import (
    AcknowledgeLossResponse,
    CollectionInfo,
    CompactResponse,
    DoctorRequest,
    DoctorResponse,
    RestoreRequest,
    SnapshotEntry,
    SnapshotList,
    SnapshotResponse,
)
from service.http.context import while_connected
from service.http.errors import Refusal
from service.http.gate import require_admin
from service.http.ingress import read_json
from service.http.openapi import answers, json_body
from service.http.respond import model_response
from service.http.shown import collection_info, doctor_response
from service.routes.collections import Name
from service.routes.common import budget_for
from service.services import services_of

if TYPE_CHECKING:
    from service.collections.upkeep import CollectionUpkeep

router = APIRouter(dependencies=[Depends(require_admin)])
Snapshot = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,119}\.snapshot$", description="name of the snapshot")]


@router.post(
    "/collections/{name}/doctor",
    summary="Check a collection (admin)",
    description=(
        "Reads every row: its checksum, whether the index holds exactly the rows, how many true neighbours searches "
        "find. Takes as long as it takes; searches and writes go on, and it ends when its caller goes."
    ),
    responses=answers(DoctorResponse, 400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=json_body(DoctorRequest),
)
async def doctor(request: Request, name: Name) -> Response:
    upkeep = _upkeep(request)
    body = await read_json(request, DoctorRequest, services_of(request).limits, budget=budget_for(request))
    work = upkeep.doctor(name, queries=body.queries, recall_at=body.recall_at)
    return model_response(doctor_response(await while_connected(request, work)))


@router.post(
    "/collections/{name}/compact",
    summary="Compact a collection (admin)",
    description="Rebuilds the index without deleted rows, trains it anew, and gives unused disk space back.",
    responses=answers(CompactResponse, 401, 403, 404, 422, 429, 500, 503, 507),
)
async def compact(request: Request, name: Name) -> Response:
    report = await _upkeep(request).compact(name)
    return model_response(CompactResponse(slots_removed=report.slots_removed, bytes_freed=report.bytes_freed))


@router.post(
    "/collections/{name}/acknowledge-loss",
    summary="Acknowledge what a collection lost (admin)",
    description=(
        "`losses` of the collection are shown no more, nor in /readyz and by the doctor. Also for a collection that is "
        "gone. Nothing comes back by it: restore a snapshot, or store the items again."
    ),
    responses=answers(AcknowledgeLossResponse, 401, 403, 404, 422, 429, 500, 503, 507),
)
async def acknowledge_loss(request: Request, name: Name) -> Response:
    return model_response(AcknowledgeLossResponse(acknowledged=await _upkeep(request).acknowledge_loss(name)))


@router.post(
    "/collections/{name}/snapshot",
    status_code=201,
    summary="Write a snapshot on the server (admin)",
    description="All rows of one moment, in a file in the data folder whose name the server chooses.",
    responses=answers(SnapshotResponse, 401, 403, 404, 409, 422, 429, 500, 503, 504, 507, status=201),
)
async def snapshot(request: Request, name: Name) -> Response:
    made = await _upkeep(request).snapshot(name)
    facts = SnapshotResponse(
        snapshot=made.path.rpartition("/")[2],
        sha256=made.sha256,
        bytes=made.bytes,
        count=made.count,
        sequence=made.sequence,
    )
    return model_response(facts, status=201)


@router.post(
    "/collections/{name}/restore",
    status_code=201,
    summary="Make a collection from a snapshot on the server (admin)",
    description="All of it or nothing; the name must be free.",
    responses=answers(CollectionInfo, 400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=201),
    openapi_extra=json_body(RestoreRequest),
)
async def restore(request: Request, name: Name) -> Response:
    upkeep = _upkeep(request)
    body = await read_json(request, RestoreRequest, services_of(request).limits, budget=budget_for(request))
    return model_response(collection_info(await upkeep.restore(name, body.snapshot)), status=201)


@router.get(
    "/snapshots", summary="List snapshots on the server (admin)", responses=answers(SnapshotList, 401, 403, 500, 503)
)
async def list_snapshots(request: Request) -> Response:
    found = await asyncio.to_thread(_upkeep(request).list)
    return model_response(SnapshotList(data=[SnapshotEntry(snapshot=name, bytes=size) for name, size in found]))


@router.get(
    "/snapshots/{snapshot}",
    summary="Fetch a snapshot (admin)",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **{
            status: answer
            for status, answer in answers(None, 401, 403, 404, 409, 416, 422, 500, 503).items()
            if status != 200
        },
    },
)
async def get_snapshot(request: Request, snapshot: Snapshot) -> Response:
    file = await asyncio.to_thread(_upkeep(request).file_of, snapshot)
    return _RangedFile(file, media_type="application/octet-stream")


@router.delete(
    "/snapshots/{snapshot}",
    status_code=204,
    summary="Delete a snapshot (admin)",
    responses=answers(None, 401, 403, 404, 409, 422, 500, 503, status=204),
)
async def delete_snapshot(request: Request, snapshot: Snapshot) -> Response:
    await asyncio.to_thread(_upkeep(request).delete, snapshot)
    return Response(status_code=204)


class _RangedFile(FileResponse):
    """A file or a part of it; a Range that it does not have is refused in the one error shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                raise _range_refusal(message)
            await send(message)

        await super().__call__(scope, receive, checked)


def _range_refusal(message: Message) -> Refusal:
    if message["status"] != 416:
        return Refusal(422, "invalid_header", "Range takes bytes=first-last", param="Range")
    size = next((value.decode() for name, value in message["headers"] if name == b"content-range"), "bytes */*")
    return Refusal(
        416,
        "invalid_header",
        f"Range begins behind the end of the file, which has {size.rpartition('/')[2]} bytes",
        param="Range",
        headers={"Content-Range": size},
    )


def _upkeep(request: Request) -> CollectionUpkeep:
    """Imported late, because it needs the store's libraries and a server runs without them. Raises CollectionsOff."""
    services = services_of(request)
    collections = services.require_collections()
    from service.collections.upkeep import CollectionUpkeep

    return CollectionUpkeep(collections, services.settings.data)
