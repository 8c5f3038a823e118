"""Every method's result through one door: checkpoint, artifact and HTTP agree, and no part of the server knows it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.methods_served import RECIPE
from clipworks.client import Client
from clipworks.errors import Conflict
from clipworks.results import Prediction
from evaluation.encoder import Encoder, ServerEncoder, open_artifact, png
from evaluation.probes.pool import PoolSize
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.suites import Suite, run
from model_store.store import Store, file_entries
from model_store.towers import Activation
from training.checkpoint import read_checkpoint
from training.loop import train
from training.methods.parts.class_heads import LinearHead
from training.methods.parts.conditional import logits_given
from training.methods.parts.conditional_run import ConditionalRun
from training.methods.parts.contexts import name_ids
from training.methods.parts.few_shot import HeadMethod
from training.methods.parts.prompted import PromptedRun
from training.opening import method_of, open_checkpoint
from training.publish import publish_checkpoint
from training.saved import SavedRun

pytestmark = [pytest.mark.torch, pytest.mark.slow]

VECTOR_TOLERANCE, LOGIT_TOLERANCE, SCORE_TOLERANCE = 2e-5, 2e-3, 0.005
SIZE = PoolSize(compass=3, class_groups=1, squares=2, counts=1, additions=2, spoilt=2)
CURES = {
    "negclip": ("optim.steps=20",),
    # Small steps: a base of 300 steps names few things, and the proof of its space leaves no room for large ones.
    "negation": ("optim.steps=20", "optim.rate=5e-4", "method_options.excuse_true=true"),
    "labclip": ("optim.steps=20", "optim.rate=5e-4"),
    "tinyclip": ("optim.steps=20", "method_options.text={width=24,mlp=64}"),
    "coop": ("optim.steps=200", "optim.rate=2e-2", "method_options.label=pair", 'method_options.words="a"'),
    "clip_lora": ("optim.steps=10", "optim.rate=2e-2", "method_options.label=shape"),
    "full": ("optim.steps=10", "optim.rate=2e-3", "method_options.label=shape"),
}
# Knobs that validation could set to 0 are given one value: what is served is then never zero-shot alone.
CACHE = ("method_options.alpha=[20.0]", "method_options.beta=[5.0]")
HEADS = {
    "gda": ("shape",),
    "linear_probe": ("pair",),
    "tip_adapter": ("colour", *CACHE),
    "tip_adapter_f": ("shape", *CACHE, "method_options.rate=0.01"),
    "clip_adapter": ("pair", "method_options.ratio=[0.4]"),
    "both_adapters": ("pair", "method=clip_adapter", "method_options.ratio=learned", "method_options.adapt=both"),
}
# Contexts of classes encode no other text; they are a head and nothing else.
OWN_CONTEXTS = ("method=coop", "method_options={label='shape',n_ctx=4,specific=true}", "optim.steps=20")
# A context that reads no captions any more: the proof fails, and the artifact has a space of its own.
ASTRAY = ("method=coop", "method_options={label='pair',n_ctx=8}", "optim.steps=20", "optim.rate=1.0")
PROMPTED = {"coop": "pair", "own_contexts": "shape", "astray": "pair"}
VERSIONS = {"turn@1": "coop", "turn@2": "astray"}  # copies under one name; the second one is not loaded at first
ADMIN = {"Authorization": "Bearer admin-key-1"}
# Contexts of each picture judge any labels, and leave both towers alone.
CONDITIONAL = ("method=cocoop", "method_options={label='shape',reduction=4}", "optim.steps=60", "optim.rate=2e-2")
KEPT = ("negation", "labclip", "coop")  # they leave the image tower alone
TEXTS = ["a red circle", "a blue square left of a green star", "there is no cross", "a picture without a circle"]
PICTURES = [render(sample(seed, SceneConfig()), 64).image for seed in range(9)]  # 64 px: resized by every door
DOORS = ("artifact", "HTTP")


@dataclass(frozen=True)
class Lab:
    """Checkpoints by name in `folder`, all of them published in `store` and served to `client`."""

    folder: Path
    store: Store
    client: Client
    url: str

    def encoder(self, name: str, door: str) -> Encoder:
        if door == "checkpoint":
            return open_checkpoint(self.folder / name)
        return open_artifact(self.store.open(name)) if door == "artifact" else ServerEncoder(self.client, model=name)


def train_all(folder: Path) -> list[str]:
    """The base, another base, and each method on top of the first; their names, bases first."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    base = f"base={json.dumps(str(folder / 'base'))}"
    runs: dict[str, tuple[str, ...]] = {"base": (), "other": ("seed=2", "optim.steps=5")}
    runs |= {name: (base, f"method={name}", *options) for name, options in CURES.items()}
    runs |= {
        name: (base, f"method={name}", f"method_options.label={label}", *options)
        for name, (label, *options) in HEADS.items()
    }
    runs |= {"own_contexts": (base, *OWN_CONTEXTS), "astray": (base, *ASTRAY), "cocoop": (base, *CONDITIONAL)}
    for name, overrides in runs.items():
        train(recipe, [f"run.folder={json.dumps(str(folder / name))}", *overrides])
    return list(runs)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., AbstractContextManager[str]]) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("served")
    names = train_all(folder)
    store = Store(folder / "store", builtin=False)
    for name in names:
        publish_checkpoint(folder / name, name, store, precisions=("fp32",))
    for reference, name in VERSIONS.items():
        copy_artifact(store, name, *reference.split("@"))
    options = ("--store", folder / "store", "--data", folder / "data", "--admin-keys", "admin-key-1")
    beside = ",".join((*names[1:], "turn@1"))
    with serving(*options, "--model", names[0], "--extra-models", beside) as url, Client(url) as client:
        yield Lab(folder, store, client, url)


