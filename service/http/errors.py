"""Errors -> HTTP: one table from error class to status, and the handlers that every refused request passes through."""

from __future__ import annotations

import asyncio
import http
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from model_store.errors import (
    ArtifactError,
    ArtifactNotFound,
    ClipworksError,
    ImageTooLarge,
    InputError,
    ScaleUnknown,
    SpaceMismatch,
)
from service.faults import (
    CollectionsOff,
    DeadlinePassed,
    Draining,
    LabelSetFailed,
    NoDirection,
    NotLoaded,
    RunFailed,
    ServiceFault,
    ServiceNotReady,
    ServiceOverloaded,
    StateConflict,
    ThumbnailNotFound,
    TooManyItems,
    UnknownName,
)
from service.http.validation import first_problem
from service.retrieval.backends.errors import BackendUnavailable
from service.retrieval.errors import (
    AliasNotFound,
    CollectionConflict,
    CollectionNotFound,
    FolderInUse,
    Interrupted,
    ItemNotFound,
    RetrievalError,
    StatementRefused,
    StorageFailed,
    StorageFull,
    StoreClosed,
    StoreCorrupt,
    TooManyCollections,
)


class UrlFetchDisabled(ClipworksError):
    """An image was given by address, and this server fetches nothing."""

    code = "url_fetch_disabled"


class Refusal(ClipworksError):
    """A request that is refused for a reason of HTTP or of one field; carries its whole answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


class BodyRefused(Refusal):
    """A refusal while the client may still be sending its body; see LingeringResponse."""


class LingeringResponse(Response):
    """Answers at once, then reads and drops what the client is still sending for a while, and closes.

    Closing a socket that has unread data resets it, and most clients would lose the answer.
    """

    linger_s = 5.0
    linger_bytes = 64 * 2**20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        dropped = 0
        try:
            async with asyncio.timeout(self.linger_s):
                while dropped < self.linger_bytes:
                    message = await receive()
                    dropped += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
        except TimeoutError:
            pass  # it had its time
        await send({"type": "http.response.body", "body": b""})


STATUS: Mapping[type[ClipworksError], int] = MappingProxyType(
    {
        ClipworksError: 500,
        InputError: 422,
        ImageTooLarge: 413,
        UrlFetchDisabled: 403,
        ArtifactError: 500,
        ArtifactNotFound: 404,
        ScaleUnknown: 422,
        SpaceMismatch: 409,
        ServiceFault: 500,
        RunFailed: 500,
        NoDirection: 422,
        NotLoaded: 409,
        ServiceOverloaded: 429,
        DeadlinePassed: 504,
        ServiceNotReady: 503,
        Draining: 503,
        TooManyItems: 413,
        UnknownName: 404,
        ThumbnailNotFound: 404,
        StateConflict: 409,
        LabelSetFailed: 409,
        CollectionsOff: 503,
        RetrievalError: 500,
        CollectionNotFound: 404,
        ItemNotFound: 404,
        AliasNotFound: 404,
        Interrupted: 504,
        CollectionConflict: 409,
        FolderInUse: 500,
        StoreClosed: 503,
        BackendUnavailable: 503,
        TooManyCollections: 413,
        StorageFull: 507,
        StorageFailed: 503,
        StatementRefused: 422,
        StoreCorrupt: 500,
    }
)
# Whoever comes again a second later may be answered.
_TRY_AGAIN = (ServiceNotReady, Draining, StoreClosed, BackendUnavailable, StorageFailed)
_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        409: "conflict_error",
        429: "rate_limit_error",
        503: "unavailable_error",
        504: "timeout_error",
    }
)
_JSON = "application/json"
OVERLOADED = (
    "clipworks.overloaded"  # where the ASGI scope of a request holds the ServiceOverloaded that it was refused with
)
# What a client reads of a 500. The error's own words name files and libraries: they are for the log.
_SHOWN: Mapping[str, str] = MappingProxyType(
    {
        "run_failed": "the model failed on this item",
        "store_corrupt": "what is stored is damaged",
        "retrieval_error": "the store of the collections failed",
        "folder_in_use": "the data folder belongs to another process",
    }
)
log = logging.getLogger("clipworks.http")


@dataclass(frozen=True)
class Problem:
    """One refused request or item, as the wire shows it."""

    status: int
    message: str
    code: str
    param: str | None = None

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def detail(self) -> dict[str, str | None]:
        """Fields of clipworks.schemas.ErrorDetail."""
        return {"message": self.message, "type": self.type, "code": self.code, "param": self.param}

    def response(self, headers: Mapping[str, str] | None = None, *, linger: bool = False) -> Response:
        body = orjson.dumps({"error": self.detail()})
        kind = LingeringResponse if linger else Response
        return kind(body, status_code=self.status, headers=headers, media_type=_JSON)


def status_of(error: ClipworksError) -> int:
    """The status of the nearest class of the table."""
    if isinstance(error, Refusal):
        return error.status
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem_of(error: ClipworksError, param: str | None = None) -> Problem:
    """What the wire shows of an error that happened at `param`."""
    status = status_of(error)
    message = str(error)
    if status == 500 and not isinstance(error, Refusal):
        log.error("%s: %s", error.code, message)
        known = "the model cannot be used" if isinstance(error, ArtifactError) else "internal error"
        message = f"{_SHOWN.get(error.code, known)}; the server's log says why"
    return Problem(status, message, error.code, getattr(error, "param", None) or param)


def located(error: ClipworksError, param: str) -> Refusal:
    """The same error, with the place in the request where it happened."""
    problem = problem_of(error, param)
    return Refusal(problem.status, problem.code, problem.message, param=problem.param, headers=_headers_of(error))


def validation_refusal(error: ValidationError) -> Refusal:
    """422 for a body that is not what the route takes."""
    found = first_problem(error.errors(include_url=False, include_input=False, include_context=False))
    return Refusal(422, "invalid_field", found.message, param=found.param)


def internal_problem(request_id: str) -> Problem:
    return Problem(500, f"internal error; the server's log has it under request {request_id}", "internal_error")


def install_handlers(app: FastAPI) -> None:
    """Give every refusal of the app, the framework's own included, the one error shape."""
    app.add_exception_handler(ClipworksError, _on_clipworks_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_request_validation)


