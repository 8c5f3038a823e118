"""The dashboard, the alert rules and the scrape of deploy/: each name in them is one that a server really exports.

Where Prometheus is installed (.ci/run fetches it), it loads the files, scrapes a server and answers each panel.
"""

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.programs import program
from tests.stores import TINY_STORE

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "clipworks.json").read_text(encoding="utf-8"))
TARGET_LABELS = {"job", "instance"}  # what Prometheus adds to every series
VALUES = re.compile(r"label_values\((\w+)(\{[^}]*\})?, *(\w+)\)")
METRIC = re.compile(r"\b(?:clipworks|process)_[a-z_]+\b|\bup\b(?=\{)")
SELECTOR = re.compile(r"\b((?:clipworks|process)_[a-z_]+|up)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def panel_queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def variable_queries() -> list[str]:
    return [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


def alert_rules() -> dict[str, str]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


@dataclass
class Server:
    url: str
    client: httpx2.Client

    def use(self) -> None:
        """Requests of every kind, a bad one among them."""
        post = self.client.post
        assert post("/embed", json={"inputs": ["a red shirt"]}).status_code == 200
        shown = post("/classify", files={"image": a_picture()}, data={"labels": "shirt,shoe"})
        assert shown.status_code == 200
        assert post("/embed", content=b"no picture", headers={"Content-Type": "image/png"}).status_code == 422
        assert self.client.put("/collections/photos", json={}).status_code in {200, 201}
        item = {"id": "1", "text": "a red shirt"}
        assert post("/collections/photos/items", json={"items": [item]}).status_code == 200
        assert post("/collections/photos/search", json={"queries": ["a shirt"]}).status_code == 200

    def leave_a_request_half_sent(self) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"GET /livez HTTP/1.1\r\nHost:")
            while slow.recv(4096):
                pass

    def exported(self) -> dict[str, set[str]]:
        """Name of each series that /metrics has -> its labels."""
        found: dict[str, set[str]] = {"up": set()}
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found


def a_picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), (200, 40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(serving: Callable[..., AbstractContextManager[str]]) -> Iterator[Server]:
    settings = ("--store", TINY_STORE, "--data", "memory", "--header-timeout-s", "0.3")
    with serving(*settings) as url, httpx2.Client(base_url=url) as client:
        started = Server(url, client)
        started.leave_a_request_half_sent()
        started.use()
        yield started


def test_every_metric_and_label_is_exported(server: Server) -> None:
    exported = server.exported()
    expressions = [*(expr for _, expr in panel_queries()), *alert_rules().values()]
    for expr in expressions:
        names = METRIC.findall(expr)
        assert names, expr
        assert set(names) <= exported.keys(), expr
        for name, matchers in SELECTOR.findall(expr):
            labels = set(MATCHER.findall(matchers))
            assert labels <= exported[name] | TARGET_LABELS, (name, expr)
        known = TARGET_LABELS.union(*(exported[name] for name in names))
        for labels in GROUPING.findall(expr):
            assert {label.strip() for label in labels.split(",")} <= known, expr
    for query in variable_queries():
        name, _, label = VALUES.fullmatch(query).groups()  # type: ignore[union-attr]
        assert label in exported[name] | TARGET_LABELS, query


def test_the_chart_names_metrics_that_are_exported(server: Server) -> None:
    exported = server.exported()
    texts = [path.read_text("utf-8") for path in (DEPLOY / "helm").rglob("*.yaml")]
    texts.append((DEPLOY / "prometheus" / "adapter.yaml").read_text("utf-8"))
    found = {name for text in texts for name in METRIC.findall(text)}
    assert "clipworks_queue_depth" in found
    assert found <= exported.keys()


def test_panels_do_not_overlap() -> None:
    placed = [panel["gridPos"] | {"title": panel["title"]} for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(placed)
    for one in placed:
        assert one["x"] >= 0
        assert one["x"] + one["w"] <= 24, one
    for one, other in combinations(placed, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_the_dashboard_names_no_data_source_of_its_own() -> None:
    variables = DASHBOARD["templating"]["list"]
    defined = {each["name"] for each in variables}
    assert {"datasource", "instance", "model"} <= defined
    assert {each["datasource"]["uid"] for each in variables if each["type"] == "query"} == {"${datasource}"}
    for panel in panels():
        uids = {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])}
        assert uids == {"${datasource}"}, panel["title"]
    used = {name for _, expr in panel_queries() for name in re.findall(r"\$(\w+)", expr)}
    assert used <= defined | {"__rate_interval"}
    for _, expr in panel_queries():
        assert all(span == "$__rate_interval" for span in re.findall(r"\[([^]]+)\]", expr)), expr


@pytest.mark.parametrize("check", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_accepts_the_rules(check: list[str]) -> None:
    command = [program("promtool"), *check]
    done = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == set(alert_rules())
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == set(alert_rules())


@dataclass
class Prometheus:
    client: httpx2.Client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]

    def values(self, expr: str) -> list[float]:
        return [float(each["value"][1]) for each in self.get("query", query=expr)["result"]]

    def scrapes(self) -> float:
        return sum(self.values("count_over_time(up[1m])"))


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The scrape of the compose file with this server as its target, at a shorter interval, after three scrapes."""
    binary, folder = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(ALERTS)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=folder)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            end = time.monotonic() + 60
            while not is_ready(client):
                assert process.poll() is None, f"prometheus ended with {process.returncode}"
                assert time.monotonic() < end, "prometheus does not start"
                time.sleep(0.1)
            found = Prometheus(client)
            while found.scrapes() < 3:
                assert time.monotonic() < end, "prometheus does not scrape"
                server.use()
                time.sleep(0.2)
            yield found
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_every_panel_shows_something_of_a_real_server(prometheus: Prometheus) -> None:
    for title, expr in panel_queries():
        query = expr.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
        values = prometheus.values(query.replace("$model", ".*"))
        assert [value for value in values if value == value], f"{title}: {expr}"


def test_the_variables_have_values(prometheus: Prometheus) -> None:
    for query in variable_queries():
        name, matchers, label = VALUES.fullmatch(query).groups()  # type: ignore[union-attr]
        series = re.sub(r"\$\w+", ".*", name + (matchers or ""))
        assert prometheus.get(f"label/{label}/values", **{"match[]": series}), query


def test_prometheus_evaluates_every_alert_and_a_healthy_server_has_none(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(alert_rules())
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, [rule.get("lastError") for rule in rules]
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
