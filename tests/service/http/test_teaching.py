"""Label sets taught by example: every way in, what they say of themselves, and what survives."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.stores import TINY_STORE

COLOURS = {"zif": (200, 30, 30), "mab": (30, 180, 40), "pel": (30, 40, 200)}


def picture(label: str, seed: int, form: str = "PNG") -> bytes:
    """A noisy picture of the label's colour; nothing in the label's name says which."""
    rng = np.random.default_rng([seed, *label.encode()])
    pixels = np.clip(np.array(COLOURS[label]) + rng.normal(0, 35, (40, 56, 3)), 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def wait_ready(client: TestClient) -> None:
    end = time.monotonic() + 60
    while client.get("/readyz").status_code != 200 and time.monotonic() < end:
        time.sleep(0.02)


def encoded(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def examples(count: int, *, first: int = 0) -> dict[str, list[dict[str, str]]]:
    return {label: [encoded(picture(label, first + seed)) for seed in range(count)] for label in COLOURS}


def ready(client: Any, name: str) -> dict[str, Any]:
    end = time.monotonic() + 30
    while True:
        found = client.get(f"/label-sets/{name}").json()
        if found["status"] in ("ready", "failed") or time.monotonic() > end:
            return found
        time.sleep(0.02)


def scores(client: Any, name: str, pictures: list[bytes], **more: Any) -> list[dict[str, float]]:
    """Logits by label, as they are."""
    body = {"inputs": [encoded(each) for each in pictures], "label_set": name, "activation": "none", **more}
    answer = client.post("/classify", json=body)
    assert answer.status_code == 200, answer.text
    return [{each["label"]: each["score"] for each in entry["predictions"]} for entry in answer.json()["data"]]


def best(client: Any, name: str, pictures: list[bytes]) -> list[str]:
    return [max(each, key=lambda label: each[label]) for each in scores(client, name, pictures)]


@pytest.fixture
def name(client: TestClient, request: pytest.FixtureRequest) -> Iterator[str]:
    """A label set of the session's server that is gone afterwards."""
    found = f"t-{abs(hash(request.node.nodeid)) % 10**9}"
    yield found
    client.delete(f"/label-sets/{found}")


def test_examples_teach_what_words_do_not_say(client: TestClient, name: str) -> None:
    answer = client.put(f"/label-sets/{name}", json={"examples": examples(6)})
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert (told["labels"], told["examples"], told["version"]) == (3, 18, 1)
    assert [(each["index"], each["label"]) for each in told["data"]] == [
        (index, label) for index, label in enumerate(label for label in COLOURS for _ in range(6))
    ]
    assert len({each["id"] for each in told["data"]}) == 18
    found = ready(client, name)
    assert (found["status"], found["ready"], found["label_names"]) == ("ready", True, list(COLOURS))
    out = found["leave_one_out"]
    assert (out["tested"], out["accuracy"]) == (18, 1.0)
    assert out["zero_shot"] < 0.8
    assert out["interval"][0] == pytest.approx(0.824, abs=0.01)
    assert [(each["label"], each["examples"], each["accuracy"]) for each in found["per_label"]] == [
        (label, 6, 1.0) for label in COLOURS
    ]
    assert (found["confused"], found["warnings"], found["mix"] > 0) == ([], [], True)
    fresh = [picture(label, 50 + seed) for label in COLOURS for seed in range(5)]
    assert best(client, name, fresh) == [label for label in COLOURS for _ in range(5)]
    by_words = client.post("/classify", json={"inputs": [encoded(each) for each in fresh], "labels": list(COLOURS)})
    told = [entry["predictions"][0]["label"] for entry in by_words.json()["data"]]
    assert told != [label for label in COLOURS for _ in range(5)]
    listed = {each["name"]: each for each in client.get("/label-sets").json()["data"]}
    assert (listed[name]["examples"], listed[name]["status"]) == (18, "ready")
    known = client.get(f"/label-sets/{name}/examples").json()["data"]
    assert {(each["label"], each["predicted"]) for each in known} == {(label, label) for label in COLOURS}


