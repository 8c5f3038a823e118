"""Every method's result through one door: checkpoint, artifact and HTTP agree, and no part of the server knows it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from clipworks import Item
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
from training.checkpoint import load_model, read_checkpoint
from training.loop import train
from training.methods.parts.class_heads import LinearHead
from training.methods.parts.conditional import logits_given
from training.methods.parts.conditional_run import ConditionalRun
from training.methods.parts.contexts import name_ids
from training.methods.parts.few_shot import HeadMethod
from training.methods.parts.prompt_runs import DeepPromptedRun
from training.methods.parts.prompted import PromptedRun
from training.opening import method_of, open_checkpoint
from training.publish import publish_checkpoint
from training.saved import SavedRun

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long]

VECTOR_TOLERANCE, LOGIT_TOLERANCE, SCORE_TOLERANCE = 2e-5, 2e-3, 0.005
SIZE = PoolSize(compass=3, class_groups=1, squares=2, counts=1, additions=2, spoilt=2)
BASE_STEPS = "optim.steps=60"
# Fewer validation pictures than 20 would prove no space; texts need room beside a context.
CHANGES = {"modulo = 10": "modulo = 5", "context_length = 16": "context_length = 32"}
DEEP = ("method_options.shots=8", "method_options.n_ctx=2", "optim.steps=20", "optim.rate=3e-2")
WORDS = 'method_options.words="a of"'
TEXTS_ALONE = "method_options.towers=text"
# All learn colours, where they learn labels. Each is published with a tower of its own.
TOWERS = {
    "negation": ("optim.steps=20",),
    "labclip": ("optim.steps=20", "optim.rate=5e-4"),
    # Of contexts on so small a base the proof decides: this one finds all captions' pictures, and keeps the space.
    "coop": ("method_options.n_ctx=8", "optim.steps=20", "optim.rate=1.0"),
    # And with this one captions miss half of theirs: the artifact has a space of its own.
    "astray": ("method=coop", 'method_options.words="a"', "optim.steps=20", "optim.rate=5e-3"),
    "vpt": DEEP,
    # It has hardly begun: the proof holds, and the space is the base's.
    "vpt_near": ("method=vpt", "method_options.n_ctx=2", "optim.steps=2", "optim.rate=1e-4"),
    "ivlp": (*DEEP, WORDS),
    "maple": (*DEEP, WORDS),
    "promptsrc": (*DEEP, WORDS),
    "promptsrc_texts": ("method=promptsrc", *DEEP, WORDS, TEXTS_ALONE, "optim.steps=5", "optim.rate=2e-3"),
    "clip_lora": ("optim.steps=10", "optim.rate=2e-2"),
    "clip_lora_texts": ("method=clip_lora", TEXTS_ALONE, "optim.steps=20", "optim.rate=2e-2"),
    "full": ("optim.steps=10", "optim.rate=2e-3"),
    "fare": ("optim.steps=10", "optim.rate=2e-3", "method_options={epsilon=8,attack_steps=1}"),
}
LABELLESS = ("negation", "labclip", "fare")
# Whose pictures, and whose texts, are still the base's; and which of them the base's collections still fit.
SAME_PICTURES = ("negation", "labclip", "coop", "astray", "promptsrc_texts", "clip_lora_texts")
SAME_TEXTS = ("vpt", "vpt_near", "fare")
OTHER_SPACE = ("astray", "vpt", "ivlp", "maple", "promptsrc", "clip_lora", "full")
SAME_SPACE = tuple(name for name in SAME_PICTURES if name != "astray")
# Knobs that validation could set to 0 are given one value: what is served is then never zero-shot alone.
CACHE = ("method_options.alpha=[20.0]", "method_options.beta=[5.0]")
HEADS = {
    "gda": (),
    "linear_probe": (),
    "tip_adapter": CACHE,
    "tip_adapter_f": (*CACHE, "method_options.rate=0.01"),
    "clip_adapter": ("method_options.ratio=[0.4]",),
    "both_adapters": ("method=clip_adapter", "method_options.ratio=learned", "method_options.adapt=both"),
}
# Contexts of classes encode no other text; they are a head and nothing else.
OWN_CONTEXTS = ("method=coop", "method_options.n_ctx=4", "method_options.specific=true", "optim.steps=20")
# Contexts of each picture judge any labels, and leave both towers alone.
CONDITIONAL = ("method_options.reduction=4", "optim.steps=40", "optim.rate=2e-2")
CONTEXTS, PROMPTS = ("coop", "own_contexts", "astray"), ("vpt", "ivlp", "maple", "promptsrc", "promptsrc_texts")
HEAD = "colour"
VERSIONS = {"turn@1": "coop", "turn@2": "astray"}  # copies under one name; the second one is not loaded at first
ADMIN = {"Authorization": "Bearer admin-key-1"}
TEXTS = ["a red circle", "a blue square left of a green star", "there is no cross", "a picture without a circle"]
TEXTS.append("a red shirt and no blue one " * 6)  # it fills the context
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


def recipe_with_pictures(squares: Path, folder: Path) -> Path:
    """The recipe of the squares with pictures in `folder` of which no two look alike: the colour that is named in the
    middle, and around it another one, so that a space is kept by whoever still tells them apart.
    """
    recipe, rng = squares.read_text(encoding="utf-8"), np.random.default_rng(0)
    where = Path(tomllib.loads(recipe)["data"]["folder"])
    shutil.copy(where / "captions.csv", folder)
    for path in sorted(where.glob("*.png"), key=lambda path: int(path.stem)):
        pixels = np.array(Image.open(path))
        around = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        around[3:13, 3:13] = pixels[3:13, 3:13]
        Image.fromarray(around).save(folder / path.name)
    for before, after in {**CHANGES, json.dumps(str(where)): json.dumps(str(folder))}.items():
        assert before in recipe
        recipe = recipe.replace(before, after)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return folder / "recipe.toml"


def train_all(recipe: Path, folder: Path) -> list[str]:
    """The base, and each method on top of it; their names, the base first."""
    base = f"base={json.dumps(str(folder / 'base'))}"
    runs: dict[str, tuple[str, ...]] = {"base": (BASE_STEPS,)}
    learning = {**TOWERS, **HEADS, "own_contexts": OWN_CONTEXTS, "cocoop": CONDITIONAL}
    for name, options in learning.items():
        label = () if name in LABELLESS else (f"method_options.label={HEAD}",)
        runs[name] = (base, f"method={name}", *label, *options)
    for name, overrides in runs.items():
        train(recipe, [f"run.folder={json.dumps(str(folder / name))}", *overrides])
    return list(runs)


@pytest.fixture(scope="module")
def lab(
    prompt_squares: Path,
    tmp_path_factory: pytest.TempPathFactory,
    serving: Callable[..., AbstractContextManager[str]],
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("served")
    names = train_all(recipe_with_pictures(prompt_squares, folder), folder)
    store = Store(folder / "store", builtin=False)
    for name in names:  # a dense graph costs as much as both encoders do: the base's is what others inherit
        dense = "naclip" if name == "base" else "none"
        publish_checkpoint(folder / name, name, store, precisions=("fp32",), dense=dense)
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
@pytest.mark.parametrize("method", TOWERS)
def test_vectors_are_the_checkpoints(lab: Lab, method: str, door: str) -> None:
    expected, found = lab.encoder(method, "checkpoint"), lab.encoder(method, door)
    tokenizer = load_model(lab.folder / "base").tokenizer
    assert len(tokenizer.encode(TEXTS[-1])) == tokenizer.spec.context_length
    assert_agree(found.encode_texts(TEXTS), expected.encode_texts(TEXTS))
    assert_agree(found.encode_images(PICTURES), expected.encode_images(PICTURES))


@pytest.mark.parametrize("door", ["checkpoint", *DOORS])
@pytest.mark.parametrize("method", TOWERS)
def test_what_was_learnt_differs_and_what_was_kept_is_equal(lab: Lab, method: str, door: str) -> None:
    before, after = lab.encoder("base", door), lab.encoder(method, door)
    texts = before.encode_texts(TEXTS), after.encode_texts(TEXTS)
    images = before.encode_images(PICTURES), after.encode_images(PICTURES)
    for (was, found), kept in ((texts, method in SAME_TEXTS), (images, method in SAME_PICTURES)):
        if kept:
            np.testing.assert_array_equal(was, found)
        else:
            assert np.abs(was - found).max(axis=1).min() > 100 * VECTOR_TOLERANCE


def test_each_artifact_brings_what_changed_and_inherits_the_rest(lab: Lab) -> None:
    """Roles, whether collections of the base fit, and what proves that they do."""
    before = lab.store.open("base")
    assert set(before.roles()) == {"image_encoder", "text_encoder", "dense_encoder"}
    for method in TOWERS:
        artifact = lab.store.open(method)
        own, expected = {graph.role for graph in artifact.manifest.graphs}, set[str]()
        expected |= set() if method in SAME_PICTURES else {"image_encoder"}
        expected |= set() if method in SAME_TEXTS else {"text_encoder"}
        expected |= {"class_head"} if method in (*CONTEXTS, *PROMPTS, "vpt_near") else set()
        assert own == expected, method
        assert ("dense_encoder" in artifact.roles()) == (method in SAME_PICTURES), method
        proved = {proof.tower for proof in artifact.manifest.space_proofs}
        same = artifact.manifest.space == before.manifest.space
        assert (same, bool(proved)) == ((method not in OTHER_SPACE,) * 2), (method, artifact.manifest.metrics)
    for method in (*HEADS, "own_contexts"):
        artifact = lab.store.open(method)
        assert [graph.role for graph in artifact.manifest.graphs] == ["class_head"]
        assert set(artifact.roles()) == {*before.roles(), "class_head"}
        assert artifact.manifest.space == before.manifest.space


@pytest.mark.parametrize("method", PROMPTS)
def test_constants_of_the_graphs_are_the_trained_prompts(lab: Lab, method: str) -> None:
    """To the bit, each layer's in the files of its own tower's graph; those of the first step would be others."""
    artifact, trained = lab.store.open(method), load_file(lab.folder / method / "weights.safetensors")
    towers = {name.split(".")[1]: each for name, each in trained.items() if name.endswith(".layers")}
    assert set(towers) == {"vpt": {"image"}, "promptsrc_texts": {"text"}}.get(method, {"image", "text"})
    for tower, layers in towers.items():
        (graph,) = (each for each in artifact.manifest.graphs if each.role == f"{tower}_encoder")
        held = b"".join((artifact.folder / path).read_bytes() for path in (graph.file, *graph.external_files))
        assert len(layers) > 1
        for layer in layers:
            assert layer.contiguous().numpy().tobytes() in held
            assert (layer + 1e-6).numpy().tobytes() not in held


def assert_head_agrees(
    lab: Lab, model: str, labels: tuple[str, ...], head: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    """The class head of `model`, in the artifact and over HTTP, gives the logits of `head` on its checkpoint's
    pictures, which are the base's unless the method has a tower of its own.
    """
    seen_by = model if model in TOWERS else "base"
    expected = head(lab.encoder(seen_by, "checkpoint").encode_images(PICTURES)).astype(np.float64)
    assert expected.std(axis=0).min() > 10 * LOGIT_TOLERANCE  # a constant would agree with anything
    artifact = open_artifact(lab.store.open(model))
    assert artifact.heads == {HEAD: labels}
    np.testing.assert_allclose(artifact.class_scores(HEAD, PICTURES), softmax(expected), atol=LOGIT_TOLERANCE)
    sent = [png(picture) for picture in PICTURES]
    wanted_by: dict[Activation | None, NDArray[np.float64]] = {None: softmax(expected), "none": expected}
    for activation, wanted in wanted_by.items():
        answer = lab.client.classify(sent, model=model, label_set=HEAD, activation=activation)
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
    assert_head_agrees(lab, method, run.info.labels, head)


@pytest.mark.parametrize("run", [*CONTEXTS, *PROMPTS])
def test_learned_prompts_name_the_trained_classes_as_their_checkpoint(lab: Lab, run: str) -> None:
    opened = SavedRun(folder=lab.folder / run, info=read_checkpoint(lab.folder / run))
    found = PromptedRun.of(opened, position="end") if run in CONTEXTS else DeepPromptedRun.of(opened)
    assert len(found.head().bias) == len(opened.info.labels)
    assert_head_agrees(lab, run, opened.info.labels, found.head())


@pytest.mark.parametrize("model", ["coop", "astray", "ivlp", "maple", "promptsrc"])
def test_a_learned_context_is_put_beside_labels_that_it_was_not_trained_for(lab: Lab, model: str) -> None:
    """Labels of a request, with the artifact's own templates: the context is in the graph, and the names are alone."""
    labels = ["red thing", "something blue", "nothing", "a star and a circle"]
    texts = lab.encoder(model, "checkpoint").encode_texts(labels)
    cosines = (lab.encoder(model, "checkpoint").encode_images(PICTURES) @ texts.T).astype(np.float64)
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