def copy_artifact(store: Store, name: str, other: str, version: str) -> None:
    """The artifact `name` once more, as `other@version`."""
    artifact = store.open(name)
    with store.staging() as folder:
        for entry in artifact.manifest.files:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.folder / entry.path, folder / entry.path)
        changes = {"name": other, "version": int(version), "files": file_entries(folder)}
        store.publish(folder, artifact.manifest.model_copy(update=changes))


@pytest.fixture(scope="module")
def album(lab: Lab) -> NDArray[np.float32]:
    """The collection "album" of the base, pictures under their numbers; the base checkpoint's vectors of them."""
    pictures = [png(render(sample(seed, SceneConfig()), 48).image) for seed in range(100, 124)]
    lab.client.create_collection("album", model="base").upsert_images(
        pictures, ids=[str(number) for number in range(len(pictures))]
    )
    return lab.encoder("base", "checkpoint").encode_images(pictures)


def assert_agree(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    mean = expected.mean(axis=0)  # what all vectors share would hide a difference
    assert np.abs(expected - mean).max() > 100 * VECTOR_TOLERANCE
    np.testing.assert_allclose(found - mean, expected - mean, atol=VECTOR_TOLERANCE)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", CURES)
def test_vectors_are_the_checkpoints(lab: Lab, method: str, door: str) -> None:
    expected, found = lab.encoder(method, "checkpoint"), lab.encoder(method, door)
    assert_agree(found.encode_texts(TEXTS), expected.encode_texts(TEXTS))
    assert_agree(found.encode_images(PICTURES), expected.encode_images(PICTURES))


@pytest.mark.parametrize("door", ["checkpoint", *DOORS])
@pytest.mark.parametrize("method", CURES)
def test_what_was_cured_differs_and_what_was_kept_is_equal(lab: Lab, method: str, door: str) -> None:
    before, after = lab.encoder("base", door), lab.encoder(method, door)
    moved = np.abs(before.encode_texts(TEXTS) - after.encode_texts(TEXTS)).max(axis=1)
    assert moved.min() > 100 * VECTOR_TOLERANCE
    images = before.encode_images(PICTURES), after.encode_images(PICTURES)
    if method in KEPT:
        np.testing.assert_array_equal(*images)
    else:
        assert np.abs(images[0] - images[1]).max(axis=1).min() > 100 * VECTOR_TOLERANCE


def assert_head_agrees(
    lab: Lab, model: str, name: str, labels: tuple[str, ...], head: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    """The class head `name` of `model`, in the artifact and over HTTP, gives the logits of `head` on the base."""
    expected = head(lab.encoder("base", "checkpoint").encode_images(PICTURES)).astype(np.float64)
    assert expected.std(axis=0).min() > 10 * LOGIT_TOLERANCE  # a constant would agree with anything
    artifact = open_artifact(lab.store.open(model))
    assert artifact.heads == {name: labels}
    np.testing.assert_allclose(artifact.class_scores(name, PICTURES), softmax(expected), atol=LOGIT_TOLERANCE)
    sent = [png(picture) for picture in PICTURES]
    wanted_by: dict[Activation | None, NDArray[np.float64]] = {None: softmax(expected), "none": expected}
    for activation, wanted in wanted_by.items():
        answer = lab.client.classify(sent, model=model, label_set=name, activation=activation)
        np.testing.assert_allclose(scores_of(answer, labels), wanted, atol=LOGIT_TOLERANCE, rtol=1e-5)


def scores_of(answer: Sequence[Sequence[Prediction]], labels: Sequence[str]) -> NDArray[np.float64]:
    """[n, C] of a classification, in the order of `labels`."""
    rows = [{each.label: each.score for each in row} for row in answer]
    return np.array([[row[label] for label in labels] for row in rows])


@pytest.mark.parametrize("method", HEADS)
def test_class_heads_give_the_checkpoints_logits(lab: Lab, method: str) -> None:
    run = SavedRun(folder=lab.folder / method, info=read_checkpoint(lab.folder / method))
    maker = method_of(run.info)
    assert isinstance(maker, HeadMethod)
    head = maker.opened(run)
    if not isinstance(head, LinearHead):  # what is more than linear says something
        vectors = lab.encoder("base", "checkpoint").encode_images(PICTURES)
        expected = head(vectors).astype(np.float64)
        assert np.abs(expected - (vectors @ head.weight + head.bias)).max() > 100 * LOGIT_TOLERANCE
    assert_head_agrees(lab, method, HEADS[method][0], run.info.labels, head)


@pytest.mark.parametrize("run", PROMPTED)
def test_learned_contexts_name_the_trained_classes_as_their_checkpoint(lab: Lab, run: str) -> None:
    opened = SavedRun(folder=lab.folder / run, info=read_checkpoint(lab.folder / run))
    found = PromptedRun.of(opened, position="end")
    assert len(found.head().bias) == len(opened.info.labels)
    assert_head_agrees(lab, run, PROMPTED[run], opened.info.labels, found.head())


@pytest.mark.parametrize("model", ["coop", "astray"])
def test_a_learned_context_is_put_beside_labels_that_it_was_not_trained_for(lab: Lab, model: str) -> None:
    """Labels of a request, with the artifact's own templates: the context is in the graph, and the names are alone."""
    labels = ["red thing", "something blue", "nothing", "a star and a circle"]
    texts = lab.encoder(model, "checkpoint").encode_texts(labels)
    cosines = (lab.encoder("base", "checkpoint").encode_images(PICTURES) @ texts.T).astype(np.float64)
    scale = lab.store.open("base").manifest.logit_scale
    assert scale is not None
    sent = [png(picture) for picture in PICTURES]
    found = scores_of(lab.client.classify(sent, labels, model=model, activation="none"), labels)
    np.testing.assert_allclose(found, cosines, atol=VECTOR_TOLERANCE)
    found = scores_of(lab.client.classify(sent, labels, model=model), labels)
    np.testing.assert_allclose(found, softmax(scale * cosines), atol=LOGIT_TOLERANCE)
    without = lab.encoder("base", "checkpoint").encode_texts(labels)
    assert np.abs(without - texts).max(axis=1).min() > 100 * VECTOR_TOLERANCE


def test_contexts_of_each_picture_name_any_label_as_their_checkpoint(lab: Lab, album: NDArray[np.float32]) -> None:
    opened = SavedRun(folder=lab.folder / "cocoop", info=read_checkpoint(lab.folder / "cocoop"))
    run, images = ConditionalRun.of(opened, position="end"), lab.encoder("base", "checkpoint").encode_images(PICTURES)
    labels = [*opened.info.labels, "red thing", "nothing", "a star and a circle"]
    expected = run.logits(images, labels)
    ids = name_ids(tuple(labels), run.base.tokenizer, count=run.head.prompted.contexts.count)
    another = logits_given(run.head, images, ids, given=np.roll(images, 1, axis=0))
    assert np.abs(another - expected).max() > 50 * LOGIT_TOLERANCE
    artifact = lab.store.open("cocoop")
    np.testing.assert_allclose(open_artifact(artifact).label_logits(labels, PICTURES), expected, atol=LOGIT_TOLERANCE)
    sent, logits = [png(picture) for picture in PICTURES], expected.astype(np.float64)
    wanted_by: dict[Activation | None, NDArray[np.float64]] = {None: softmax(logits), "none": logits}
    for activation, wanted in wanted_by.items():
        answer = lab.client.classify(sent, labels, model="cocoop", activation=activation)
        np.testing.assert_allclose(scores_of(answer, labels), wanted, atol=LOGIT_TOLERANCE, rtol=1e-5)
    # Texts and pictures are the base's, and so are its collections.
    base = lab.store.open("base").manifest
    assert (artifact.manifest.space, artifact.manifest.fingerprint) == (base.space, base.fingerprint)
    found = [lab.client.collection("album").search(TEXTS, top_k=len(album), model=name) for name in ("base", "cocoop")]
    assert [[hit.id for hit in each.hits] for each in found[0]] == [[hit.id for hit in each.hits] for each in found[1]]


@pytest.mark.parametrize("door", DOORS)
def test_scores_of_a_cured_model_agree(lab: Lab, door: str) -> None:
    chosen = Suite(name="served", probes=("binding", "negation", "few-shot"), size=SIZE)
    expected, found = (run(lab.encoder("labclip", each), chosen) for each in ("checkpoint", door))
    before, after = (
        {(result.key.probe, row.name): row.score for result in results for row in result.rows if row.score is not None}
        for results in (expected, found)
    )
    assert len({round(score, 3) for score in before.values()}) > 4  # not all at one value
    assert after == pytest.approx(before, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("method", KEPT)
def test_a_collection_of_the_base_is_searched_by_the_cured_texts(
    lab: Lab, album: NDArray[np.float32], method: str
) -> None:
    rankings: dict[str, list[list[int]]] = {}
    for model in ("base", method):
        expected = lab.encoder(model, "checkpoint").encode_texts(TEXTS) @ album.T
        answers = lab.client.collection("album").search(TEXTS, top_k=len(album), model=model)
        rankings[model] = [[int(hit.id) for hit in answer.hits] for answer in answers]
        for answer, ranking, scores in zip(answers, rankings[model], expected, strict=True):
            assert answer.exact
            assert sorted(ranking) == list(range(len(album)))
            np.testing.assert_allclose([hit.score for hit in answer.hits], scores[ranking], atol=VECTOR_TOLERANCE)
            assert np.diff(scores[ranking]).max() < 2 * VECTOR_TOLERANCE  # numpy's order, up to near ties
    assert rankings[method] != rankings["base"]


@pytest.mark.usefixtures("album")
@pytest.mark.parametrize("model", ["other", "negclip", "astray", "full"])
def test_a_model_of_another_space_is_refused_and_both_are_named(lab: Lab, model: str) -> None:
    with pytest.raises(Conflict) as refused:
        lab.client.collection("album").search(TEXTS, model=model)
    assert (refused.value.status, refused.value.code) == (409, "space_mismatch")
    for name in ("base", model):
        assert lab.store.open(name).manifest.space in str(refused.value)


def test_a_version_that_is_loaded_under_traffic_loses_and_mixes_nothing(lab: Lab) -> None:
    """200 requests are in flight when version 2 takes the name over: each answer is that of the version it names.

    A 429 is no answer: nothing was done, and the request is sent again. A model of unknown speed refuses more than 32.
    """
    texts, logits = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]]()
    fingerprints, pictures = dict[str, str](), lab.encoder("base", "checkpoint").encode_images(PICTURES)
    for reference, name in VERSIONS.items():
        opened = SavedRun(folder=lab.folder / name, info=read_checkpoint(lab.folder / name))
        texts[reference] = lab.encoder(name, "checkpoint").encode_texts(TEXTS)
        logits[reference] = PromptedRun.of(opened, position="end").head()(pictures)
        its = lab.store.open(name).manifest.fingerprint
        fingerprints[reference] = f"image={its.image}, text={its.text}"
    assert np.abs(texts["turn@1"] - texts["turn@2"]).max(axis=1).min() > 100 * VECTOR_TOLERANCE
    assert np.abs(logits["turn@1"] - logits["turn@2"]).max(axis=1).min() > 100 * LOGIT_TOLERANCE
    labels = read_checkpoint(lab.folder / "coop").labels
    sent = [base64.b64encode(png(picture)).decode() for picture in PICTURES]
    named = {True: set[str](), False: set[str]()}  # of the requests for the name alone, by whether all was over

    async def ask(http: httpx2.AsyncClient, number: int, asked: str, *, over: bool) -> None:
        at, path, body = number % len(TEXTS), "/embed", {"inputs": [TEXTS[number % len(TEXTS)]], "model": asked}
        if number % 4 == 0:
            at, path = number % len(sent), "/classify"
            body = {"inputs": [{"image": sent[at]}], "label_set": "pair", "activation": "none", "model": asked}
        while (response := await http.post(path, json=body)).status_code == 429:
            await asyncio.sleep(0.05)
        assert response.status_code == 200, response.text
        answer = response.json()
        model, (found,) = answer["model"], answer["data"]
        assert asked in (model, "turn")
        assert response.headers["x-model-fingerprint"] == fingerprints[model]
        if number % 4:
            np.testing.assert_allclose(found["embedding"], texts[model][at], atol=VECTOR_TOLERANCE)
        else:
            scores = {each["label"]: each["score"] for each in found["predictions"]}
            np.testing.assert_allclose([scores[label] for label in labels], logits[model][at], atol=LOGIT_TOLERANCE)
        if asked == "turn":
            named[over].add(model)

    async def traffic() -> int:
        loaded, answered = asyncio.Event(), 0
        # Each request has a connection of its own: one that idles may be closed at any time.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(base_url=lab.url, timeout=120, limits=limits) as http:

            async def keep_asking(number: int) -> None:
                nonlocal answered
                over = False
                while not over:
                    over = loaded.is_set()
                    await ask(http, number, "turn@1" if number % 2 else "turn", over=over)
                    answered += 1

            asking = [asyncio.create_task(keep_asking(number)) for number in range(200)]
            await asyncio.sleep(0.05)
            assert answered < 200
            response = await http.post("/models/turn@2/load", headers=ADMIN)
            assert (response.status_code, response.json()["version"]) == (200, 2), response.text
            loaded.set()
            await asyncio.gather(*asking)
        return answered

    try:
        assert asyncio.run(traffic()) >= 400
    finally:
        httpx2.post(f"{lab.url}/models/turn@2/unload", headers=ADMIN).raise_for_status()
    assert "turn@1" in named[False]
    assert named[True] == {"turn@2"}
