"""Bodies under the limit of bytes that would make millions of values or errors: refused in time, memory comes back."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

MB = 10**6
SEARCH, ITEMS = "POST /collections/c/search", "POST /collections/c/items"
EMBED, V1, SET, MAKE = "POST /embed", "POST /v1/embeddings", "PUT /label-sets/x", "PUT /collections/d"
FLOODS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "a vector of strings": (SEARCH, lambda mb: b'{"queries":[{"vector":[%s]}]}' % many(b'""', mb)),
    "a row of strings": (ITEMS, lambda mb: b'{"items":[{"id":"a","vector":[%s]}]}' % many(b'""', mb)),
    "unknown fields": (EMBED, lambda mb: b'{"inputs":["a"],%s}' % many_names(mb)),
    "unknown fields of an input": (EMBED, lambda mb: b'{"inputs":[{%s}]}' % many_names(mb)),
    "a schema of many fields": (MAKE, lambda mb: b'{"metadata_schema":{%s}}' % many_names(mb)),
    "lists": (EMBED, lambda mb: b'{"inputs":["a"],"x":[%s]}' % many(b"[]", mb)),
    "objects": (EMBED, lambda mb: b'{"inputs":["a"],"x":[%s]}' % many(b'{"":0}', mb)),
    "token lists of strings": (V1, lambda mb: b'{"input":[[%s]]}' % many(b'""', mb)),
    "prompts that are numbers": (SET, lambda mb: b'{"labels":[{"name":"a","prompts":[%s]}]}' % many(b"1", mb)),
    "labels of a mapping": (SET, lambda mb: b'{"labels":{%s}}' % many_names(mb)),
    "templates": (SET, lambda mb: b'{"labels":["a"],"templates":[%s]}' % many(b"1", mb)),
}


def many(value: bytes, mb: int) -> bytes:
    return b",".join([value] * (mb * MB // (len(value) + 1)))


def many_names(mb: int) -> bytes:
    return b",".join(b'"%x":1' % number for number in range(mb * MB // 9))


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Any]) -> Any:
    started = serve_module()
    started.wait_for("ready")
    httpx2.put(started.address + "/collections/c", json={}).raise_for_status()
    return started


def memory_mib(server: Any, field: str) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "mb"), [*((name, 3) for name in FLOODS), *((name, 30) for name in ("lists", "prompts that are numbers"))]
)
def test_a_flood_is_refused_in_time(server: Any, name: str, mb: int) -> None:
    route, make = FLOODS[name]
    method, path = route.split()
    body = make(mb)
    before = memory_mib(server, "VmRSS")
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    slowest, stopping = [0.0], threading.Event()

    def probe() -> None:
        with httpx2.Client(base_url=server.address) as client:
            while not stopping.is_set():
                started = time.monotonic()
                assert client.get("/livez").status_code == 200
                slowest.append(time.monotonic() - started)
                stopping.wait(0.02)

    prober = threading.Thread(target=probe)
    prober.start()
    started = time.monotonic()
    headers = {"Content-Type": "application/json"}
    answer = httpx2.request(method, server.address + path, content=body, headers=headers, timeout=60)
    took_s = time.monotonic() - started
    stopping.set()
    prober.join()
    assert answer.status_code in (413, 422), answer.text
    assert len(answer.content) < 500
    assert answer.status_code == 422 or "CLIPWORKS_" in answer.json()["error"]["message"]
    # Unbounded, they take 4 to 25 seconds for each 4 MB, and hundreds of times the body's size.
    assert took_s < 10
    assert max(slowest) < 4
    assert memory_mib(server, "VmHWM") - before < 20 * mb + 64
    assert memory_mib(server, "VmRSS") - before < 64


def test_many_vectors_of_floats_are_taken(server: Any) -> None:
    """4,096 items of 32 numbers are what the default settings promise; nothing about their number is suspicious."""
    number = b"-0.123456789012345678"
    vector = b"[%s]" % b",".join([number] * 32)
    items = b",".join(b'{"id":"%d","vector":%s}' % (index, vector) for index in range(4096))
    headers = {"Content-Type": "application/json"}
    body = b'{"items":[%s]}' % items
    answer = httpx2.post(server.address + "/collections/c/items", content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["upserted"] == 4096


def test_the_limit_is_a_setting(make_client: Callable[..., Any]) -> None:
    small = make_client(max_parsed_bytes=2**16)
    assert small.post("/embed", json={"inputs": ["a"] * 200}).status_code == 200
    refused = small.post("/embed", json={"inputs": ["a"], "x": [[]] * 300})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_items")
    assert "the limit is 65536 (CLIPWORKS_MAX_PARSED_BYTES)" in refused.json()["error"]["message"]
    form = {"labels": "[" + ",".join(["[]"] * 300) + "]"}
    assert small.post("/classify", data=form, files={"image": ("a.png", b"x")}).status_code == 413


@pytest.mark.parametrize(("field", "setting"), [("inputs", "ITEMS"), ("labels", "LABEL_TEXTS")])
def test_a_list_that_is_too_long_names_its_setting(make_client: Callable[..., Any], field: str, setting: str) -> None:
    small = make_client(max_items=2, max_label_texts=2)
    body: dict[str, Any] = {"inputs": [{"image": "QUJD"}], "labels": ["a"]}
    for value in ([{"image": "QUJD"}] * 3, {str(n): ["a"] for n in range(3)}):
        refused = small.post("/classify", json={**body, field: value})
        if field == "labels" or isinstance(value, list):
            assert refused.status_code == 413, refused.text
            assert f"CLIPWORKS_MAX_{setting}" in refused.json()["error"]["message"]
