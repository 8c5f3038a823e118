"""Keys: every route is closed unless it is named open; admin routes want an admin key; keys never reach a log."""

import io
import logging
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from service.logs import configure_logging

API, ADMIN = "an-api-key", "an-admin-key"
OPEN = {"/", "/ui", "/livez", "/readyz", "/health", "/docs", "/openapi.json"}


@pytest.fixture(scope="module")
def locked(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(api_keys=(API, "another-key"), admin_keys=(ADMIN,), cors_origins=("https://app.example",))


def bearer(key: str | bytes) -> dict[str, bytes]:
    return {"Authorization": b"Bearer " + (key if isinstance(key, bytes) else key.encode())}


def test_every_route_without_a_key_is_401_unless_it_is_open(locked: TestClient) -> None:
    routes = [(method, route.path) for route in locked.app.routes for method in route.methods]  # type: ignore[attr-defined]
    assert len(routes) >= 17
    for method, path in routes:
        response = locked.request(method, path.replace("{name}", "tiny"))
        if path in OPEN:
            assert response.status_code == 200, path
        elif path.startswith("/ui/"):  # the page's files; none has the name of this pattern
            assert response.status_code == 404, path
        else:
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
            assert "x-request-id" in response.headers


@pytest.mark.parametrize(
    "path", ["/nowhere", "/livez/", "/livez/../models", "/%2Flivez", "/ui/../models", "/uix", "/models%2F..%2Flivez"]
)
def test_paths_that_only_look_open(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 401


def test_a_host_header_cannot_open_a_path(locked: TestClient) -> None:
    assert locked.get("/models", headers={"Host": "x/livez?"}).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong-key"),
        bearer(""),
        bearer("schlüssel-🔑"),
        bearer(b"\xff\xfe"),
        bearer(API + "x"),
        {"Authorization": API},
        {"Authorization": f"Basic {API}"},
        {"X-Api-Key": API},
    ],
)
def test_wrong_keys_are_401(locked: TestClient, headers: dict[str, bytes]) -> None:
    assert locked.get("/models", headers=headers).status_code == 401


@pytest.mark.parametrize("key", [API, "another-key", ADMIN])
def test_each_key_opens(locked: TestClient, key: str) -> None:
    assert locked.get("/models", headers=bearer(key)).status_code == 200
    assert locked.get("/models", headers={"Authorization": f"bearer  {key} "}).status_code == 200


def test_loading_needs_an_admin_key(locked: TestClient) -> None:
    assert locked.post("/models/tiny/load").status_code == 401
    refused = locked.post("/models/tiny/load", headers=bearer(API))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_only")
    assert locked.post("/models/tiny/load", headers=bearer(ADMIN)).status_code == 200
    kept = locked.post("/models/tiny/unload", headers=bearer(ADMIN))
    assert kept.status_code == 409


def test_without_admin_keys_nobody_may_load(client: TestClient) -> None:
    for headers in ({}, bearer("anything")):
        refused = client.post("/models/tiny/load", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_disabled")


def test_admin_keys_alone_leave_the_rest_open(make_client: Callable[..., TestClient]) -> None:
    client = make_client(admin_keys=(ADMIN,))
    assert client.get("/models").status_code == 200
    assert client.post("/models/tiny/load").status_code == 401
    assert client.post("/models/tiny/load", headers=bearer(API)).status_code == 403
    assert client.post("/models/tiny/load", headers=bearer(ADMIN)).status_code == 200


def test_cors_is_for_the_listed_origin_only(locked: TestClient, client: TestClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    good = locked.options("/embed", headers={"Origin": "https://app.example", **asked})
    assert good.status_code == 204
    assert good.headers["access-control-allow-origin"] == "https://app.example"
    answer = locked.get("/livez", headers={"Origin": "https://app.example"})
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "Origin"
    for other in (locked, client):
        evil = other.options("/embed", headers={"Origin": "https://evil.example", **asked})
        assert evil.status_code in (401, 405)
        assert "access-control-allow-origin" not in evil.headers


def test_keys_never_reach_a_log(make_client: Callable[..., TestClient]) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("debug", form="text", stream=stream)
        client = make_client(api_keys=(API,), admin_keys=(ADMIN,), access_log=True)
        client.get("/models", headers=bearer(API))
        client.get("/models", headers=bearer("guessed-key"))
        client.post("/models/tiny/load", headers=bearer(ADMIN))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    text = stream.getvalue()
    assert "path=/models" in text
    for key in (API, ADMIN, "guessed-key"):
        assert key not in text
