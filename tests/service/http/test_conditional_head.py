"""A model with a conditional head over HTTP: any labels, bounded work, and nothing else of its base is changed."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from evaluation.encoder import ArtifactEncoder
from model_store.errors import GoldenError
from model_store.manifest import Presence
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Artifact, Store
from model_store.towers import ConditionalHead, Vectors, open_conditional_head, open_tower

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch]

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
LABELS = ["red", "a green thing", "blue", "日本"]
SCALE = 20.0
PRESENCE = Presence(positive_templates=("a {}",), scale=5.0, aggregation="pooled", calibration_offset=-0.3)


class Reader(torch.nn.Module):
    """A text is the sum of its tokens' vectors, each component as large as the picture wants it."""

    def __init__(self, *, pad_id: int) -> None:
        super().__init__()
        self.table, self.wanted, self.pad_id = torch.nn.Embedding(1014, 32), torch.nn.Linear(32, 32), pad_id

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        texts = (self.table(ids) * (ids != self.pad_id)[..., None]).sum(dim=1)
        read = texts[None] * torch.tanh(3 * self.wanted(images))[:, None]
        return SCALE * (torch.nn.functional.normalize(read, dim=-1) * images[:, None]).sum(dim=-1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny; `named`, a conditional head behind it; `sure`, which inherits that and has a calibrated presence."""
    from training.exporting.conditional import ConditionalSource
    from training.exporting.derive import DerivationSource, export_derivation
    from training.exporting.derived_graphs import linear_head
    from training.exporting.export import provenance

    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("conditional") / "store"))
    opened = Store(folder, builtin=False)
    base = opened.open("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = Reader(pad_id=base.tokenizer().spec.pad_id).eval()
    source = DerivationSource(
        base=base,
        structure="t",
        provenance=provenance(source="a test", architecture="tiny", activation="gelu", structure="t", licence="none"),
        conditional=ConditionalSource(module=head, context_length=24),
    )
    named = export_derivation(source, name="named", store=opened)
    sides = {"sides": linear_head(np.eye(2, 32), None, ("left", "right"))}
    above = replace(source, base=named, conditional=None, heads=sides, presence=PRESENCE)
    export_derivation(above, name="sure", store=opened)
    return folder


@pytest.fixture(scope="module")
def client(store: Path, make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    models = {"model": "named", "extra_models": ("tiny", "sure"), "max_conditional_texts": 400}
    return make_client(store=store, data=tmp_path_factory.mktemp("data"), **models)


@pytest.fixture(scope="module")
def pictures(make_picture: Callable[..., bytes]) -> list[bytes]:
    return [make_picture("PNG", 50 + 7 * seed, 61, seed=seed) for seed in range(5)]


@pytest.fixture(scope="module")
def encoder(store: Path) -> ArtifactEncoder:
    return ArtifactEncoder(artifact(store, "named"))


def artifact(store: Path, name: str) -> Artifact:
    return Store(store, builtin=False).open(name)


def sent(pictures: list[bytes]) -> list[dict[str, str]]:
    return [{"image": base64.b64encode(data).decode()} for data in pictures]


def answered(client: TestClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def scores_of(client: TestClient, pictures: list[bytes], labels: list[str], **body: Any) -> np.ndarray:
    """Scores [n, C] in the order of `labels`; of a label set when there is one in `body`."""
    given = {} if "label_set" in body else {"labels": labels}
    data = answered(client, "/classify", {"inputs": sent(pictures), **given, **body})["data"]
    by_label = [{p["label"]: p["score"] for p in entry["predictions"]} for entry in data]
    return np.array([[row[label] for label in labels] for row in by_label])


def put(client: TestClient, name: str, body: dict[str, Any]) -> None:
    assert client.put(f"/label-sets/{name}", json=body).status_code in (200, 202)
    while not client.get(f"/label-sets/{name}").json()["ready"]:
        pass


def test_any_labels_are_scored_by_the_head(client: TestClient, encoder: ArtifactEncoder, pictures: list[bytes]) -> None:
    logits = encoder.label_logits(LABELS, pictures).astype(np.float64)
    assert (logits.std(axis=0) > 0.05).all()
    powers = np.exp(logits)
    sigmoid = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(scores_of(client, pictures, LABELS, activation="none"), logits, atol=1e-3)
    np.testing.assert_allclose(
        scores_of(client, pictures, LABELS), powers / powers.sum(axis=1, keepdims=True), atol=1e-4
    )
    np.testing.assert_allclose(scores_of(client, pictures, LABELS, activation="sigmoid"), sigmoid, atol=1e-4)
    by_text = scores_of(client, pictures, LABELS, model="tiny", activation="none")
    assert np.abs(by_text - logits).max() > 0.1  # it is another model


def test_company_and_order_change_nothing(client: TestClient, pictures: list[bytes]) -> None:
    together = scores_of(client, pictures, LABELS, activation="none")
    alone = [scores_of(client, [picture], LABELS, activation="none")[0] for picture in pictures]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    turned = scores_of(client, pictures[::-1], LABELS[::-1], activation="none")
    np.testing.assert_allclose(turned[::-1, ::-1], together, atol=1e-4)


def test_predictions_are_ranked_cut_and_have_no_similarity(client: TestClient, pictures: list[bytes]) -> None:
    body = {"inputs": [*sent(pictures[:1]), {"image": "AAAA"}], "labels": LABELS, "on_error": "item"}
    first, failed = answered(client, "/classify", body)["data"]
    scores = [prediction["score"] for prediction in first["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert {prediction["similarity"] for prediction in first["predictions"]} == {None}
    assert failed["error"]["code"] in ("invalid_image", "unsupported_image")
    best = {"inputs": sent(pictures[:1]), "labels": LABELS}
    assert len(answered(client, "/classify", {**best, "top_k": 1})["data"][0]["predictions"]) == 1
    assert answered(client, "/classify", {**best, "threshold": 1.5})["data"][0]["predictions"] == []
    status, code, _ = refused(client.post("/classify", json={**best, "labels": ["red"]}))
    assert (status, code) == (422, "invalid_field")


def test_a_label_of_several_prompts_has_the_mean_of_their_logits(
    client: TestClient, encoder: ArtifactEncoder, pictures: list[bytes]
) -> None:
    said = [{"name": "warm", "prompts": ["red", "orange", "a fire"]}, "blue"]
    logits = encoder.label_logits(["red", "orange", "a fire", "blue"], pictures)
    expected = np.stack([logits[:, :3].mean(axis=1), logits[:, 3]], axis=1)
    body = {"inputs": sent(pictures), "labels": said, "activation": "none"}
    data = answered(client, "/classify", body)["data"]
    found = [{p["label"]: p["score"] for p in entry["predictions"]} for entry in data]
    np.testing.assert_allclose([[row["warm"], row["blue"]] for row in found], expected, atol=1e-3)
    # Templates of a request stand behind the context; without them a name stands there alone.
    templates = ["dark {}", "pale {}"]
    logits = encoder.label_logits(["dark red", "pale red", "dark blue", "pale blue"], pictures)
    expected = logits.reshape(len(pictures), 2, 2).mean(axis=2)
    got = scores_of(client, pictures, ["red", "blue"], templates=templates, activation="none")
    np.testing.assert_allclose(got, expected, atol=1e-3)


# Label sets


def test_a_stored_set_is_scored_as_inline_labels_are_and_keeps_its_vectors(
    client: TestClient, pictures: list[bytes]
) -> None:
    put(client, "mine", {"labels": LABELS, "model": "named"})
    got = scores_of(client, pictures, LABELS, label_set="mine", activation="none")
    np.testing.assert_allclose(got, scores_of(client, pictures, LABELS, activation="none"), atol=1e-4)
    # /localize has no use for the head: texts and their templates are the base's.
    located = [
        answered(client, "/localize", {"inputs": sent(pictures[:2]), **body})["data"]
        for body in ({"label_set": "mine"}, {"labels": LABELS}, {"labels": LABELS, "model": "tiny"})
    ]
    assert located[0] == located[1] == located[2]
    put(client, "said", {"labels": ["red", "blue"], "templates": ["dark {}"], "model": "named"})
    got = scores_of(client, pictures, ["red", "blue"], label_set="said", activation="none")
    inline = scores_of(client, pictures, ["dark red", "dark blue"], activation="none")
    np.testing.assert_allclose(got, inline, atol=1e-4)


def test_a_taught_set_is_judged_by_what_it_was_taught(client: TestClient, pictures: list[bytes]) -> None:
    examples = {"left": sent(pictures[:2]), "right": sent(pictures[2:4])}
    put(client, "taught", {"labels": ["left", "right"], "examples": examples, "model": "named"})
    put(client, "taught-tiny", {"labels": ["left", "right"], "examples": examples, "model": "tiny"})
    got, tiny = (scores_of(client, pictures, ["left", "right"], label_set=name) for name in ("taught", "taught-tiny"))
    np.testing.assert_allclose(got, tiny, atol=1e-6)


# Limits


def test_pictures_times_texts_are_limited_and_both_are_named(
    client: TestClient, encoder: ArtifactEncoder, pictures: list[bytes]
) -> None:
    labels = [f"thing {n}" for n in range(100)]
    body = {"inputs": sent(pictures), "labels": labels}
    status, code, message = refused(client.post("/classify", json=body))
    assert (status, code) == (413, "too_many_items")
    assert "5 images x 100 texts of labels are 500, the limit is 400 (CLIPWORKS_MAX_CONDITIONAL_TEXTS)" in message
    assert "send fewer images or fewer labels at a time" in message
    status, _, message = refused(
        client.post("/classify", json={**body, "inputs": sent(pictures[:1]), "templates": ["a {}"] * 5})
    )
    assert (status, "1 images x 500 texts" in message) == (413, True)
    # At the limit it is answered, and a model without such a head has no such limit.
    found = scores_of(client, pictures[:4], labels, activation="none")  # in two blocks of texts
    np.testing.assert_allclose(found, encoder.label_logits(labels, pictures[:4]), atol=1e-3)
    assert scores_of(client, pictures, labels, model="tiny").shape == (5, 100)


def test_hostile_amounts(client: TestClient, pictures: list[bytes]) -> None:
    many = [f"thing {n}" for n in range(10_000)]
    one = sent(pictures[:1])
    assert refused(client.post("/classify", json={"inputs": one, "labels": []}))[:2] == (422, "invalid_field")
    status, code, message = refused(client.post("/classify", json={"inputs": one, "labels": many}))
    assert (status, code) == (413, "too_many_items")
    assert "CLIPWORKS_MAX_LABEL_TEXTS" in message
    put(client, "many", {"labels": many[:1000], "model": "named"})
    status, code, message = refused(client.post("/classify", json={"inputs": one, "label_set": "many"}))
    assert (status, code) == (413, "too_many_items")
    assert "1 images x 1000 texts of labels are 1000, the limit is 400" in message
    found = scores_of(client, (pictures * 7)[:32], ["red", "blue"], activation="none")
    assert found.shape == (32, 2)
    np.testing.assert_allclose(found[:5], found[5:10], atol=1e-4)


def test_a_run_holds_no_more_texts_than_the_text_encoders(
    client: TestClient, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = client.app.state.services.registry.resolve("named")  # type: ignore[attr-defined]
    batcher, runs = model.batchers["conditional_head"], []
    run = batcher._run

    def watched(stack: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        runs.append((len(stack[0]), len(stack[1])))
        return run(stack)

    monkeypatch.setattr(batcher, "_run", watched)
    scores_of(client, (pictures * 7)[:3], [f"thing {n}" for n in range(130)])
    assert sorted({texts for _, texts in runs}) == [2, 64]  # 64, 64 and 2
    scores_of(client, (pictures * 7)[:32], ["red", "blue", "green"])
    assert max(images * texts for images, texts in runs) <= 64
    assert sum(images * texts for images, texts in runs) == 3 * 130 + 32 * 3


# What is not the head's


def test_vectors_and_names_are_the_bases(client: TestClient, pictures: list[bytes]) -> None:
    inputs = ["a red square", *sent(pictures[:2])]
    named, tiny = (answered(client, "/embed", {"model": name, "inputs": inputs}) for name in ("named", "tiny"))
    assert [each["embedding"] for each in named["data"]] == [each["embedding"] for each in tiny["data"]]
    assert (named["space"], named["fingerprint"]) == (tiny["space"], tiny["fingerprint"])
    shown = {each["name"]: each for each in client.get("/models").json()["data"]}
    assert "conditional_head" in shown["named"]["roles"]
    assert "conditional_head" not in shown["tiny"]["roles"]
    assert shown["named"]["heads"] == []
    assert client.get("/models/named").json()["templates"] == client.get("/models/tiny").json()["templates"]


def test_sigmoid_of_a_calibrated_model_is_its_presence(client: TestClient, store: Path, pictures: list[bytes]) -> None:
    encoder = ArtifactEncoder(artifact(store, "sure"))
    found = scores_of(client, pictures, LABELS, model="sure", activation="sigmoid")
    plain = scores_of(client, pictures, LABELS, model="named", activation="sigmoid")
    assert np.abs(found - plain).max() > 0.05
    located = answered(client, "/localize", {"inputs": sent(pictures), "labels": LABELS, "model": "sure"})["data"]
    there = [{each["label"]: each["score"] for each in entry["labels"]} for entry in located]
    np.testing.assert_allclose(found, [[row[label] for label in LABELS] for row in there], atol=1e-5)
    logits = scores_of(client, pictures, LABELS, model="sure", activation="none")
    np.testing.assert_allclose(logits, encoder.label_logits(LABELS, pictures), atol=1e-3)


def test_a_server_without_such_a_model_is_as_it_was(
    client: TestClient, make_client: Callable[..., TestClient], pictures: list[bytes]
) -> None:
    plain = make_client()
    assert plain.get("/openapi.json").json() == client.get("/openapi.json").json()
    ours = answered(client, "/classify", {"inputs": sent(pictures), "labels": LABELS, "model": "tiny"})
    assert answered(plain, "/classify", {"inputs": sent(pictures), "labels": LABELS}) == ours


def test_an_int8_image_encoder_works_with_an_fp32_head(
    store: Path, make_client: Callable[..., TestClient], pictures: list[bytes]
) -> None:
    client = make_client(store=store, model="named", precision="int8")
    shown = client.get("/models/named").json()
    assert shown["precision"]["image_encoder"] == "int8"
    assert "conditional_head" not in shown["precision"]
    served = scores_of(client, pictures, LABELS, activation="none")
    offline = ArtifactEncoder(artifact(store, "named"), precision="int8").label_logits(LABELS, pictures)
    exact = ArtifactEncoder(artifact(store, "named")).label_logits(LABELS, pictures)
    np.testing.assert_allclose(served, offline, atol=1e-3)
    assert 1e-3 < np.abs(served - exact).max() < 0.2 * SCALE


def test_a_head_that_is_not_the_exported_one_is_not_served(store: Path) -> None:
    found, settings = artifact(store, "named"), SessionSettings()
    head, tower = open_conditional_head(found, settings), open_tower(found, "image_encoder", "fp32", settings)
    Proof(found).check_tower("image_encoder", tower, {}, batch_size=4, conditional=head)

    class Turned(ConditionalHead):
        def __call__(self, vectors: Vectors, ids: np.ndarray) -> Vectors:
            return head(vectors[:, ::-1], ids)

    with pytest.raises(GoldenError, match="conditional_head fp32 is not the exported model"):
        Proof(found).check_tower("image_encoder", tower, {}, batch_size=4, conditional=Turned(head.graph))
