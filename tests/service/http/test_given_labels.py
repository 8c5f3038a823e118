"""Labels that would give a wrong score without a word: repeated, blank, of several lines, alone under softmax."""

import base64
from typing import Any

import pytest
from starlette.testclient import TestClient


@pytest.fixture(scope="module")
def picture(png: bytes) -> list[dict[str, str]]:
    return [{"image": base64.b64encode(png).decode()}]


def predictions(client: TestClient, picture: list[dict[str, str]], **body: Any) -> dict[str, float]:
    response = client.post("/classify", json={"inputs": picture, **body})
    assert response.status_code == 200, response.text
    return {each["label"]: each["score"] for each in response.json()["data"][0]["predictions"]}


def refused(response) -> tuple[int, str, str | None]:  # type: ignore[no-untyped-def]
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog", "cat"],
        ["cat", "cat", "dog", "dog", "dog"],
        ["cat", "dog", " cat ", "dog\n"],
        ["cat", "dog", {"name": "bird", "prompts": ["a bird"]}, {"name": "bird", "prompts": ["a bird"]}],
    ],
)
def test_a_repeated_label_counts_once(client: TestClient, picture: Any, labels: list[Any]) -> None:
    once = list(dict.fromkeys(each.strip() if isinstance(each, str) else "bird" for each in labels))
    wanted = predictions(
        client, picture, labels=[{"name": "bird", "prompts": ["a bird"]} if each == "bird" else each for each in once]
    )
    assert predictions(client, picture, labels=labels) == wanted
    assert sum(wanted.values()) == pytest.approx(1)
    made = client.put("/label-sets/repeated", json={"labels": labels, "templates": "none"}).json()
    client.delete("/label-sets/repeated")
    assert (made["labels"], made["texts"]) == (len(once), len(once))


@pytest.mark.parametrize(
    ("labels", "param"),
    [
        (["cat", "  "], "labels[1]"),
        (["\n", "cat"], "labels[0]"),
        (["cat", "\u00a0"], "labels[1]"),
        (["cat", ""], "labels[1]"),
        (["shirt\r\nshoes\r\nwatch", "cat"], "labels[0]"),
        (["cat", {"name": "cat", "prompts": ["another cat"]}], "labels[1]"),
        ([{"name": "cat", "prompts": ["a"]}, "dog", {"name": "cat", "prompts": ["b"]}], "labels[2]"),
        ([{"name": "cat", "prompts": ["a", " "]}, "dog"], "labels[0]"),
        ({"cat": ["a cat"], "dog": [" "]}, "labels[1]"),
        ({"cat": ["a cat"], "dog": []}, "labels[1]"),
        ("cat,dog", "labels"),
        ({}, "labels"),
    ],
)
def test_labels_without_a_meaning_are_refused(client: TestClient, picture: Any, labels: Any, param: str) -> None:
    for response in (
        client.post("/classify", json={"inputs": picture, "labels": labels}),
        client.put("/label-sets/blank", json={"labels": labels}),
    ):
        status, code, place = refused(response)
        assert (status, code) == (422, "invalid_field")
        assert str(place).startswith(param)
    assert client.get("/label-sets/blank").status_code == 404


def test_softmax_of_one_label_is_no_answer(client: TestClient, picture: Any) -> None:
    for body in ({"labels": ["cat"]}, {"labels": ["cat", "cat"]}, {"labels": ["cat"], "activation": "softmax"}):
        response = client.post("/classify", json={"inputs": picture, **body})
        assert refused(response) == (422, "invalid_field", "labels")
        assert 'activation "none"' in response.json()["error"]["message"]
    alone = predictions(client, picture, labels=["cat"], activation="none")
    beside = predictions(client, picture, labels=["cat", "dog"], activation="none")
    assert alone["cat"] == pytest.approx(beside["cat"], abs=1e-5)
    assert predictions(client, picture, labels=["cat"], activation="sigmoid").keys() == {"cat"}


def test_softmax_of_a_stored_set_of_one_label_is_no_answer(client: TestClient, picture: Any) -> None:
    client.put("/label-sets/single", json={"labels": ["cat"]})
    try:
        while not client.get("/label-sets/single").json()["ready"]:
            pass
        response = client.post("/classify", json={"inputs": picture, "label_set": "single"})
        assert refused(response) == (422, "invalid_field", "label_set")
        predictions(client, picture, label_set="single", activation="none")
    finally:
        client.delete("/label-sets/single")


def test_an_object_of_prompts_is_labels_with_prompts(client: TestClient, picture: Any) -> None:
    prompts = {"shirt": ["a photo of a shirt", "a shirt"], "shoes": "a pair of shoes"}
    written = [{"name": "shirt", "prompts": prompts["shirt"]}, {"name": "shoes", "prompts": [prompts["shoes"]]}]
    assert predictions(client, picture, labels=prompts) == predictions(client, picture, labels=written)
    made = client.put("/label-sets/mapped", json={"labels": prompts}).json()
    names = client.get("/label-sets/mapped").json()["label_names"]
    client.delete("/label-sets/mapped")
    assert (made["labels"], made["texts"], names) == (2, 3, ["shirt", "shoes"])
