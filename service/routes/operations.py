"""Health, metrics and the reference page."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from clipworks.schemas import Health
from model_store.errors import ClipworksError
from service.http.errors import Problem
from service.http.openapi import answers
from service.http.respond import JSON, model_response
from service.services import services_of
from service.telemetry import METRICS_MEDIA_TYPE
from service.timing import Budget, Timings

router = APIRouter()
_SCRAPE_S = 1.0
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@router.get("/livez", summary="Is the process alive?", responses=answers(Health))
async def livez() -> Response:
    return model_response(Health(status="ok"))


@router.get("/readyz", summary="Can requests be answered?", responses=answers(Health, 503))
async def readyz(request: Request) -> Response:
    state = services_of(request).probed()
    if state.status == "ok":
        return model_response(state)
    message = f"{state.status}: {state.detail}" if state.detail else state.status
    return Problem(503, message, state.status).response({"Retry-After": "1"})


@router.get("/health", summary="The same as /readyz", responses=answers(Health, 503))
async def health(request: Request) -> Response:
    return await readyz(request)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
async def metrics(request: Request) -> Response:
    services = services_of(request)
    if services.collections is not None and services.collections.is_open:
        with suppress(ClipworksError):  # full, slow or away just now: the figures of the last scrape stand
            services.telemetry.collections(**asdict(await services.collections.totals(Budget.of(_SCRAPE_S, Timings()))))
    return Response(services.telemetry.render(), media_type=METRICS_MEDIA_TYPE)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return Response(request.app.state.openapi_json(), media_type=JSON)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """A page of its own: it reads /openapi.json and needs no other host."""
    return HTMLResponse(_page(), headers={"Content-Security-Policy": _PAGE_POLICY})


@cache
def _page() -> str:
    return files("service.routes").joinpath("reference.html").read_text(encoding="utf-8")
