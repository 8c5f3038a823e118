"""API keys, admin keys and CORS for web pages of other origins. Every path is closed unless named here."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.context import context_of
from service.http.errors import Refusal, problem_of
from service.http.origins import parse_origin

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health", "/docs", "/openapi.json", "/ui"})
_OPEN_FOLDER = "/ui/"
_CORS_METHODS = b"GET, POST, PUT, DELETE"
_PREFLIGHT_VARY = b"Origin, Access-Control-Request-Headers, Access-Control-Request-Private-Network"
_MAX_ASKED_BYTES = 2048
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CORS_HEADERS = b"Authorization, Content-Type, Accept, X-Request-Id, X-Request-Timeout-Ms"
_CORS_EXPOSED = b"X-Request-Id, Server-Timing, X-Model-Fingerprint, Retry-After"


class Gate:
    """ASGI layer that checks `Authorization: Bearer` and adds CORS headers; keys are kept as digests only."""

    def __init__(
        self, app: ASGIApp, *, api_keys: Sequence[str], admin_keys: Sequence[str], origins: Sequence[str]
    ) -> None:
        self.app = app
        self._api = [_digest(key.encode()) for key in api_keys]
        self._admin = [_digest(key.encode()) for key in admin_keys]
        self._origins = [parse_origin(origin) for origin in origins]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._origins:
            origin = self._allowed_origin(scope)
            if origin and scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
                await _preflight(scope, origin)(scope, receive, send)
                return
            send = _with_cors(send, origin)
        try:
            self._check(scope)
        except Refusal as error:
            await problem_of(error).response(error.headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises Refusal (401) unless the path is open, no keys are set, or a good key came."""
        if not self._api and not self._admin:
            return
        path: str = scope["path"]
        key = _header(scope, b"authorization")
        digest = _digest(key[7:].strip()) if key and key[:7].lower() == b"bearer " else None
        is_admin = digest is not None and _is_one_of(digest, self._admin)
        context_of(scope).is_admin = is_admin
        if digest is not None and self._api:
            context_of(scope).caller = digest.hex()
        if is_admin or not self._api or path in OPEN_PATHS or path.startswith(_OPEN_FOLDER):
            return
        if digest is None or not _is_one_of(digest, self._api):
            raise _unauthorized("a valid key is needed")

    def _allowed_origin(self, scope: Scope) -> bytes | None:
        origin = _header(scope, b"origin")
        if not origin or not origin.isascii():
            return None
        text = origin.decode("ascii")
        return origin if any(each.matches(text) for each in self._origins) else None


async def require_admin(request: Request) -> None:
    """Dependency of admin routes.

    Raises:
        Refusal: 403 when no admin keys are set or the key is an ordinary one, 401 when none came.
    """
    if context_of(request.scope).is_admin:
        return
    if not request.app.state.services.settings.admin_keys:
        raise Refusal(403, "admin_disabled", "this server has no admin keys: set CLIPWORKS_ADMIN_KEYS")
    if "authorization" not in request.headers:
        raise _unauthorized("an admin key is needed")
    raise Refusal(403, "admin_only", "this needs a key of CLIPWORKS_ADMIN_KEYS")


def _unauthorized(needed: str) -> Refusal:
    how = "Authorization: Bearer <key>; the clients take it as api_key, --api-key or CLIPWORKS_API_KEY"
    return Refusal(401, "invalid_api_key", f"{needed}: {how}", headers={"WWW-Authenticate": "Bearer"})


def _digest(key: bytes) -> bytes:
    """Digests have one length and only bytes, so comparing them tells nothing about the key and cannot fail."""
    return hashlib.sha256(key).digest()


def _is_one_of(digest: bytes, known: Sequence[bytes]) -> bool:
    """In constant time: every known key is compared."""
    found = False
    for each in known:
        found |= hmac.compare_digest(digest, each)
    return found


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _preflight(scope: Scope, origin: bytes) -> Response:
    """The answer to a browser that asks before it sends; it never has a key, and needs none."""
    answer = Response(status_code=204)
    answer.raw_headers += [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-methods", _CORS_METHODS),
        (b"access-control-allow-headers", _allowed_headers(_header(scope, b"access-control-request-headers"))),
        (b"access-control-max-age", b"600"),
        (b"vary", _PREFLIGHT_VARY),
    ]
    if _header(scope, b"access-control-request-private-network") == b"true":
        answer.raw_headers.append((b"access-control-allow-private-network", b"true"))
    return answer


def _allowed_headers(asked: bytes | None) -> bytes:
    """Whatever an allowed page asks for: clients add headers of their own (x-stainless-*), unknown ones do nothing."""
    names = [name.strip() for name in asked.split(b",")] if asked and len(asked) <= _MAX_ASKED_BYTES else []
    if names and all(_TOKEN.fullmatch(name) for name in names):
        return b", ".join(names)
    return _CORS_HEADERS


def _with_cors(send: Send, origin: bytes | None) -> Send:
    """`Vary` goes out with every answer, so that no cache gives one page's answer to another."""

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            allowed = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _CORS_EXPOSED)]
            message["headers"] = [*message.get("headers", ()), *(allowed if origin else ()), (b"vary", b"Origin")]
        await send(message)

    return send_with_cors
