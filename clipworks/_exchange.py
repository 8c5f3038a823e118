"""One request and its retries, as steps that know neither threads nor an event loop.

A generator yields steps; the client carries each out (blocking or awaiting) and the generator reads what came of it.
So Client and AsyncClient share every decision, and differ only in how they send, wait and call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from clipworks import errors
from clipworks.retry import RETRIED_OF_PROXIES, RETRIED_STATUSES, RetryPolicy
from clipworks.schemas import ErrorDetail, ErrorResponse

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Answer:
    """headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Broken:
    """No answer. `kind` "timeout" is final; "connection" may be tried again."""

    kind: Literal["connection", "timeout"]
    message: str


@dataclass
class Send:
    request: Request
    result: Answer | Broken = field(default_factory=lambda: Broken("connection", "not sent"))


@dataclass
class Pause:
    seconds: float


@dataclass
class Call(Generic[T]):
    """Blocking work (files, encoding) that an event loop must not do itself."""

    function: Callable[[], T]
    results: list[T] = field(default_factory=list[T])

    def run(self) -> None:
        self.results.append(self.function())


Step = Send | Pause | Call[Any]
Steps = Generator[Step, None, T]


def exchange(request: Request, policy: RetryPolicy, chance: random.Random) -> Steps[Answer]:
    """Send until an answer comes that is not to be retried, or the policy gives up; returns whatever came last.

    Raises:
        ConnectionFailed: no answer in all attempts.
        TimedOut: no complete answer in time; not retried.
    """
    attempt = 0
    while True:
        attempt += 1
        send = Send(request)
        yield send
        result = send.result
        if isinstance(result, Broken):
            if result.kind == "timeout":
                raise errors.TimedOut(result.message)
            pause_s = policy.pause_s(attempt, None, chance=chance)
            if pause_s is None:
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                raise errors.ConnectionFailed(f"{result.message}{tried}")
        elif _is_retried(result):
            pause_s = policy.pause_s(attempt, result.headers.get("retry-after"), chance=chance)
            if pause_s is None:
                return result
        else:
            return result
        yield Pause(pause_s)


def check(answer: Answer) -> Answer:
    """The answer itself when it is 2xx.

    Raises:
        ApiError: the class that belongs to the answer's status and code.
        BadAnswer: an error that has not the server's shape.
    """
    if 200 <= answer.status < 300:
        return answer
    raise api_error(answer)


def api_error(answer: Answer) -> errors.ClientError:
    """The exception for an answer that is not 2xx."""
    detail = _detail_of(answer)
    if detail is None:
        shown = answer.body[:80].decode("utf-8", "replace").split("\n")[0]
        hint = "; a proxy in front of the server?" if answer.status in (502, 503, 504) else ""
        return errors.BadAnswer(f"HTTP {answer.status} without an error of clipworks in its body: {shown!r}{hint}")
    kind = _BY_CODE.get(detail.code) or _BY_STATUS.get(answer.status)
    kind = kind or (errors.ServerFault if answer.status >= 500 else errors.RequestRefused)
    return _of_detail(kind, detail, answer.status, None, answer.headers.get("x-request-id"))


def item_error(detail: ErrorDetail, index: int) -> errors.ApiError:
    """The exception for one input's error inside a 200; its status is the one that it would have had alone."""
    kind = _BY_CODE.get(detail.code, errors.ServerFault)
    status = next((status for status, each in _BY_STATUS.items() if each is kind), 500)
    return _of_detail(kind, detail, status, index, None)


def _is_retried(answer: Answer) -> bool:
    return answer.status in RETRIED_STATUSES or (answer.status in RETRIED_OF_PROXIES and _detail_of(answer) is None)


def _detail_of(answer: Answer) -> ErrorDetail | None:
    try:
        return ErrorResponse.model_validate_json(answer.body, extra="ignore").error
    except ValidationError:
        return None


def _of_detail(
    kind: type[errors.ApiError], detail: ErrorDetail, status: int, index: int | None, request_id: str | None
) -> errors.ApiError:
    return kind(
        detail.message,
        status=status,
        code=detail.code,
        type=detail.type,
        param=detail.param,
        request_id=request_id,
        index=index,
    )


_BY_STATUS: Mapping[int, type[errors.ApiError]] = MappingProxyType(
    {
        401: errors.Unauthorized,
        403: errors.Forbidden,
        404: errors.NotFound,
        409: errors.Conflict,
        413: errors.TooLarge,
        422: errors.InvalidInput,
        429: errors.Overloaded,
        503: errors.NotReady,
        504: errors.DeadlineExceeded,
    }
)
# Codes win over statuses: an item's error inside a 200 has no status of its own.
_BY_CODE: Mapping[str, type[errors.ApiError]] = MappingProxyType(
    {
        "invalid_input": errors.InvalidInput,
        "invalid_image": errors.InvalidInput,
        "unsupported_image": errors.InvalidInput,
        "invalid_text": errors.InvalidInput,
        "invalid_field": errors.InvalidInput,
        "invalid_item": errors.InvalidInput,
        "invalid_vector": errors.InvalidInput,
        "example_taken": errors.InvalidInput,
        "invalid_filter": errors.InvalidInput,
        "invalid_query": errors.InvalidInput,
        "invalid_collection": errors.InvalidInput,
        "unsupported_input": errors.InvalidInput,
        "not_supported": errors.InvalidInput,
        "statement_refused": errors.InvalidInput,
        "scale_unknown": errors.InvalidInput,
        "image_too_large": errors.TooLarge,
        "body_too_large": errors.TooLarge,
        "too_many_items": errors.TooLarge,
        "too_many_collections": errors.TooLarge,
        "invalid_api_key": errors.Unauthorized,
        "admin_only": errors.Forbidden,
        "admin_disabled": errors.Forbidden,
        "url_fetch_disabled": errors.Forbidden,
        "model_not_found": errors.NotFound,
        "not_found": errors.NotFound,
        "collection_not_found": errors.NotFound,
        "item_not_found": errors.NotFound,
        "thumbnail_not_found": errors.NotFound,
        "alias_not_found": errors.NotFound,
        "collection_conflict": errors.Conflict,
        "no_direction": errors.InvalidInput,
        "conflict": errors.Conflict,
        "model_not_loaded": errors.Conflict,
        "label_set_failed": errors.Conflict,
        "space_mismatch": errors.Conflict,
        "overloaded": errors.Overloaded,
        "not_ready": errors.NotReady,
        "draining": errors.NotReady,
        "collections_unavailable": errors.NotReady,
        "store_closed": errors.NotReady,
        "backend_unavailable": errors.NotReady,
        "storage_failed": errors.NotReady,
        "deadline_exceeded": errors.DeadlineExceeded,
        "run_failed": errors.ServerFault,
        "internal_error": errors.ServerFault,
    }
)
