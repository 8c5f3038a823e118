"""Which origins may call the server, and what their browsers are told."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.http.origins import parse_origin
from service.settings import BadSettings, read_settings

APPS = ("app://obsidian.md", "tauri://localhost", "capacitor://localhost", "chrome-extension://abcdefgh", "null")
PREFLIGHT = {"Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def open_to(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(cors_origins=(*APPS, "https://*.example.com", "http://localhost:*"), api_keys=("some-key-123",))


def preflight(client: TestClient, origin: str, **headers: str):  # type: ignore[no-untyped-def]
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.options("/v1/embeddings", headers={"Origin": origin, **PREFLIGHT, **more})


@pytest.mark.parametrize("origin", [*APPS, "https://a.example.com", "https://a.b.example.com", "http://localhost:5173"])
def test_pages_and_apps_that_are_listed(open_to: TestClient, origin: str) -> None:
    asked = preflight(open_to, origin)
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == origin
    answer = open_to.get("/models", headers={"Origin": origin})
    assert answer.status_code == 401, "a preflight needs no key, the request does"
    assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin",
    ["https://example.com", "http://a.example.com", "https://a.example.com.evil.org", "https://evilexample.com",
     "https://a.example.com:8443", "app://other.md", "https://.example.com", "https://a/.example.com", "nulls", "x", "",
     "https://localhost:1", "chrome-extension://abcdefghi", "https://é.example.com"],
)  # fmt: skip
def test_others_are_not_let_in_and_caches_are_told(open_to: TestClient, origin: str) -> None:
    for response in (
        open_to.options("/embed", headers={"Origin": origin.encode("latin-1"), **PREFLIGHT}),
        open_to.get("/livez", headers={"Origin": origin.encode("latin-1")}),
    ):
        assert "access-control-allow-origin" not in response.headers
        assert "Origin" in response.headers["vary"]
    assert open_to.get("/livez").headers["vary"] == "Origin"


def test_the_headers_that_are_asked_for_are_allowed(open_to: TestClient) -> None:
    names = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count,x-stainless-timeout"
    allowed = preflight(open_to, "null", Access_Control_Request_Headers=names).headers["access-control-allow-headers"]
    assert {name.strip() for name in allowed.split(",")} == set(names.split(","))
    for odd in ("a b", "a,,b", "x:y", "a" * 3000, ""):
        allowed = preflight(open_to, "null", Access_Control_Request_Headers=odd).headers["access-control-allow-headers"]
        assert "Authorization" in allowed
        assert "x:y" not in allowed


def test_a_page_of_the_internet_may_call_a_private_network(open_to: TestClient) -> None:
    asked = preflight(open_to, "null", Access_Control_Request_Private_Network="true")
    assert asked.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-private-network" not in preflight(open_to, "null").headers


def test_a_star_is_every_origin(make_client: Callable[..., TestClient]) -> None:
    client = make_client(cors_origins=("*",))
    for origin in (*APPS, "https://anything.example:81"):
        assert client.get("/livez", headers={"Origin": origin}).headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "text",
    ["example.com", "https://example.com/", "https://example.com/app", "https://", "https://exa*ple.com", "https://*.*",
     "https://*example.com", "https://a.*", "https://example.com:443", "http://example.com:80", "http://a:0", "http://a:b",
     "http://a:", "http://a:99999", "https://user@example.com", "https://a b", "://a", "*://a", "NULL", "https://é.com",
     "https://*.", "http://a:1*"],
)  # fmt: skip
def test_what_can_match_nothing_is_refused_at_start(text: str) -> None:
    with pytest.raises(BadSettings, match="CLIPWORKS_CORS_ORIGINS"):
        read_settings({"cors_origins": f"https://good.example,{text}"})


def test_how_an_origin_may_be_written() -> None:
    assert parse_origin("HTTPS://App.Example").matches("https://app.example")
    assert parse_origin("http://[::1]:*").matches("http://[::1]:8080")
    assert parse_origin("http://[::1]").matches("http://[::1]")
    assert parse_origin("chrome-extension://*").matches("chrome-extension://abc")
    assert not parse_origin("chrome-extension://*").matches("chrome-extension://")
    assert not parse_origin("null").matches("")


@given(st.text(max_size=60))
def test_what_is_accepted_matches_something_and_what_it_matches_is_an_origin(text: str) -> None:
    try:
        origin = parse_origin(text)
    except ValueError:
        return
    example = origin.text.replace("://*.", "://a.").replace("://*", "://a").removesuffix(":*")
    assert origin.matches(example)
    assert origin.text in ("*", "null") or not origin.matches(example + "/x")


def test_long_origins_cost_nothing() -> None:
    pattern = parse_origin("https://*." + "a." * 1000 + "com")
    started = time.monotonic()
    for _ in range(1000):
        assert not pattern.matches("https://" + "a." * 20_000 + "con")
    assert time.monotonic() - started < 5