def test_every_way_in_gives_the_same_set(client: TestClient, name: str) -> None:
    """JSON by label, a list, form files with labels, files in the part `request`, a raw body, items of a collection."""
    files = {label: [picture(label, seed) for seed in range(3)] for label in COLOURS}
    flat = [(label, data) for label, pictures in files.items() for data in pictures]
    client.put(f"/label-sets/{name}", json={"labels": list(COLOURS), "examples": []})
    assert ready(client, name)["examples"] == 0
    ids = []
    for way in ("mapping", "list", "form", "request", "request mapping", "raw"):
        if way == "mapping":
            body = {"examples": {label: [encoded(each) for each in pictures] for label, pictures in files.items()}}
            answers = [client.post(f"/label-sets/{name}/examples", json=body)]
        elif way == "list":
            body = {"examples": [{"label": label, **encoded(data)} for label, data in flat]}
            answers = [client.post(f"/label-sets/{name}/examples", json=body)]
        elif way == "form":
            sent = [("image", data) for _, data in flat]
            answers = [
                client.post(f"/label-sets/{name}/examples", files=sent, data={"label": [label for label, _ in flat]})
            ]
        elif way in ("request", "request mapping"):
            sent = [("image", data) for _, data in flat]
            given: Any = [{"label": label} for label, _ in flat]
            if way == "request mapping":
                given = {label: [{}] * len(pictures) for label, pictures in files.items()}
            told = {"request": json.dumps({"examples": given})}
            answers = [client.post(f"/label-sets/{name}/examples", files=sent, data=told)]
        else:
            kind = {"Content-Type": "image/png"}
            answers = [
                client.post(f"/label-sets/{name}/examples", params={"label": label}, content=data, headers=kind)
                for label, data in flat
            ]
        assert [each.status_code for each in answers] == [202] * len(answers), answers[0].text
        ids.append([entry["id"] for each in answers for entry in each.json()["data"]])
        assert answers[-1].json()["examples"] == 9, "the same pictures are the same examples"
        assert answers[-1].json()["version"] == 2
    assert all(each == ids[0] for each in ids)
    assert ready(client, name)["leave_one_out"]["accuracy"] == 1.0


