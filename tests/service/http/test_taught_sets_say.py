"""What taught label sets say: refusals that name the remedy, warnings, and scores of a model with a sigmoid loss."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.service.http.test_teaching import COLOURS, encoded, examples, picture, ready
from tests.stores import TINY_STORE

JUNK = {"image": base64.b64encode(b"no picture").decode()}


@pytest.fixture(scope="module")
def server(serve_module: Callable[..., Any]) -> Iterator[httpx2.Client]:
    started = serve_module(model="tiny")
    started.wait_for("ready")
    with httpx2.Client(base_url=started.address, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def several(
    serve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, colours: Any
) -> Iterator[httpx2.Client]:
    """tiny, and two models that know three colours: `colours`, and `signs`, as if trained with a sigmoid loss."""
    store = shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("several") / "store")
    colours.publish(store, "colours")
    colours.publish(store, "signs", presence=None, dense=None, activation="sigmoid", logit_bias=-4.0)
    started = serve_module(store=store, model="tiny", extra_models="colours,signs")
    started.wait_for("ready")
    with httpx2.Client(base_url=started.address, timeout=30) as client:
        yield client


def put(server: httpx2.Client, name: str, **body: Any) -> dict[str, Any]:
    answer = server.put(f"/label-sets/{name}", json=body)
    assert answer.status_code == 202, answer.text
    return ready(server, name)


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    return {"status": answer.status_code, **answer.json()["error"]}


def sigmoid_error(server: httpx2.Client, name: str) -> dict[str, Any]:
    body = {"inputs": [encoded(picture("zif", 3))], "label_set": name, "activation": "sigmoid"}
    return error_of(server.post("/classify", json=body))


def test_another_model_is_refused_with_the_remedy(several: httpx2.Client) -> None:
    put(several, "taught", examples=examples(2))
    put(several, "texts", labels=["x", "y"])
    for name, again in (("taught", "teach it again"), ("texts", "put it again")):
        ask = {"model": "colours", "inputs": [encoded(picture("zif", 3))], "label_set": name}
        refused = error_of(several.post("/classify", json=ask))
        assert (refused["status"], refused["code"]) == (409, "conflict")
        remedy = f"ask with model tiny@1, or {again} for colours@1 under another name"
        assert refused["message"].endswith(remedy)
        assert several.post("/classify", json={**ask, "model": "tiny@1"}).status_code == 200
    put(several, "taught-colours", model="colours@1", examples=examples(2))
    ask = {"model": "colours", "inputs": [encoded(picture("zif", 3))], "label_set": "taught-colours"}
    assert several.post("/classify", json=ask).status_code == 200


def test_bad_pictures_alone_never_replace_a_set(server: httpx2.Client) -> None:
    good = {label: pictures for label, pictures in examples(4).items() if label != "pel"}
    before = put(server, "kept", examples=good)
    assert before["examples"] == 8
    missing = {"item": {"collection": "none", "id": "x"}}
    files = [("image", b"no picture"), ("image", b"nor this")]
    for answer in (
        server.put("/label-sets/kept", json={"examples": {"a": [JUNK], "b": [missing]}}),
        server.put("/label-sets/kept", json={"examples": [{"label": "a", **JUNK}, {"label": "b", **missing}]}),
        server.put("/label-sets/kept", json={"labels": ["a"], "examples": {"a": [JUNK] * 2}, "needs_example": True}),
        server.put("/label-sets/kept", files=files, data={"label": ["a", "b"]}),
        server.put("/label-sets/kept", files=files, data={"label": ["a", "b"], "needs_example": "true"}),
    ):
        refused = error_of(answer)
        assert (refused["status"], refused["code"], refused["param"]) == (422, "no_usable_example", "examples")
        assert "label set kept is as it was: examples[0]: " in refused["message"]
        assert "; examples[1]: " in refused["message"]
    assert server.get("/label-sets/kept").json() == before
    assert server.put("/label-sets/new", json={"examples": {"a": [JUNK]}}).status_code == 422
    assert server.get("/label-sets/new").status_code == 404, "nothing was made"
    many = error_of(server.put("/label-sets/kept", json={"examples": {"a": [JUNK] * 40}}))
    assert many["message"].endswith("; and 8 more")
    nothing = error_of(server.put("/label-sets/kept", json={"labels": ["a"], "examples": [], "needs_example": True}))
    assert (nothing["status"], nothing["message"].endswith(": there are none")) == (422, True)


def test_a_set_without_an_example_says_so(server: httpx2.Client) -> None:
    told = server.put("/label-sets/bare", json={"labels": ["zif", "mab"], "examples": {"zif": [JUNK, JUNK]}})
    assert told.status_code == 202
    bare = "it has no example: the words of its labels alone decide"
    assert told.json()["warnings"] == ["none of the 2 examples of this request can be used", bare]
    assert [each["error"]["code"] for each in told.json()["data"]] == ["unsupported_image"] * 2
    assert ready(server, "bare")["warnings"] == [bare]
    more = server.post("/label-sets/bare/examples", json={"examples": {"zif": [encoded(picture("zif", 1))]}}).json()
    assert bare not in more["warnings"]
    server.delete("/label-sets/bare/examples", params={"labels": "zif"})
    assert ready(server, "bare")["warnings"] == [bare]
    assert put(server, "bare", labels=["zif", "mab"], examples=[])["warnings"] == [bare]
    assert put(server, "bare", examples={"zif": [], "mab": []})["warnings"] == [bare], "they come later"
    assert put(server, "bare", labels=["zif", "mab"])["warnings"] == [], "nobody meant to teach it"


def test_a_label_with_one_example_is_named(server: httpx2.Client) -> None:
    given = examples(3)
    given["pel"] = given["pel"][:1]
    found = put(server, "one", examples=given)
    assert found["warnings"] == ["one example of 'pel': it cannot be left out, so nothing says how well it is known"]
    assert [(each["label"], each["tested"], each["accuracy"]) for each in found["per_label"]] == [
        ("zif", 3, 1.0),
        ("mab", 3, 1.0),
        ("pel", 0, None),
    ]


def test_pictures_under_the_wrong_label_are_found(server: httpx2.Client) -> None:
    """Two of zif lie among those of mab: the set says so, and which they are."""
    given = examples(6)
    given["mab"] += [encoded(picture("zif", 300 + seed)) for seed in range(2)]
    told = server.put("/label-sets/mixed", json={"examples": given}).json()
    wrong = [told["data"][index]["id"] for index in (12, 13)]
    found = ready(server, "mixed")
    assert found["confused"] == [{"label": "mab", "taken_for": "zif", "count": 2}]
    assert [(each["label"], each["accuracy"]) for each in found["per_label"]] == [
        ("zif", 1.0),
        ("mab", 0.75),
        ("pel", 1.0),
    ]
    known = server.get("/label-sets/mixed/examples").json()["data"]
    assert [each["id"] for each in known if each["predicted"] != each["label"]] == wrong


def test_sigmoid_is_refused_with_its_own_reason(server: httpx2.Client) -> None:
    put(server, "few", examples=examples(6))
    few = sigmoid_error(server, "few")
    assert (few["status"], few["code"], few["param"]) == (422, "scale_unknown", "activation")
    assert "18 examples could be left out, and it takes 20" in few["message"]
    put(server, "untaught", labels=[*COLOURS, "qua"], examples=examples(14))
    untaught = sigmoid_error(server, "untaught")
    assert (untaught["status"], untaught["code"]) == (422, "scale_unknown")
    assert "there is no example of 'qua', and it takes one of every label" in untaught["message"]
    assert "20" not in untaught["message"], "42 are enough"
    put(server, "both", labels=[*COLOURS, "qua"], examples=examples(2))
    both = sigmoid_error(server, "both")["message"]
    assert "no example of 'qua'" in both
    assert "6 examples could be left out" in both
    alike = [encoded(picture("pel", 1400 + seed)) for seed in range(24)]  # of one colour: nothing tells them apart
    put(server, "falling", examples={"zif": alike[1::2], "mab": alike[::2]})
    falling = sigmoid_error(server, "falling")
    assert (falling["status"], falling["code"]) == (422, "scale_unknown")
    assert "those with a higher logit of a label show it no more often" in falling["message"]


def test_a_model_with_a_sigmoid_loss_is_taught_as_any(several: httpx2.Client) -> None:
    """Its bias is the same for every label: it changes no logit of a taught set, and its sigmoid is of the examples."""
    given = examples(8)
    fresh = [encoded(picture(label, 90)) for label in COLOURS]
    scored: dict[tuple[str, str | None], list[dict[str, float]]] = {}
    for model in ("colours", "signs"):
        name = f"by-{model}"
        assert put(several, name, model=model, examples=given)["leave_one_out"]["accuracy"] == 1.0
        for activation in (None, "none", "sigmoid"):
            body = {"model": model, "inputs": fresh, "label_set": name, "activation": activation}
            answer = several.post("/classify", json=body)
            assert answer.status_code == 200, answer.text
            scored[model, activation] = [
                {each["label"]: each["score"] for each in entry["predictions"]} for entry in answer.json()["data"]
            ]
    for activation in (None, "none", "sigmoid"):
        for mine, its in zip(scored["signs", activation], scored["colours", activation], strict=True):
            assert mine == pytest.approx(its, abs=1e-5)
    assert [max(each, key=lambda label: each[label]) for each in scored["signs", None]] == list(COLOURS)
    np.testing.assert_allclose([sum(each.values()) for each in scored["signs", None]], 1, atol=1e-5)
    for label, each in zip(COLOURS, scored["signs", "sigmoid"], strict=True):
        assert each[label] > 0.5 > max(score for other, score in each.items() if other != label)
    texts = {"model": "signs", "inputs": fresh, "labels": list(COLOURS), "activation": "sigmoid"}
    shown = several.post("/classify", json=texts).json()["data"]
    assert max(each["score"] for entry in shown for each in entry["predictions"]) < 0.1, "the bias is in force there"


def test_an_item_of_another_encoder_fails_alone_and_a_file_is_no_item(several: httpx2.Client) -> None:
    data = picture("zif", 500)
    for collection, model in (("its", "tiny"), ("others", "colours")):
        several.put(f"/collections/{collection}", json={"model": model}).raise_for_status()
        stored = several.post(f"/collections/{collection}/items", json={"items": [{"id": "a", **encoded(data)}]})
        assert stored.json()["upserted"] == 1
    item = {each: {"item": {"collection": each, "id": "a"}} for each in ("its", "others")}
    given = {"zif": [item["others"], item["its"], encoded(data), encoded(data), item["its"]]}
    told = several.put("/label-sets/items", json={"examples": given})
    assert told.status_code == 202
    assert [each.get("error", {}).get("code") for each in told.json()["data"]] == ["space_mismatch", *[None] * 4]
    first, second, again, third = (each["id"] for each in told.json()["data"][1:])
    assert (first, second) == (third, again)
    assert told.json()["examples"] == 2, "an item, and the file that it was made of"
    whole = error_of(several.put("/label-sets/items", json={"examples": given, "on_error": "fail"}))
    assert (whole["status"], whole["code"], whole["param"]) == (409, "space_mismatch", "examples[0].item")
    alone = error_of(several.put("/label-sets/items", json={"examples": {"zif": [item["others"]]}}))
    assert (alone["status"], alone["code"]) == (422, "no_usable_example")
