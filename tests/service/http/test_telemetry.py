"""Metrics say what happened with a bounded number of series; a log line cannot be forged."""

import json
import logging
from collections.abc import Callable, Generator
from io import StringIO

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.telemetry import Telemetry, configure_logging


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


def test_strange_requests_make_no_new_series(own: TestClient) -> None:
    own.get("/first")
    own.request("BREW", "/models")
    before = len(samples(own.get("/metrics").text))
    for number in range(50):
        own.get(f"/nowhere/{number}")
        own.get(f"/label-sets/name-{number}")
        own.request(f"METHOD{number}", "/models")
    after = samples(own.get("/metrics").text)
    assert len(after) <= before + 20  # one more series of /label-sets/{name}
    assert (
        after[("clipworks_requests_total", frozenset({"route": "unmatched", "method": "GET", "status": "404"}.items()))]
        >= 50
    )


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
    assert "ValueError" in second["trace"]


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