def test_items_of_a_collection_are_their_pictures(make_client: Callable[..., TestClient], tmp_path: Path) -> None:
    client = make_client(data=tmp_path)
    client.put("/collections/photos", json={})
    items = [{"id": f"{label}/{seed}", **encoded(picture(label, seed))} for label in COLOURS for seed in range(4)]
    assert client.post("/collections/photos/items", json={"items": items}).json()["upserted"] == 12
    given = {
        label: [{"item": {"collection": "photos", "id": f"{label}/{seed}"}} for seed in range(4)] for label in COLOURS
    }
    told = client.put("/label-sets/items", json={"examples": given}).json()
    assert told["data"][0]["id"] == "photos/zif/0"
    client.put("/label-sets/pictures", json={"examples": examples(4)})
    assert ready(client, "items")["leave_one_out"] == ready(client, "pictures")["leave_one_out"]
    fresh = [picture(label, 70) for label in COLOURS]
    for mine, its in zip(scores(client, "items", fresh), scores(client, "pictures", fresh), strict=True):
        assert mine == pytest.approx(its, abs=1e-3)
    missing = {"zif": [{"item": {"collection": "photos", "id": "none"}}, {"item": {"collection": "none", "id": "x"}}]}
    bad = client.post("/label-sets/items/examples", json={"examples": missing, "on_error": "fail"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (404, "examples[0].item")
    both = {"zif": [*missing["zif"], encoded(picture("zif", 9))]}
    told = client.post("/label-sets/items/examples", json={"examples": both}).json()
    assert [each.get("error", {}).get("code") for each in told["data"]] == [
        "item_not_found",
        "collection_not_found",
        None,
    ]


def test_one_bad_picture_is_named_and_fails_alone(client: TestClient, name: str) -> None:
    given = examples(2)
    given["mab"].insert(1, {"image": base64.b64encode(b"no picture").decode()})
    told = client.put(f"/label-sets/{name}", json={"examples": given}).json()
    failed = [each for each in told["data"] if "error" in each]
    assert (told["examples"], [each["index"] for each in failed]) == (6, [3])
    assert failed[0]["error"]["code"] == "unsupported_image"
    assert ready(client, name)["leave_one_out"]["tested"] == 6
    strict = client.put(f"/label-sets/{name}", json={"examples": given, "on_error": "fail"})
    assert (strict.status_code, strict.json()["error"]["param"]) == (422, "examples[3].image")
    assert client.get(f"/label-sets/{name}").json()["examples"] == 6
    nothing = client.post(f"/label-sets/{name}/examples", json={"examples": {"a": given["mab"][1:2]}})
    assert (nothing.status_code, "error" in nothing.json()["data"][0]) == (202, True), "also where it is the only one"
    taken = {"mab": [encoded(picture("mab", 77)), encoded(picture("zif", 0))]}
    whole = client.post(f"/label-sets/{name}/examples", json={"examples": taken, "on_error": "fail"})
    assert (whole.status_code, whole.json()["error"]["param"]) == (422, "examples[1]")
    assert client.get(f"/label-sets/{name}").json()["examples"] == 6, "nothing of it was stored"
    named = {"examples": {"zif": [encoded(picture("zif", 0))], "none": [], "bad": given["mab"][1:2]}}
    assert client.put(f"/label-sets/{name}", json=named).status_code == 202
    assert client.get(f"/label-sets/{name}").json()["label_names"] == ["zif", "none", "bad"]


def test_adding_and_taking_away_lead_to_the_same_head(client: TestClient, name: str) -> None:
    """What a set says depends on what it was taught with, not on how it came there."""
    fresh = [picture(label, 90) for label in COLOURS]
    client.put(f"/label-sets/{name}", json={"examples": examples(3)})
    ready(client, name)
    before = scores(client, name, fresh)
    added = client.post(f"/label-sets/{name}/examples", json={"examples": examples(2, first=20)}).json()
    assert (added["examples"], added["version"]) == (15, 2)
    assert ready(client, name)["leave_one_out"]["tested"] == 15
    assert scores(client, name, fresh) != before
    gone = [each["id"] for each in added["data"]]
    taken = client.request("DELETE", f"/label-sets/{name}/examples", json={"ids": [*gone, "not there"]}).json()
    assert (taken["examples"], taken["version"]) == (9, 3)
    ready(client, name)
    assert scores(client, name, fresh) == before
    less = client.request("DELETE", f"/label-sets/{name}/examples", params={"labels": "pel"}).json()
    assert (less["examples"], less["labels"]) == (6, 3)
    found = ready(client, name)
    assert any("no example of 'pel'" in each for each in found["warnings"])
    zif, mab = (each for each in scores(client, name, [picture("zif", 90), picture("mab", 90)]))
    assert zif["zif"] > zif["mab"]
    assert mab["mab"] > mab["zif"]
    both = {"labels": ["zif", " mab "]}
    nothing = client.request("DELETE", f"/label-sets/{name}/examples", params=both).json()
    assert (nothing["examples"], nothing["version"]) == (0, 5)
    assert ready(client, name)["leave_one_out"] is None
    again = client.post(f"/label-sets/{name}/examples", json={"examples": examples(1)}).json()
    assert (again["examples"], again["version"]) == (3, 6), "a version never comes twice"
    assert client.request("DELETE", f"/label-sets/{name}/examples", params=both, json=both).status_code == 422
    for body in ({}, {"ids": ["a"], "labels": ["b"]}, {"ids": []}):
        assert client.request("DELETE", f"/label-sets/{name}/examples", json=body).status_code == 422


def test_a_picture_has_one_label(client: TestClient, name: str) -> None:
    given = examples(2)
    given["pel"].append(given["zif"][0])
    told = client.put(f"/label-sets/{name}", json={"examples": given}).json()
    assert told["data"][6]["error"]["code"] == "example_taken"
    assert "'zif'" in told["data"][6]["error"]["message"]


def test_a_label_without_an_example_is_known_by_its_words(
    make_client: Callable[..., TestClient], tmp_path: Path, colours: Any
) -> None:
    """A model whose words are right: two of its three labels get examples, and the third is still found."""
    store = shutil.copytree(TINY_STORE, tmp_path / "store")
    colours.publish(store, "colours")
    client = make_client(store=store, model="colours")

    def plain(label: str, seed: int) -> dict[str, str]:
        levels = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}[label]
        rng = np.random.default_rng([seed, *label.encode()])
        pixels = np.clip(np.array(levels) + rng.normal(0, 20, (48, 48, 3)), 0, 255).astype(np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return encoded(buffer.getvalue())

    given = {label: [plain(label, seed) for seed in range(5)] for label in ("red", "green")}
    client.put("/label-sets/three", json={"labels": ["red", "green", "blue"], "examples": given})
    found = ready(client, "three")
    assert found["leave_one_out"]["accuracy"] == 1.0
    assert any("no example of 'blue'" in each for each in found["warnings"])
    for label in ("red", "green", "blue"):
        body = {"inputs": [plain(label, 50 + seed) for seed in range(4)], "label_set": "three"}
        answers = client.post("/classify", json=body).json()["data"]
        assert [each["predictions"][0]["label"] for each in answers] == [label] * 4


def test_a_set_that_cannot_be_fitted_is_repaired_by_more_examples(
    make_client: Callable[..., TestClient],
) -> None:
    """It was put with on_unknown "error", and a word that the model does not know fails it; the old one goes on."""
    client = make_client()
    one = {"zif": [encoded(picture("zif", seed)) for seed in range(3)]}
    client.put("/label-sets/one", json={"labels": ["zif", "mab"], "examples": one})
    found = ready(client, "one")
    assert "the words alone decide" in found["warnings"][0]
    client.post("/label-sets/one/examples", json={"examples": {"mab": [encoded(picture("mab", 1))]}})
    assert ready(client, "one")["warnings"] != found["warnings"]
    assert best(client, "one", [picture("zif", 9)]) == ["zif"]


def test_sigmoid_where_it_is_calibrated(client: TestClient, name: str) -> None:
    fresh = [encoded(picture("zif", 30))]
    ask = {"inputs": fresh, "label_set": name, "activation": "sigmoid"}
    client.put(f"/label-sets/{name}", json={"examples": examples(6)})
    assert ready(client, name)["calibrated"] is False
    few = client.post("/classify", json=ask)
    assert (few.status_code, few.json()["error"]["param"]) == (422, "activation")
    assert "20" in few.json()["error"]["message"]
    client.post(f"/label-sets/{name}/examples", json={"examples": examples(2, first=10)})
    assert ready(client, name)["calibrated"] is True
    found = client.post("/classify", json=ask).json()["data"][0]["predictions"]
    assert found[0]["label"] == "zif"
    assert found[0]["score"] > 0.6
    assert all(each["score"] < 0.4 for each in found[1:])
    softmax = client.post("/classify", json={**ask, "activation": "softmax"}).json()["data"][0]["predictions"]
    assert sum(each["score"] for each in softmax) == pytest.approx(1)


def test_what_it_is_not_for(client: TestClient, name: str) -> None:
    client.put(f"/label-sets/{name}", json={"examples": examples(2)})
    ready(client, name)
    put = {"examples": {"a": [encoded(picture("zif", 1))]}}
    for body in (
        {"examples": {"": [encoded(picture("zif", 1))]}},
        {"examples": {" ": [encoded(picture("zif", 1))]}},
        {"examples": {"a\nb": [encoded(picture("zif", 1))]}},
        {"examples": {"a": "x"}},
        {"examples": {"a": [{"text": "no"}]}},
        {"examples": {"a": [{"label": "b", **encoded(picture("zif", 1))}]}},
        {"examples": {"a": [{"item": {"collection": "x", "id": ""}}]}},
        {"examples": [{"image": "x"}]},
        {"labels": []},
        {},
    ):
        assert client.put(f"/label-sets/{name}", json=body).status_code == 422, body
    assert client.post("/label-sets/none/examples", json=put).status_code == 404
    assert client.get("/label-sets/none/examples").status_code == 404
    too_many = {"examples": {"a": [{"image": ""}] * 300}}
    assert client.post(f"/label-sets/{name}/examples", json=too_many).status_code == 413


def test_more_examples_than_a_set_holds(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_examples=7)
    assert client.put("/label-sets/a", json={"examples": examples(2)}).status_code == 202
    over = client.post("/label-sets/a/examples", json={"examples": examples(1, first=5)})
    assert (over.status_code, "CLIPWORKS_MAX_EXAMPLES" in over.text) == (413, True)
    assert ready(client, "a")["examples"] == 6


def test_classifying_goes_on_while_it_is_taught(client: TestClient, name: str) -> None:
    client.put(f"/label-sets/{name}", json={"examples": examples(3)})
    ready(client, name)
    answers: list[int] = []
    stop = threading.Event()
    body = {"inputs": [encoded(picture("mab", 40))], "label_set": name}

    def ask() -> None:
        while not stop.is_set():
            answer = client.post("/classify", json=body)
            answers.append(answer.status_code)
            assert answer.json()["data"][0]["predictions"][0]["label"] == "mab"

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for step in range(8):
            added = client.post(f"/label-sets/{name}/examples", json={"examples": examples(1, first=100 + step)})
            assert added.status_code == 202
    finally:
        stop.set()
        asking.join()
    assert len(answers) > 3
    assert set(answers) == {200}
    assert ready(client, name)["version"] == 9


def test_a_taught_set_belongs_to_its_model(
    make_client: Callable[..., TestClient], tmp_path: Path, colours: Any
) -> None:
    store = shutil.copytree(TINY_STORE, tmp_path / "store")
    colours.publish(store, "colours")
    client = make_client(store=store, model="tiny", extra_models="colours")
    client.put("/label-sets/a", json={"examples": examples(2)})
    client.put("/label-sets/b", json={"model": "colours", "examples": examples(2)})
    for name in ("a", "b"):
        assert ready(client, name)["status"] == "ready"
    ask = {"inputs": [encoded(picture("zif", 3))], "label_set": "a"}
    other = client.post("/classify", json={"model": "colours", **ask})
    assert (other.status_code, "tiny@1" in other.json()["error"]["message"]) == (409, True)
    assert client.post("/classify", json=ask).json()["model"] == "tiny@1"
    assert client.post("/classify", json={**ask, "label_set": "b"}).json()["model"] == "colours@1"
    located = client.post("/localize", json={**ask, "label_set": "b"})
    assert (located.status_code, "taught by example" in located.text) == (422, True)


def urls(server: Any) -> httpx2.Client:
    return httpx2.Client(base_url=server.address, timeout=30)


def test_a_kill_loses_nothing_that_was_acknowledged(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Killed in the middle of adding, again and again; what was answered with 202 is there, with the same head."""
    acknowledged: set[str] = set()
    fresh = [picture(label, 200) for label in COLOURS]
    for turn in range(2):
        server = serve(data=tmp_path)
        server.wait_for("ready")
        with urls(server) as client:
            if turn == 0:
                told = client.put("/label-sets/a", json={"examples": examples(2)}).json()
                acknowledged |= {each["id"] for each in told["data"]}
            known = {each["id"] for each in client.get("/label-sets/a/examples").json()["data"]}
            assert acknowledged <= known
            assert ready(client, "a")["status"] == "ready"
            killed = threading.Timer(0.4, os.kill, (server.process.pid, signal.SIGKILL))
            killed.start()
            for step in range(1000):
                try:
                    answer = client.post(
                        "/label-sets/a/examples", json={"examples": examples(1, first=1000 * (turn + 1) + step)}
                    )
                except httpx2.HTTPError:
                    break
                assert answer.status_code == 202
                acknowledged |= {each["id"] for each in answer.json()["data"]}
            killed.join()
        server.wait()
    assert len(acknowledged) > 6
    server = serve(data=tmp_path)
    server.wait_for("ready")
    with urls(server) as client:
        known = client.get("/label-sets/a/examples").json()["data"]
        assert acknowledged <= {each["id"] for each in known}
        found = ready(client, "a")
        assert found["examples"] == len(known)
        before = scores(client, "a", fresh)
    assert server.stop() == 0
    server = serve(data=tmp_path)
    server.wait_for("ready")
    with urls(server) as client:
        assert ready(client, "a") == found
        assert scores(client, "a", fresh) == before, "fitted anew from what was stored"
    folder = tmp_path / "label-sets"
    assert len(list(folder.glob("a.*.examples"))) == 1
    assert server.stop() == 0


def test_damaged_examples_fail_the_set_and_nothing_else(
    make_app: Callable[..., Any], make_client: Callable[..., TestClient], tmp_path: Path
) -> None:
    with TestClient(make_app(data=tmp_path)) as first:
        wait_ready(first)
        for each in ("a", "a.b", "plain"):
            body = {"labels": ["x", "y"]} if each == "plain" else {"examples": examples(2)}
            first.put(f"/label-sets/{each}", json=body)
            ready(first, each)
    [path] = [each for each in (tmp_path / "label-sets").glob("a.*.examples") if not each.name.startswith("a.b.")]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    client = make_client(data=tmp_path)
    found = {each["name"]: each for each in client.get("/label-sets").json()["data"]}
    assert found["a"]["status"] == "failed"
    assert "does not match its sha256" in found["a"]["failed"]
    assert (found["a.b"]["status"], found["plain"]["status"]) == ("ready", "ready")
    refused = client.post("/classify", json={"inputs": [encoded(picture("zif", 3))], "label_set": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "label_set_failed")
    assert client.put("/label-sets/a", json={"examples": examples(2)}).status_code == 202
    assert ready(client, "a")["status"] == "ready"
    assert client.delete("/label-sets/a").status_code == 204
    left = {each.name.partition(".")[0] for each in (tmp_path / "label-sets").iterdir()}
    assert left == {"a", "plain"}, "a.b is another set"
    assert not [each for each in (tmp_path / "label-sets").glob("a.*.examples") if not each.name.startswith("a.b.")]
