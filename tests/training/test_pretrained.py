"""Training starts from weights that are there: a file of open_clip's or transformers' names, a tag, or an artifact."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import open_clip
import pytest
import safetensors.torch
import torch

from model_store.errors import ExportRefused
from model_store.store import Artifact, Store, file_entries
from tests.stores import SHOP_STORE
from training.checkpoint import load_model
from training.config import OpenClipConfig
from training.exporting.export import export_checkpoint, source_of_checkpoint
from training.importing.importer import import_model
from training.importing.stored_weights import read_stored_weights
from training.loop import train
from training.models.towers import OpenClipDualEncoder

pytestmark = [pytest.mark.torch, pytest.mark.long]
ARCH = "clipworks-start"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of an architecture that open_clip knows with GELU and with QuickGELU."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "configs").mkdir()
    tanh = {"vision_cfg": {**CONFIG["vision_cfg"], "act_kwargs": {"approximate": "tanh"}}}
    for name, more in ((ARCH, {}), (f"{ARCH}-quickgelu", {"quick_gelu": True}), (f"{ARCH}-tanh", tanh)):
        (folder / "configs" / f"{name}.json").write_text(json.dumps({**CONFIG, **more}))
    open_clip.add_model_config(folder / "configs")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = open_clip.CLIP(**CONFIG).state_dict()
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def tune(squares: Path, folder: Path, weights: Path | str, *options: str) -> Path:
    recipe = squares.read_text()
    path = folder.with_suffix(".toml")
    model = f'[model]\nkind = "open_clip"\narchitecture = "{ARCH}"\npretrained = {json.dumps(str(weights))}\n'
    path.write_text(recipe[: recipe.index("[model]")] + model + recipe[recipe.index("[optim]") :])
    given = [f"run.folder={json.dumps(str(folder))}", "optim.steps=2", "optim.rate=1e-9", "data.cache_px=16"]
    train(path, [*given, *options])
    return folder


def test_a_run_starts_from_a_file(squares: Path, weights: Path, tmp_path: Path) -> None:
    moved = tmp_path / "weights.safetensors"
    moved.write_bytes(weights.read_bytes())
    run = tune(squares, tmp_path / "run", moved, "model.activation=gelu")
    moved.unlink()  # a checkpoint is whole: what it started from is not asked for again
    loaded = load_model(run)
    assert isinstance(loaded.model, OpenClipDualEncoder)
    expected = safetensors.torch.load_file(weights)
    for name, tensor in loaded.model.clip.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    assert "pretrained" not in source_of_checkpoint(loaded).structure
    assert loaded.info.config.model.model_dump()["pretrained"] == str(moved)


def test_without_them_it_starts_elsewhere(squares: Path, weights: Path, tmp_path: Path) -> None:
    """The test above would pass by itself if the seed made the same weights."""
    path = tmp_path / "recipe.toml"
    recipe = squares.read_text()
    model = f'[model]\nkind = "open_clip"\narchitecture = "{ARCH}"\n'
    path.write_text(recipe[: recipe.index("[model]")] + model + recipe[recipe.index("[optim]") :])
    train(path, [f"run.folder={json.dumps(str(tmp_path / 'run'))}", "optim.steps=1", "optim.rate=1e-9"])
    found = load_model(tmp_path / "run").model.state_dict()["clip.visual.conv1.weight"]
    assert (found - safetensors.torch.load_file(weights)["visual.conv1.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("", (), "say --activation gelu or --activation quickgelu"),
        ("", ("model.activation=quickgelu",), "is a clipworks-start-quickgelu: set model.architecture to it"),
        ("nowhere.safetensors", (), "model.pretrained nowhere.safetensors: .*neither a file nor a tag"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(
    squares: Path, weights: Path, tmp_path: Path, start: str, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(squares, tmp_path / "run", start or weights, *options)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def stored(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The weights as an artifact; in seeded ones biases are zeros and equal constants are one, as in few trained."""
    store = Store(tmp_path_factory.mktemp("store"), builtin=False)
    given = {"pretrained": str(weights), "activation": "gelu", "precisions": ["fp32"], "dense": "none"}
    return import_model(ARCH, name="start", store=store, **given)