@pytest.mark.parametrize("method", SAME_SPACE)
def test_a_collection_of_the_base_is_searched_by_texts_of_the_same_space(
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
@pytest.mark.parametrize("model", OTHER_SPACE)
def test_a_model_of_another_space_is_refused_and_both_are_named(lab: Lab, model: str) -> None:
    with pytest.raises(Conflict) as refused:
        lab.client.collection("album").search(TEXTS, model=model)
    assert (refused.value.status, refused.value.code) == (409, "space_mismatch")
    for name in ("base", model):
        assert lab.store.open(name).manifest.space in str(refused.value)


@pytest.fixture(scope="module")
def sayings(lab: Lab) -> NDArray[np.float32]:
    """The collection "sayings" of the base, captions under their numbers; the base checkpoint's vectors of them."""
    texts = [f"plain {colour} shirt {number}" for colour in ("red", "green", "blue", "white") for number in range(3)]
    lab.client.create_collection("sayings", model="base").upsert(
        [Item(id=str(number), text=text) for number, text in enumerate(texts)]
    )
    return lab.encoder("base", "checkpoint").encode_texts(texts)


def test_texts_of_the_base_are_found_by_pictures_of_prompts_that_keep_its_space(
    lab: Lab, sayings: NDArray[np.float32]
) -> None:
    """And pictures that have left it are refused, though both have the very same text tower."""
    proofs = lab.store.open("vpt_near").manifest.space_proofs
    measured = [(each.tower, each.metric, each.n) for each in proofs]
    assert measured == [("image", "R@1", 24), ("image", "R@10", 24)]
    sent = [png(picture) for picture in PICTURES]
    scores = lab.encoder("vpt_near", "checkpoint").encode_images(PICTURES) @ sayings.T
    answers = lab.client.collection("sayings").search(sent, top_k=len(sayings), model="vpt_near")
    for answer, wanted in zip(answers, scores, strict=True):
        ranking = [int(hit.id) for hit in answer.hits]
        assert sorted(ranking) == list(range(len(sayings)))
        np.testing.assert_allclose([hit.score for hit in answer.hits], wanted[ranking], atol=VECTOR_TOLERANCE)
    for query in (sent[:1], TEXTS[:1]):
        with pytest.raises(Conflict) as refused:
            lab.client.collection("sayings").search(query, model="vpt")
        assert (refused.value.status, refused.value.code) == (409, "space_mismatch")
    measured = lab.store.open("vpt").manifest
    assert (measured.space_proofs, measured.fingerprint.text) == ((), lab.store.open("base").manifest.fingerprint.text)
    assert measured.metrics["space proof/R@1"] < 0.9


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
            body = {"inputs": [{"image": sent[at]}], "label_set": HEAD, "activation": "none", "model": asked}
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
