"""Exceptions of the client, as one tree; the classes follow the server's stable `code`s, not its messages.

    ClientError                     base
    |-- UnreadableInput             a file or object given to the client is no readable image; nothing was sent
    |-- ConnectionFailed            the server cannot be reached, or broke off, also after all retries
    |-- TimedOut                    no complete answer within the client's own timeout
    |-- BadAnswer                   something answered that does not speak clipworks (a proxy, another server)
    |-- ModelChanged                the server took another model between the requests of one call
    |-- ApiError                    the server said no: `status`, `code`, `param`, `request_id`
        |-- RequestRefused          400, 405, 415: the request itself is not understood
        |-- InvalidInput            422: understood, but a field or an item is wrong
        |-- TooLarge                413: over a limit of bytes or counts
        |-- Unauthorized            401: no key, or a wrong one
        |-- Forbidden               403: this key, or this image host, is not allowed
        |-- NotFound                404: no such model, label set, collection or item
        |-- Conflict                409: the name is taken, or vectors of two spaces would be compared
        |-- Overloaded              429: the server is full, also after all retries
        |-- NotReady                503: starting, draining or broken, also after all retries
        |-- DeadlineExceeded        504: the server gave up at the deadline
        |-- ServerFault             any other 5xx

`index` is the position of the input that is to blame, in the order in which the caller gave it, or None.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of everything that the client raises on purpose."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class UnreadableInput(ClientError):
    code = "unreadable_input"


class ConnectionFailed(ClientError):
    code = "connection_failed"


class TimedOut(ClientError):
    code = "timed_out"


class BadAnswer(ClientError):
    code = "bad_answer"


class ModelChanged(ClientError):
    """Vectors of two models would have come back as one array."""

    code = "model_changed"


class ApiError(ClientError):
    """The server's own refusal; `str()` is its message."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        type: str = "",
        param: str | None = None,
        request_id: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(message, index=index)
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.request_id = request_id


class RequestRefused(ApiError):
    pass


class InvalidInput(ApiError):
    pass


class TooLarge(ApiError):
    pass


class Unauthorized(ApiError):
    pass


class Forbidden(ApiError):
    pass


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class Overloaded(ApiError):
    pass


class NotReady(ApiError):
    pass


class DeadlineExceeded(ApiError):
    pass


class ServerFault(ApiError):
    pass