async def _on_clipworks_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ClipworksError):
        raise error
    if isinstance(error, ServiceOverloaded):
        request.scope[OVERLOADED] = error  # for service.connection.shedding
    if isinstance(error, BodyRefused):
        return problem_of(error).response({**error.headers, "Connection": "close"}, linger=True)
    return problem_of(error).response(_headers_of(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Only routing raises these: an unknown path or a method that it does not take."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        allowed = ", ".join(_allowed_methods(request))
        message = f"{request.scope['path'][:100]!r} takes {allowed}"
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            message += "; pages of this origin are not let in (CLIPWORKS_CORS_ORIGINS)"
        return Problem(405, message, "method_not_allowed").response({"Allow": allowed})
    if error.status_code == 404:
        return Problem(404, "no such path; /docs lists all", "no_such_path").response()
    phrase = http.HTTPStatus(error.status_code).phrase
    return Problem(error.status_code, phrase, phrase.lower().replace(" ", "_")).response(error.headers)


async def _on_request_validation(request: Request, error: Exception) -> Response:
    """A path parameter of a wrong form; bodies and queries are validated in service.http.ingress."""
    if not isinstance(error, RequestValidationError):
        raise error
    found = first_problem([_without_place(part) for part in error.errors()])
    return Problem(422, found.message, "invalid_field", found.param).response()


def _without_place(error: Any) -> dict[str, Any]:
    return {"type": error["type"], "loc": tuple(error["loc"][1:]), "msg": error["msg"]}


def _allowed_methods(request: Request) -> list[str]:
    """Methods of every route of this path; the framework names only those of the first."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _headers_of(error: ClipworksError) -> dict[str, str] | None:
    if isinstance(error, Refusal):
        return error.headers
    if isinstance(error, ServiceOverloaded):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, _TRY_AGAIN) and status_of(error) == 503:
        return {"Retry-After": "1"}
    return None