@pytest.fixture(scope="module")
def continued(squares: Path, stored: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that started from the artifact."""
    root = json.dumps(str(stored.folder.parents[1]))
    return tune(squares, tmp_path_factory.mktemp("continued") / "run", "artifact:start", f"run.store={root}")


def recipe_of(architecture: str = ARCH) -> OpenClipConfig:
    return OpenClipConfig(kind="open_clip", architecture=architecture, pretrained="artifact:start")


def said_to_be(artifact: Artifact, **changes: object) -> Artifact:
    manifest = artifact.manifest
    provenance = manifest.provenance.model_copy(update=changes)
    return dataclasses.replace(artifact, manifest=manifest.model_copy(update={"provenance": provenance}))


def test_a_run_starts_from_a_stored_artifact(weights: Path, continued: Path) -> None:
    loaded = load_model(continued)
    assert isinstance(loaded.model, OpenClipDualEncoder)
    expected = safetensors.torch.load_file(weights)
    assert loaded.model.clip.state_dict().keys() == expected.keys()
    for name, tensor in loaded.model.clip.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-7, rtol=0)
    assert source_of_checkpoint(loaded).structure == json.dumps(
        {"kind": "open_clip", "architecture": ARCH}, separators=(",", ":")
    )


def test_what_export_writes_of_a_trained_model_can_be_trained_on(continued: Path, tmp_path: Path) -> None:
    store = Store(tmp_path, builtin=False)
    exported = export_checkpoint(continued, "again", store, precisions=["fp32"], dense="none")
    found = read_stored_weights(exported, recipe_of())
    model = load_model(continued).model
    assert isinstance(model, OpenClipDualEncoder)
    expected = model.clip.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] in ([], ["logit_scale"])
    torch.testing.assert_close(found["logit_scale"], expected["logit_scale"], atol=1e-6, rtol=0)


def test_weights_that_are_not_those_of_the_fingerprint_are_refused(stored: Artifact, tmp_path: Path) -> None:
    shutil.copytree(stored.folder, tmp_path / "changed")
    spec = stored.manifest.graph("image_encoder", "fp32")
    assert spec is not None
    path = tmp_path / "changed" / spec.file
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if each.name == "visual.positional_embedding")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0] = np.nextafter(array[0, 0], np.float32(1))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    manifest = stored.manifest.model_copy(update={"files": file_entries(tmp_path / "changed")})
    changed = dataclasses.replace(stored, manifest=manifest, folder=tmp_path / "changed")
    with pytest.raises(ExportRefused, match="other weights than its fingerprint says: start from its checkpoint"):
        read_stored_weights(changed, recipe_of())


@pytest.mark.parametrize(
    ("changes", "architecture", "message"),
    [
        ({}, f"{ARCH}-quickgelu", f"is a {ARCH}: set model.architecture to it"),
        ({"architecture": "mine"}, f"{ARCH}-quickgelu", "computes gelu, .*-quickgelu quickgelu"),
        ({"architecture": "mine"}, "RN50", r"has batch norms \(visual.bn1\), which were folded"),
        (
            {"architecture": "mine"},
            f"{ARCH}-tanh",  # the same weights at the same places of another graph
            "its image_encoder is not the graph that this architecture is exported as here",
        ),
        (
            {"verified": "wrapped", "layout": "immich", "repository": "immich-app/ViT-B-32__openai"},
            ARCH,
            "another project's export .immich.*base = artifact:start",
        ),
    ],
)
def test_a_stored_artifact_whose_weights_cannot_be_had(
    stored: Artifact, changes: dict[str, object], architecture: str, message: str
) -> None:
    with pytest.raises(ExportRefused, match=message):
        read_stored_weights(said_to_be(stored, **changes), recipe_of(architecture))


def test_a_derivation_is_refused_with_the_name_of_its_base(stored: Artifact) -> None:
    with pytest.raises(ExportRefused, match="is a derivation of start@1, which alone has weights: name that"):
        read_stored_weights(dataclasses.replace(stored, base=stored), recipe_of())


def test_own_small_models_and_missing_ones_are_refused_before_the_first_step(squares: Path, tmp_path: Path) -> None:
    for name, message in (
        ("fashion-small", "no model of open_clip; its batch norms were folded"),
        ("nothing", "model.pretrained artifact:nothing: .*nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(squares, tmp_path / "run", f"artifact:{name}", f"run.store={SHOP_STORE}")
    assert not (tmp_path / "run").exists()
