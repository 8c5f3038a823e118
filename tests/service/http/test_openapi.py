"""The OpenAPI document says which limits a route has."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_whatever_can_be_too_large_documents_413(make_app: Any) -> None:
    app: FastAPI = make_app()
    for name, operation in operations(app.openapi()):
        takes_options = any(each["in"] == "query" for each in operation.get("parameters", ()))
        if "requestBody" in operation or takes_options:
            assert "413" in operation["responses"], name


@pytest.mark.parametrize("path", ["/collections/none/items", "/collections/none/items/a"])
def test_a_list_in_a_query_has_its_limit(client: TestClient, path: str) -> None:
    response = client.get(path, params={"include": ",".join(["metadata"] * 17)})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_items")


def test_null_is_documented_where_v1_takes_it(make_app: Any) -> None:
    app: FastAPI = make_app()
    fields = app.openapi()["components"]["schemas"]["V1EmbeddingsRequest"]["properties"]
    optional = {name for name, schema in fields.items() if {"type": "null"} in schema.get("anyOf", ())}
    assert optional == fields.keys() - {"input"}
