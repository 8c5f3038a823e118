"""A dense role read back from an artifact's own graphs: the same numbers as the checkpoint's, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model_store.artifact import Artifact
from model_store.errors import ExportRefused
from model_store.golden import Goldens, dense_goldens
from model_store.manifest import Manifest
from model_store.proving import Proof
from model_store.seal import MANIFEST_FILE
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import open_dense_tower, open_tower
from training.checkpoint import load_model
from training.exporting.export import export_checkpoint
from training.models.towers import SmallDualEncoder
from training.shipped import regrid

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long]
SETTINGS = SessionSettings(intra_threads=1)


def opened(folder: Path) -> Artifact:
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    return Artifact(manifest=manifest, folder=folder, base=None, writable=False)


@pytest.fixture(scope="module")
def bare(square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a plain trunk with a mean head, exported without positions."""
    folder = Path(shutil.copytree(square_base, tmp_path_factory.mktemp("regrid") / "run"))
    store = Store(folder.parent / "store", builtin=False)
    return export_checkpoint(folder, "bare", store, precisions=("fp32",), dense="none").folder


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "1"))


def test_the_role_that_is_added_is_the_checkpoints(folder: Path, square_base: Path) -> None:
    before = opened(folder)
    assert before.manifest.dense is None
    expected = open_tower(before, "image_encoder", "fp32", SETTINGS)(Goldens(before).arrays["prepared"])
    regrid.main([str(folder)])
    after = opened(folder)
    assert after.manifest.fingerprint == before.manifest.fingerprint
    spec = after.dense_spec
    assert spec is not None
    assert (spec.short_px, spec.stride_px) == (14 * 8, 8)
    found = open_tower(after, "image_encoder", "fp32", SETTINGS)(Goldens(after).arrays["prepared"])
    np.testing.assert_array_equal(found, expected)
    model = load_model(square_base).model
    assert isinstance(model, SmallDualEncoder)
    tower = open_dense_tower(after, "fp32", SETTINGS)
    for pixels in dense_goldens(spec).values():
        with torch.inference_mode():
            positions, pooled = model.eval().encode_dense_and_pooled(torch.from_numpy(pixels))
        got = tower(pixels)
        np.testing.assert_allclose(got.positions, positions.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.pooled, pooled.numpy(), rtol=1e-4, atol=1e-5)
    Proof(after).check_dense(tower)
    with pytest.raises(ExportRefused, match="already"):
        regrid.add_dense_role(after)


def test_another_size_changes_pictures_and_goldens_alone(folder: Path) -> None:
    regrid.main([str(folder), "--short-px", "64"])
    small = opened(folder)
    assert small.dense_spec is not None
    weights = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    regrid.main([str(folder), "--short-px", "32"])
    smaller = opened(folder)
    assert smaller.dense_spec is not None
    assert (small.dense_spec.short_px, smaller.dense_spec.short_px) == (64, 32)
    assert smaller.dense_spec.max_long_px == small.dense_spec.max_long_px
    assert {path.name: path.read_bytes() for path in folder.glob("*.onnx")} == weights
    assert all(min(each.shape[1:3]) == 32 for each in Goldens(smaller).dense_inputs().values())
    Proof(smaller).check_dense(open_dense_tower(smaller, "fp32", SETTINGS))
    manifest = (folder / MANIFEST_FILE).read_bytes()
    with pytest.raises(ExportRefused, match="short_px 33"):
        regrid.change_size(smaller, 33)
    assert (folder / MANIFEST_FILE).read_bytes() == manifest


@pytest.mark.parametrize("wrong", ["operator", "mean", "scaled"])
def test_a_graph_of_another_kind_is_refused_and_nothing_changes(folder: Path, wrong: str) -> None:
    path = folder / "image_encoder.fp32.onnx"
    model = onnx.load(path)
    node = next(each for each in model.graph.node if each.op_type == ("Relu" if wrong == "operator" else "Gemm"))
    if wrong == "operator":
        node.op_type = "Sigmoid"
    elif wrong == "mean":
        node.op_type = "MatMul"
    else:
        node.attribute.append(onnx.helper.make_attribute("alpha", 2.0))
    onnx.save(model, path)
    with pytest.raises(ExportRefused, match={"operator": "Sigmoid", "mean": "does not end", "scaled": "scaled"}[wrong]):
        regrid.TrunkFromGraph(path)
    with pytest.raises(ExportRefused):
        regrid.add_dense_role(opened(folder))
    assert opened(folder).manifest.dense is None
