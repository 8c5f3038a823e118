"""An image tower in its teacher's space: trained without captions, published beside the teacher, searched across."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clipworks.client import Client
from clipworks.errors import Conflict
from evaluation.encoder import ServerEncoder, open_artifact, png
from model_store.manifest import Distillation
from model_store.store import Store
from training import method as methods
from training.checkpoint import Checkpoint, read_checkpoint
from training.config import PicturesData, TableData
from training.data.tables import Table
from training.loop import train
from training.opening import open_checkpoint
from training.publication import Publication
from training.publish import publish_checkpoint
from training.report import report_split
from training.saved import SavedRun

pytestmark = [pytest.mark.torch, pytest.mark.long]
Train = Callable[..., Path]
COLOURS = [(220, 20, 20), (20, 200, 20), (20, 20, 220), (240, 240, 240)]
STUDENT = 'method_options.image={trunk = "clipworks_conv_t", size_px = 24}'
TEXTS = ["plain red shirt 1", "plain blue shirt 2"]


@pytest.fixture(scope="module")
def teacher(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kd_image") / "teacher"
    train(squares, [f"run.folder={json.dumps(str(folder))}", "optim.steps=60", "seed=11"])
    return folder


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("kd_image") / "store", builtin=False)
    publish_checkpoint(teacher, "teacher", store, precisions=("fp32",), dense="none")
    return store


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 pictures of two colours each in folders, one of them hidden; nobody says anything of them."""
    folder, rng = tmp_path_factory.mktemp("kd_image") / "pictures", np.random.default_rng(1)
    for number in range(160):
        pixels = np.empty((20, 20, 3))
        pixels[:, : 4 + number % 13], pixels[:, 4 + number % 13 :] = rng.uniform(0, 255, (2, 3))
        place = folder / f"part {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    (folder / ".hidden.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def student(squares: Path, pictures: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the stored teacher, trained on pictures without captions."""
    folder = tmp_path_factory.mktemp("kd_image") / "student"
    recipe = squares.with_name("pictures.toml")
    recipe.write_text(without_captions(squares.read_text(), pictures, store), encoding="utf-8")
    train(recipe, [f"run.folder={json.dumps(str(folder))}", "optim.steps=250", "method_options.looks=3"])
    publish_checkpoint(folder, "student", store, precisions=("fp32",))
    return folder


def without_captions(recipe: str, pictures: Path, store: Store) -> str:
    """The recipe of the squares with a stored teacher and other data."""
    start, end = recipe.index("[data]"), recipe.index("[augment]")
    model, optim = recipe.index("[model]"), recipe.index("[optim]")
    head = recipe[:start].replace('method = "base"', 'method = "kd_image"\nbase = "artifact:teacher"')
    data = f'[data]\nkind = "pictures"\nfolder = {json.dumps(str(pictures))}\n'
    options = f'[method_options]\nimage = {{trunk = "clipworks_conv_t", size_px = 24}}\n{data}'
    run = recipe[optim:] + f"\nstore = {json.dumps(str(store.root))}\n"
    return head + options + recipe[end:model] + run


def squares_of(size_px: int) -> list[np.ndarray]:
    return [np.full((size_px, size_px, 3), colour, dtype=np.uint8) for colour in COLOURS]


def test_pictures_alone_teach_the_space(student: Path, teacher: Path) -> None:
    info = read_checkpoint(student)
    assert info.inherited == ("text_encoder",)
    assert (info.image_spec.height_px, info.config.model.kind) == (24, "artifact")
    agreement = info.metrics["validation"]["agreement"]
    assert agreement["found_across"] > 0.9
    assert agreement["centred_distance"] < 0.5
    own, its = open_checkpoint(student), open_checkpoint(teacher)
    np.testing.assert_allclose(own.encode_texts(TEXTS), its.encode_texts(TEXTS), atol=1e-5)
    found = own.encode_images(squares_of(30)) @ its.encode_images(squares_of(30)).T
    assert (found.argmax(axis=1) == np.arange(4)).all()
    # Nothing of the teacher is in the checkpoint.
    assert {name.partition(".")[0] for name in load_file(student / "weights.safetensors")} == {"student"}


def test_held_out_pictures_say_how_near_it_is(student: Path) -> None:
    found = report_split(student, split="test")["agreement"]
    assert found.keys() == read_checkpoint(student).metrics["validation"]["agreement"].keys()
    assert found != read_checkpoint(student).metrics["validation"]["agreement"]
    assert found["found_across"] > 0.8
    validation = report_split(student, split="validation")["agreement"]
    assert validation == pytest.approx(read_checkpoint(student).metrics["validation"]["agreement"], abs=1e-4)


def test_it_is_published_in_its_teachers_space_with_the_proof(student: Path, store: Store) -> None:
    manifest, base = store.open("student").manifest, store.open("teacher").manifest
    assert (manifest.kind, manifest.space) == ("derivation", base.space)
    assert manifest.fingerprint.text == base.fingerprint.text
    assert manifest.image is not None
    assert manifest.image.height_px == 24
    (proof,) = manifest.space_proofs
    assert (proof.tower, proof.metric, proof.n) == ("image", "R@1", len(validation_names(student)))
    assert proof.at_least is not None
    assert proof.value >= proof.at_least
    assert {graph.role for graph in manifest.graphs} == {"image_encoder", "dense_encoder"}
    assert manifest.provenance.distillation == Distillation(
        teacher="teacher@1",
        teacher_digest=f"{base.fingerprint.image} {base.fingerprint.text}",
        terms={"fd": 2000.0},
    )


def validation_names(student: Path) -> list[str]:
    data = read_checkpoint(student).config.data
    assert isinstance(data, PicturesData)
    return [row.image for row in Table.of_pictures(data).rows["validation"]]


def test_checkpoint_artifact_and_http_agree_and_collections_are_searched_across(
    student: Path, store: Store, tmp_path: Path, serving: Callable[..., AbstractContextManager[str]]
) -> None:
    shown, checkpoint, artifact = squares_of(40), open_checkpoint(student), open_artifact(store.open("student"))
    expected = checkpoint.encode_images(shown)
    np.testing.assert_allclose(artifact.encode_images(shown), expected, atol=2e-5)
    np.testing.assert_allclose(artifact.encode_texts(TEXTS), checkpoint.encode_texts(TEXTS), atol=2e-5)
    options = ("--store", store.root, "--data", tmp_path / "data", "--model", "teacher", "--extra-models", "student")
    with serving(*options) as url, Client(url) as client:
        served = ServerEncoder(client, model="student")
        np.testing.assert_allclose(served.encode_images(shown), expected, atol=2e-5)
        sent = [png(picture) for picture in shown]
        for indexing, asking in (("teacher", "student"), ("student", "teacher")):
            album = client.create_collection(f"by-{indexing}", model=indexing)
            album.upsert_images(sent, ids=[str(number) for number in range(4)])
            answers = client.collection(f"by-{indexing}").search(sent, top_k=1, model=asking)
            assert [answer.hits[0].id for answer in answers] == ["0", "1", "2", "3"]


def test_a_student_far_from_its_teacher_has_a_space_of_its_own(
    squares: Path, pictures: Path, store: Store, tmp_path: Path, serving: Callable[..., AbstractContextManager[str]]
) -> None:
    recipe = tmp_path / "far.toml"
    recipe.write_text(without_captions(squares.read_text(), pictures, store), encoding="utf-8")
    train(recipe, [f"run.folder={json.dumps(str(tmp_path / 'far'))}", "optim.steps=1"])
    artifact = publish_checkpoint(tmp_path / "far", "far", store, precisions=("fp32",), dense="none")
    assert artifact.manifest.space != store.open("teacher").manifest.space
    assert not artifact.manifest.space_proofs
    assert artifact.manifest.metrics["space proof/R@1"] < 0.9
    options = ("--store", store.root, "--data", tmp_path / "data", "--model", "teacher", "--extra-models", "far")
    with serving(*options) as url, Client(url) as client:
        client.create_collection("album", model="teacher").upsert_images([png(squares_of(20)[0])], ids=["0"])
        with pytest.raises(Conflict):
            client.collection("album").search(TEXTS, model="far")


def test_with_captions_it_is_judged_and_proved_by_what_captions_find(
    train_squares: Train, teacher: Path, store: Store
) -> None:
    folder = train_squares(
        "method=kd_image", STUDENT, "method_options.icl=1", "method_options.crd=1", "optim.steps=120",
        "data.split={modulo=5,test=[1],validation=[2]}", base=teacher,
    )  # fmt: skip
    info = read_checkpoint(folder)
    assert info.metrics["validation"]["all"]["t2i_r@10"]["n"] == 24
    again = report_split(folder, split="validation")
    assert again["all"]["t2i_r@10"]["value"] == pytest.approx(info.metrics["validation"]["all"]["t2i_r@10"]["value"])

    def proved(info: Checkpoint) -> list[tuple[str, int, str]]:
        publication = Publication(run=SavedRun(folder=folder, info=info), store=store)
        source = methods.create("kd_image", info.config.method_options).derivation(publication)
        assert min(source.metrics[f"space proof/{metric}"] for metric in ("picture R@10", "R@10")) >= 0.9
        return [(proof.metric, proof.n, proof.tower) for proof in source.proofs]

    assert proved(info) == [("picture R@10", 24, "image"), ("R@10", 24, "image")]
    # Among twelve pictures chance finds nearly every one in ten answers: they prove nothing.
    assert isinstance(info.config.data, TableData)
    split = info.config.data.split.model_copy(update={"modulo": 10})
    data = info.config.data.model_copy(update={"split": split})
    assert proved(replace(info, config=info.config.model_copy(update={"data": data}))) == []


@pytest.mark.parametrize("looks", [0, 2])
def test_a_resumed_student_is_bit_equal(train_squares: Train, teacher: Path, squares: Path, looks: int) -> None:
    options = ["method=kd_image", STUDENT, f"method_options.looks={looks}", "method_options.mfd=5", "optim.steps=6"]
    options += ["run.checkpoint_steps=3", "run.keep=3"]
    whole, parts = (train_squares(*options, base=teacher, name=name) for name in ("whole", "parts"))
    before = load_file(parts / "weights.safetensors")
    train(
        squares,
        [f"run.folder={json.dumps(str(parts))}", f"base={json.dumps(str(teacher))}", *options],
        from_step=3,
    )
    first, second = load_file(whole / "weights.safetensors"), load_file(parts / "weights.safetensors")
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], before[name]) for name in first)


def test_pictures_and_scenes_are_mixed_by_a_share(squares: Path, pictures: Path, store: Store, tmp_path: Path) -> None:
    """The teacher sees both kinds at its own size, and the student is judged by both without captions."""
    wide = tmp_path / "wide"  # scenes are drawn at 48 px or more
    larger = ("model.image.size_px=48", "data.cache_px=48", "optim.steps=10", "seed=12")
    train(squares, [f"run.folder={json.dumps(str(wide))}", *larger])
    publish_checkpoint(wide, "wide", store, precisions=("fp32",), dense="none")
    text = without_captions(squares.read_text(), pictures, store).replace("artifact:teacher", "artifact:wide")
    start, end = text.index("[data]"), text.index("[augment]")
    parts = f"""
[data]
kind = "several"
[[data.parts]]
name = "photographs"
share = 2
data = {{kind = "pictures", folder = {json.dumps(str(pictures))}, cache_px = 48}}
[[data.parts]]
name = "drawn"
share = 1
[data.parts.data]
kind = "scenes"
cache_px = 48
parts = [{{scenes = 40, share = 1, mix = {{mentions = 1.0}}}}]

"""
    recipe = tmp_path / "mix.toml"
    recipe.write_text(text[:start] + parts + text[end:], encoding="utf-8")
    where = f"run.folder={json.dumps(str(tmp_path / 'run'))}"
    tower = 'method_options.image={trunk = "clipworks_conv_t", size_px = 48}'
    result = train(recipe, [where, tower, "method_options.looks=1", "optim.steps=6"])
    assert 0 < result.metrics["agreement"]["centred_distance"] < 2
    (kept,) = (np.load(path) for path in (tmp_path / "features").glob("teacher-*.npz"))
    own = Table.of_pictures(PicturesData(kind="pictures", folder=pictures)).rows["train"]
    assert kept["image"].shape == (len(own) + 40, 1, 16)
    assert np.unique(kept["image"].round(4), axis=0).shape[0] > 150, "the teacher saw the same everywhere"
    published = publish_checkpoint(tmp_path / "run", "mixed", store, precisions=("fp32",), dense="none")
    assert "space proof/R@1" in published.manifest.metrics


def test_pictures_without_captions_are_refused_where_pairs_are_trained(
    make_context: Callable[..., methods.Context],
    squares: Path,
    pictures: Path,
    teacher: Path,
    store: Store,
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "pairs.toml"
    recipe.write_text(without_captions(squares.read_text(), pictures, store), encoding="utf-8")
    where = f"run.folder={json.dumps(str(tmp_path / 'run'))}"
    with pytest.raises(ValueError, match="have no captions"):
        train(recipe, [where, "method_options.icl=1"])
    with pytest.raises(ValueError, match="holds no picture"):
        train(recipe, [where, f"data.folder={json.dumps(str(tmp_path))}"])
    with pytest.raises(ValueError, match="every term has weight 0"):
        methods.create("kd_image", {"image": {"trunk": "clipworks_conv_t", "size_px": 24}, "fd": 0.0})
