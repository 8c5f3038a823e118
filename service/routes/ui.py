"""/ui: the page. Its files are a part of the package, read once; nothing else can be reached by its paths."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.http.errors import Refusal

router = APIRouter(include_in_schema=False)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
_INDEX = "index.html"


@dataclass(frozen=True)
class PageFile:
    """One file of the page; etag: its sha256, quoted."""

    content: bytes
    media_type: str
    etag: str


@router.get("/")
async def root() -> Response:
    return RedirectResponse("/ui", status_code=307)


@router.get("/ui")
async def page(request: Request) -> Response:
    return _answer(request, _INDEX)


@router.get("/ui/{name:path}")
async def part(request: Request, name: str) -> Response:
    return _answer(request, name or _INDEX)


def _answer(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise Refusal(404, "no_such_path", "the page has no such file")
    headers = {
        "ETag": found.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


@cache
def page_files() -> Mapping[str, PageFile]:
    """By path below /ui."""
    found: dict[str, PageFile] = {}

    def look(folder: Traversable, below: str) -> None:
        for each in folder.iterdir():
            if each.is_dir():
                look(each, f"{below}{each.name}/")
            elif (kind := _TYPES.get(each.name[each.name.rfind(".") :])) is not None:
                content = each.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                found[f"{below}{each.name}"] = PageFile(content, kind, etag)

    look(files("service.ui"), "")
    return MappingProxyType(found)
