"""Metrics say what happened with a bounded number of series; a log line cannot be forged."""

import ast
import json
import logging
import re
from collections.abc import Callable, Generator
from io import StringIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.logs import configure_logging
from service.telemetry import Telemetry


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(client: TestClient, name: str, **labels: str) -> float:
    return samples(client.get("/metrics").text).get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(scope="module")
def own(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


def test_requests_items_batches_and_models_are_counted(own: TestClient, png: bytes) -> None:
    before = value(own, "clipworks_requests_total", route="/embed", method="POST", status="200")
    own.post("/embed", json={"inputs": ["a", "b"]})
    own.post("/embed", content=png[:50], headers={"Content-Type": "image/png"})
    assert value(own, "clipworks_requests_total", route="/embed", method="POST", status="200") == before + 1
    assert value(own, "clipworks_requests_total", route="/embed", method="POST", status="422") == 1
    assert value(own, "clipworks_item_errors_total", code="invalid_image") == 1
    assert value(own, "clipworks_batch_size_sum", graph="tiny@1/text_encoder") >= 2
    assert value(own, "clipworks_stage_seconds_count", stage="infer") >= 1
    assert value(own, "clipworks_model_loaded", model="tiny@1") == 1
    assert value(own, "clipworks_ready") == 1
    assert value(own, "clipworks_requests_in_flight") == 1


def test_what_clients_invent_makes_no_series(own: TestClient) -> None:
    paths = ["/{}", "/models/{}", "/label-sets/{}", "/collections/{}", "/collections/{}/items/{}", "/snapshots/{}"]
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW", "LOCK")

    def flood(start: int) -> None:
        for number in range(start, start + 40):
            name = f"name-{number}"
            for path in [*paths, "/livez", "/embed"]:
                own.request(methods[number % len(methods)], path.replace("{}", name))
            own.request(f"METHOD{number}", "/models")
            own.post("/embed", json={"inputs": ["a"], "model": name})
            own.post("/classify", json={"inputs": [{"image": ""}], "label_set": name})
            own.post("/v1/embeddings", json={"input": "a", "model": name})

    flood(0)
    before = set(samples(own.get("/metrics").text))
    flood(1000)
    after = samples(own.get("/metrics").text)
    assert set(after) == before
    known = {route.path for route in own.app.routes} | {"unmatched"}  # type: ignore[attr-defined]
    for _, labels in after:
        assert dict(labels).get("route", "unmatched") in known
    unmatched = {"route": "unmatched", "method": "other", "status": "405"}
    assert after[("clipworks_requests_total", frozenset(unmatched.items()))] >= 80
    assert {dict(labels)["route"] for _, labels in after if dict(labels).get("status") == "405"} == {"unmatched"}


def test_two_servers_do_not_share_metrics() -> None:
    one, other = Telemetry(), Telemetry()
    one.item_error("x")
    assert b'clipworks_item_errors_total{code="x"} 1.0' in one.render()
    assert b'code="x"' not in other.render()


@pytest.fixture
def lines() -> Generator[Callable[[str], StringIO]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = StringIO()

    def configure(form: str) -> StringIO:
        configure_logging("info", form=form, stream=stream)
        return stream

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)


HOSTILE = "/a\r\n2026 INFO forged\x1b[31m\u2028\x00 b\ud800"


def test_text_lines_escape_what_could_forge_one(lines: Callable[[str], StringIO]) -> None:
    stream = lines("text")
    logging.getLogger("clipworks.test").info("request", extra={"fields": {"path": HOSTILE, "status": 200}})
    logging.getLogger("clipworks.test").info("%s", HOSTILE)
    text = stream.getvalue()
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\x00" not in text
    assert text.isascii()
    assert "status=200" in text


FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)')


@given(path=st.text(), method=st.text(max_size=10))
@example(path='/x" status=200 ms=1 user="root', method="GET")
@example(path="/x\\", method="\\")
@example(path="\u2028\x85\u202e", method=" ")
@settings(max_examples=300)
def test_fields_of_a_text_line_are_read_back_as_they_were(path: str, method: str) -> None:
    wanted = {"path": path, "method": method, "status": "200"}
    record = logging.makeLogRecord({"name": "clipworks", "levelname": "INFO", "msg": "request", "fields": wanted})
    line = formatter("text").format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    head, tail = line[: line.index(" path=")], line[line.index(" path=") :]
    assert head.endswith("info clipworks request")
    assert FIELD.sub("", tail) == ""
    found = {name: ast.literal_eval(text) if text[0] == '"' else text for name, text in FIELD.findall(tail)}
    assert found == wanted
    assert json.loads(formatter("json").format(record))["path"] == path


@given(st.text())
@example('done status=200 user="root"')
def test_a_message_cannot_pass_for_fields(message: str) -> None:
    record = logging.makeLogRecord({"name": "clipworks", "levelname": "INFO", "msg": message.replace("%", "")})
    line = formatter("text").format(record)
    assert len(line.splitlines()) == 1
    assert not FIELD.search(re.sub(r'"(?:[^"\\]|\\.)*"', "", line))


def formatter(form: str) -> logging.Formatter:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("info", form=form, stream=StringIO())
        return root.handlers[0].formatter  # type: ignore[return-value]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("given_id", ["a b", "a" * 65, "a\tb", "", "ä", 'a"b', "a=b"])
def test_a_request_id_is_short_and_plain_or_replaced(own: TestClient, given_id: str) -> None:
    found = own.get("/livez", headers={"X-Request-Id": given_id.encode("latin-1")}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", found)


def test_json_lines_are_json(lines: Callable[[str], StringIO]) -> None:
    stream = lines("json")
    log = logging.getLogger("clipworks.test")
    log.info("request", extra={"fields": {"path": HOSTILE, "status": 200}})
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first["status"] == 200
    assert first["level"] == "info"
    assert "ValueError" in second["exception"]


def test_tracebacks_are_marked_line_by_line(lines: Callable[[str], StringIO]) -> None:
    stream = lines("text")
    try:
        raise ValueError("x\n2026-01-01 info forged")
    except ValueError:
        logging.getLogger("clipworks.test").exception("failed")
    head, *rest = stream.getvalue().splitlines()
    assert "failed" in head
    assert rest
    assert all(line.startswith("    | ") for line in rest)
