"""Routes and schemas of the server's own OpenAPI document, as two Markdown pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby
from typing import Any

Json = Mapping[str, Any]
_ROUTES = """# Routes

Made from the server's `/openapi.json`, which says the same for machines. What the routes mean, with examples, is in
[HTTP](../http.md). Where the server has API keys, each route but the open ones wants `Authorization: Bearer KEY`, and
answers 401 without. What is not 2xx has the body [`ErrorResponse`](schemas.md#schema-errorresponse); its codes are in
[Errors](../http.md#errors).

| status | meaning |
|---|---|
"""
_SCHEMAS = """# Schemas

Bodies of requests and answers, made from the server's `/openapi.json`. From Python they are importable from
`clipworks.schemas`. A request with a field that is not listed is refused.

"""
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more",
    "maxLength": "{} characters at most",
    "minItems": "{} or more",
    "maxItems": "{} at most",
    "minProperties": "{} or more",
    "maxProperties": "{} at most",
    "pattern": "like `{}`",
}


@cache
def document() -> Json:
    """/openapi.json of a server with default settings; no model is loaded for it."""
    from service.app import create_app
    from service.settings import Settings

    return create_app(Settings(data="memory"), with_collections=False).openapi()


def operations() -> list[tuple[str, str, Json]]:
    """(method, path, operation), in the order of the document."""
    return [
        (method.upper(), path, operation)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    ]


def routes_page() -> str:
    meanings = {
        status: answer["description"] for _, _, each in operations() for status, answer in each["responses"].items()
    }
    parts = [_ROUTES, *(f"| {status} | {meanings[status]} |\n" for status in sorted(meanings) if status >= "4")]
    for group, routes in groupby(operations(), key=lambda each: "/" + each[1].split("/")[1]):
        parts.append(f"\n## {group}\n")
        parts += ["\n".join(_route(method, path, operation)) for method, path, operation in routes]
    return "".join(parts)


def schemas_page() -> str:
    return _SCHEMAS + "\n".join(
        "\n".join(_schema(name, schema)) for name, schema in sorted(document()["components"]["schemas"].items())
    )


def _route(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"\n### {method} {path}\n"
    yield f"{operation['summary']}." if operation["summary"][-1] not in ".?" else operation["summary"]
    if operation.get("description"):
        yield f"{operation['description']}"
    if "security" not in operation:
        yield "Open: never wants a key."
    yield ""
    if parameters := operation.get("parameters"):
        yield from _table(
            ("parameter", "in", "type", "meaning"),
            (
                (f"`{each['name']}`", each["in"], _type(each["schema"]), _meaning(each["schema"], each))
                for each in parameters
            ),
        )
    if body := operation.get("requestBody"):
        yield from _bodies(body["content"])
    good = [(status, answer) for status, answer in operation["responses"].items() if status < "4"]
    for status, answer in good:
        kinds = [
            f"`{kind}`" + (f" {_type(each['schema'])}" if each.get("schema") else "")
            for kind, each in answer.get("content", {}).items()
        ]
        yield f"**Answer {status}**: {' or '.join(kinds) or 'nothing'}\n"
    if errors := sorted(status for status in operation["responses"] if status >= "4"):
        yield f"**Errors**: {', '.join(errors)}\n"


def _bodies(content: Json) -> Iterator[str]:
    images = [kind for kind in content if kind.startswith("image/")]
    for kind, body in content.items():
        if kind == "application/json":
            yield f"**Body** `{kind}`: {_type(body['schema'])}\n"
        elif kind not in images:
            yield f"**Body** `{kind}`, with these parts:\n"
            yield from _fields(body["schema"])
    if images:
        yield f"**Body** {', '.join(f'`{kind}`' for kind in images)}: the bytes of one image\n"


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f"## {name} {{ #{_anchor(name)} }}\n"
    if schema.get("description"):
        yield f"{' '.join(schema['description'].split())}\n"
    if schema.get("properties"):
        yield from _fields(schema)
    else:
        yield f"{_type(schema)}\n"


def _fields(schema: Json) -> Iterator[str]:
    required = schema.get("required", ())
    yield from _table(
        ("field", "type", "default", "meaning"),
        (
            (f"`{name}`", _type(each), _default(each, needed=name in required), _meaning(each))
            for name, each in schema["properties"].items()
        ),
    )


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in row)} |"
    yield ""


def _default(schema: Json, *, needed: bool) -> str:
    if needed:
        return "required"
    default = schema.get("default")
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _meaning(schema: Json, parameter: Json | None = None) -> str:
    """What the document says of it, then its limits."""
    variants = [schema, *(each for each in schema.get("anyOf", ()) if isinstance(each, dict))]
    limits = [say.format(each[key]) for each in variants for key, say in _LIMITS.items() if key in each]
    said = schema.get("description") or (parameter or {}).get("description") or ""
    return "; ".join(part for part in (said, ", ".join(limits)) if part)


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[`{name}`](schemas.md#{_anchor(name)})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(each) for each in schema[key])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type(each) for each in schema['prefixItems'])}]"
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) and values else "object"
    if schema.get("format") == "binary":
        return "bytes"
    return str(schema.get("type", "anything"))


def _anchor(name: str) -> str:
    return f"schema-{name.lower()}"
