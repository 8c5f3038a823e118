"""Methods that work on vectors take a published artifact as base: no checkpoint, no torch weights, features by ONNX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.encoder import ArtifactEncoder
from model_store.label_vectors import LabelVectors
from model_store.presence import presence_of, presence_scores, score_maps
from model_store.session import SessionSettings
from model_store.store import Artifact, Store
from model_store.towers import open_dense_tower
from training.bases import StoredTowers, open_base
from training.checkpoint import load_model, read_checkpoint
from training.config import load_config
from training.features import dense_source
from training.few_shot import few_shot, open_bench
from training.loop import train
from training.opening import open_checkpoint
from training.publish import publish_checkpoint

pytestmark = pytest.mark.torch
TEXTS = ["plain red shirt 0", "plain blue shirt", "green"]


@pytest.fixture(scope="module")
def stored(square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(tmp_path_factory.mktemp("store"), builtin=False)
    return publish_checkpoint(square_base, "squares", store, precisions=("fp32",))


def on_artifact(squares: Path, stored: Artifact, folder: Path, *options: str) -> Path:
    recipe = squares.read_text()
    alone = folder.with_suffix(".toml")
    alone.write_text(recipe[: recipe.index("[model]")] + recipe[recipe.index("[optim]") :])
    root = stored.folder.parents[1]
    given = [f"run.folder={json.dumps(str(folder))}", f"run.store={json.dumps(str(root))}", "base=artifact:squares"]
    train(alone, [*given, *options])
    return folder


def store_of(artifact: Artifact) -> Store:
    return Store(artifact.folder.parents[1], builtin=False)


def pixels(size: int = 16, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.long
def test_positions_of_an_artifact_are_those_of_its_checkpoint(
    squares: Path, square_base: Path, stored: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    recipe = squares.read_text()
    path.write_text(recipe[: recipe.index("[model]")] + recipe[recipe.index("[optim]") :])
    root = json.dumps(str(stored.folder.parents[1]))
    base = open_base(load_config(path, ["base=artifact:squares", f"run.store={root}"]))
    assert base is not None
    assert isinstance(base.model, StoredTowers)
    ours, theirs = dense_source(base), dense_source(load_model(square_base))
    assert ours.spec == theirs.spec
    with torch.inference_mode():
        for mine, other in zip(*(each.module(torch.from_numpy(pixels(24))) for each in (ours, theirs)), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_labclip_ships_its_map_behind_a_stored_text_tower(squares: Path, stored: Artifact, tmp_path: Path) -> None:
    options = ("method=labclip", "optim.steps=40", "optim.rate=1e-2", "method_options.captions=1")
    run = on_artifact(squares, stored, tmp_path / "map", *options)
    info = read_checkpoint(run)
    assert info.inherited == ("image_encoder", "text_encoder")
    artifact = publish_checkpoint(run, "mapped", store_of(stored), precisions=("fp32",))
    assert artifact.manifest.space == stored.manifest.space
    assert artifact.manifest.fingerprint.image == stored.manifest.fingerprint.image
    assert artifact.manifest.space_proofs[0].value >= artifact.manifest.space_proofs[0].at_least
    before, after = ArtifactEncoder(stored), ArtifactEncoder(artifact)
    expected = open_checkpoint(run).encode_texts(TEXTS)
    np.testing.assert_allclose(after.encode_texts(TEXTS), expected, atol=2e-5)
    assert np.abs(after.encode_texts(TEXTS) - before.encode_texts(TEXTS)).max() > 1e-3
    np.testing.assert_array_equal(after.encode_images(list(pixels())), before.encode_images(list(pixels())))


def test_unmix_is_fitted_on_stored_positions(squares: Path, stored: Artifact, tmp_path: Path) -> None:
    options = ("method=unmix", "method_options.label=colour", "method_options.dense_px=16", "method_options.hidden=24")
    run = on_artifact(squares, stored, tmp_path / "heads", *options, "optim.steps=40", "optim.rate=1e-2")
    artifact = publish_checkpoint(run, "unmixed", store_of(stored), precisions=("fp32",))
    assert artifact.base is not None
    assert artifact.base.reference == stored.reference
    labels = ["red", "green", "blue"]
    presence, encoder = presence_of(artifact), ArtifactEncoder(artifact)
    positive, negative = (
        encoder.encode_texts([template.replace("{}", name) for name in labels])
        for template in (presence.positive_templates[0], presence.negative_templates[0])
    )
    vectors = LabelVectors(positive=positive, negative=negative)
    found = open_dense_tower(artifact, "fp32", SessionSettings())(pixels())
    served = presence_scores(score_maps(found.positions[0], vectors, presence), found.pooled[0], vectors, presence)
    own = open_checkpoint(run)
    np.testing.assert_allclose(own.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=2e-5)
    assert ((served > 0) & (served < 1)).all()
    before = open_dense_tower(stored, "fp32", SessionSettings())(pixels())
    assert np.abs(found.positions - before.positions).max() > 1e-3


def test_few_shots_on_an_artifact_are_those_on_its_checkpoint(
    squares: Path, square_base: Path, stored: Artifact, tmp_path: Path
) -> None:
    alone = tmp_path / "squares.toml"
    alone.write_text(squares.read_text())
    given = {"split": "validation", "cache": tmp_path / "cache"}
    theirs = open_bench(str(square_base), squares.parent, **given)
    root = stored.folder.parents[1]
    ours = open_bench("artifact:squares", squares.parent, **given, store=root, recipe=str(alone))
    assert isinstance(ours.base.model, StoredTowers)
    assert (ours.base.info.config.base, ours.base.info.config.model.kind) == ("artifact:squares", "artifact")
    np.testing.assert_allclose(ours.vectors, theirs.vectors, atol=2e-6)
    asked = {"label": "colour", "shots": [2, 0], "seeds": 2, "least": 3, "templates": ("plain {} shirt",)}
    asked["heads"] = ("gda", "linear_probe")
    mine, other = few_shot(ours, **asked), few_shot(theirs, **asked)
    assert (mine["zero_shot"], mine["classes"], mine["n"]) == (other["zero_shot"], 4, other["n"])
    assert [(run["method"], run["shots"]) for run in mine["runs"]] == [
        ("bias", 2), ("mean", 2), ("frequencies", 2), ("gda", 2), ("linear_probe", 2),
        ("bias", 0), ("mean", 0), ("frequencies", 0), ("gda", 0), ("linear_probe", 0),
    ]  # fmt: skip
    for run, same in zip(mine["runs"], other["runs"], strict=True):
        assert run["accuracy"]["value"] == pytest.approx(same["accuracy"]["value"], abs=0.05)
        assert run["pictures"] == same["pictures"]


def test_few_shots_say_what_does_not_fit(squares: Path, square_base: Path, stored: Artifact, tmp_path: Path) -> None:
    given = {"split": "validation", "cache": tmp_path / "cache"}
    with pytest.raises(ValueError, match="--recipe, --set and --store are for a base artifact:NAME"):
        open_bench(str(square_base), squares.parent, **given, recipe="classes")
    with pytest.raises(ValueError, match="base artifact:squares: .*squares"):
        open_bench("artifact:squares", squares.parent, **given)
    with pytest.raises(ValueError, match="nowhere"):
        open_bench("artifact:squares", tmp_path / "nowhere", **given, store=stored.folder.parents[1])


def test_a_method_that_trains_towers_says_what_it_needs(squares: Path, stored: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a stored model, whose weights are not trained"):
        on_artifact(squares, stored, tmp_path / "tuned", "method=negation")
