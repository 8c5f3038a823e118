"""The OpenAPI document: every body a route takes and every answer it gives, from the wire models alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from clipworks import schemas
from clipworks.schemas import ErrorResponse
from service.http.gate import OPEN_PATHS
from service.http.options import Options

_REF = "#/components/schemas/{model}"
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
_MEANING: Mapping[int, str] = MappingProxyType(
    {
        400: "The body or the query cannot be parsed",
        401: "No valid API key",
        403: "Not allowed",
        404: "Unknown name",
        408: "The body did not arrive in time",
        409: "Conflict with what is there",
        413: "Over a limit of size or number",
        415: "The Content-Type or Content-Encoding is not taken",
        416: "The Range is not in the file",
        422: "A field or an item is wrong",
        429: "The server is full; see Retry-After",
        500: "Internal error, or the model failed",
        503: "Not ready, or stopping",
        504: "The deadline passed",
        507: "The disk is full; nothing was changed",
    }
)


def answers(
    model: type[BaseModel] | None, *errors: int, status: int = 200, npy: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its good answer, and the error shape for each other status."""
    good: dict[str, Any] = {"description": "Done" if model is None else "The answer"}
    if model is not None:
        good["model"] = model
    if npy:
        binary = {"schema": {"type": "string", "format": "binary"}}
        good["content"] = {"application/x-npy": binary}
    return {status: good, **{code: {"model": ErrorResponse, "description": _MEANING[code]} for code in errors}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes JSON only."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def bodies(
    model: type[BaseModel], options: Options, *, files: str = "images are appended to its inputs"
) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes JSON, multipart and raw images, with `options` in the query."""
    described = _option_schemas(model, options)
    binary = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {
            "image": {"type": "array", "items": binary, "description": "encoded images, in order"},
            "request": {
                "type": "string",
                "description": f"JSON of {model.__name__}; {files}",
            },
            **described,
        },
        "additionalProperties": False,
    }
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}},
        "multipart/form-data": {"schema": form},
        **{media_type: {"schema": binary} for media_type in _IMAGE_TYPES},
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": _parameters(described, options)}


def query_parameters(model: type[BaseModel], options: Options) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes `options` in its query and no body."""
    return {"parameters": _parameters(_option_schemas(model, options), options)}


def install_openapi(app: FastAPI) -> None:
    """Make /openapi.json; it is written once, when it is first asked for. `app.state.openapi_json` gives its bytes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi
    app.state.openapi_json = cache(lambda: orjson.dumps(openapi()))


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema([(model, "validation") for model in _request_models(app)], ref_template=_REF)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refused = {
        "description": _MEANING[401],
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="ErrorResponse")}}},
    }
    for path, operations in document["paths"].items():
        if path in OPEN_PATHS:
            continue
        for operation in operations.values():
            operation["security"] = [{}, {"key": []}]
            operation["responses"].setdefault("401", refused)
    return document


def _request_models(app: FastAPI) -> list[type[BaseModel]]:
    """The bodies that routes take as JSON; FastAPI does not know them, because service.http.ingress reads them."""
    found: dict[str, type[BaseModel]] = {}
    for route in app.routes:
        extra: dict[str, Any] = getattr(route, "openapi_extra", None) or {}
        content = extra.get("requestBody", {}).get("content", {})
        if reference := content.get("application/json", {}).get("schema", {}).get("$ref"):
            name = str(reference).rpartition("/")[2]
            found[name] = getattr(schemas, name)
    return list(found.values())


def _parameters(described: Mapping[str, Any], options: Options) -> list[dict[str, Any]]:
    """Lists are one parameter with commas, except texts, which may hold commas and come several times."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "style": "form",
            "explode": options[name] == "texts",
        }
        for name, schema in described.items()
    ]


def _option_schemas(model: type[BaseModel], options: Options) -> dict[str, dict[str, Any]]:
    """JSON schemas of options that come as text: null and objects cannot be written there."""
    properties = model.model_json_schema(ref_template=_REF)["properties"]
    return {name: _as_text(properties.get(name, {}), kind) for name, kind in options.items()}


def _as_text(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind in ("list", "templates", "texts"):
        element = schema.get("items", {})
        return {
            "type": "array",
            "items": element if "enum" in element else {"type": "string", "minLength": 1},
            "minItems": 1,
        }
    variants = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return {key: value for key, value in variants[0].items() if key not in ("title", "default")}
