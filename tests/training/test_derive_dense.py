"""A derivation of the dense role: a linear map on positions, pictures and texts, and a presence, through the door."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model_store.errors import ArtifactNotFound, ExportRefused, GoldenError
from model_store.golden import GOLDEN_TEXTS, Goldens, dense_goldens
from model_store.identity import sha256_file
from model_store.label_vectors import LabelVectors
from model_store.manifest import DenseSpec, Presence
from model_store.presence import presence_of, presence_scores, score_maps
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Artifact, Store
from model_store.towers import normalized, open_dense_tower, open_tower
from training.exporting.derive import DerivationSource, export_derivation
from training.exporting.derived_graphs import AdapterSource
from training.exporting.export import provenance

pytestmark = [pytest.mark.torch, pytest.mark.slow]

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
SETTINGS = SessionSettings(intra_threads=1)
RULE = Presence(
    positive_templates=("there is a {}",),
    negative_templates=("there is no {}",),
    similarity="cosine",
    scale=20.0,
    aggregation="softmax_sum",
    calibration_slope=1.5,
    calibration_offset=-0.25,
    threshold=0.4,
)


def projector(seed: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(32, 12, bias=False).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("derive") / "store")), builtin=False)


@pytest.fixture(scope="module")
def source(store: Store) -> DerivationSource:
    made = provenance(source="a test", architecture="tiny", activation="gelu", structure="test/1", licence="none")
    return DerivationSource(base=store.open("tiny@1"), structure="test/1", provenance=made)


@pytest.fixture(scope="module")
def unmixed(store: Store, source: DerivationSource) -> Artifact:
    pictures = AdapterSource(module=projector(1), normalized_input=False)
    brought = replace(
        source,
        dense_adapter=pictures,
        image_adapter=pictures,
        text_adapter=AdapterSource(module=projector(2)),
        presence=RULE,
    )
    return export_derivation(brought, name="unmixed", store=store, precisions=["fp32"])


def bare(store: Store) -> Artifact:
    return store.open("tiny@1")


def test_positions_and_pooled_vectors_go_through_the_same_map(store: Store, unmixed: Artifact) -> None:
    spec = unmixed.dense_spec
    assert isinstance(spec, DenseSpec)
    assert set(unmixed.roles()) >= {"dense_encoder", "dense_adapter", "image_adapter", "text_adapter"}
    assert unmixed.manifest.dim == 12
    tower, base = (open_dense_tower(each, "fp32", SETTINGS) for each in (unmixed, bare(store)))
    for pixels in dense_goldens(spec).values():
        got, before = tower(pixels), base(pixels)
        weight = projector(1).weight.numpy()
        np.testing.assert_allclose(got.positions, before.positions @ weight.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.pooled, before.pooled @ weight.T, rtol=1e-4, atol=1e-5)


def test_it_is_served_to_the_presence_it_was_published_with(unmixed: Artifact) -> None:
    rule, spec = presence_of(unmixed), unmixed.dense_spec
    assert rule == RULE
    assert spec is not None
    text = open_tower(unmixed, "text_encoder", "fp32", SETTINGS)
    tokenizer = unmixed.tokenizer()
    labels = LabelVectors(
        positive=normalized(text(tokenizer([f"there is a {name}" for name in ("cat", "red shoe")]))),
        negative=normalized(text(tokenizer([f"there is no {name}" for name in ("cat", "red shoe")]))),
    )
    pixels = next(iter(dense_goldens(spec).values()))
    found = open_dense_tower(unmixed, "fp32", SETTINGS)(pixels)
    maps = score_maps(found.positions[0], labels, rule)
    scores = presence_scores(maps, found.pooled[0], labels, rule)
    assert labels.negative is not None
    for label in range(2):
        cells = found.positions[0].reshape(-1, 12).astype(np.float64)
        cells /= np.linalg.norm(cells, axis=1, keepdims=True)
        values = 20.0 * (cells @ (labels.positive[label].astype(np.float64) - labels.negative[label]))
        weights = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        assert scores[label] == pytest.approx(1 / (1 + np.exp(-(1.5 * (weights * values).sum() - 0.25))), abs=1e-5)


def test_it_proves_itself_and_a_missing_golden_is_a_failure(store: Store, unmixed: Artifact, tmp_path: Path) -> None:
    for artifact in (bare(store), unmixed):
        proof = Proof(artifact)
        proof.check_inputs(artifact.tokenizer())
        proof.check_dense(open_dense_tower(artifact, "fp32", SETTINGS))
    for name, change in {
        "no cases": lambda cases, _arrays: cases.update(dense=[]),
        "no tolerance": lambda cases, _arrays: cases["tolerances"].pop("dense_encoder"),
        "no pooled": lambda _cases, arrays: arrays.pop("dense_pooled.rgb_png_331x227"),
        "other positions": lambda _cases, arrays: arrays.update(
            {k: v[::-1] for k, v in arrays.items() if k.startswith("dense_embeds")}
        ),
    }.items():
        folder = tmp_path / name
        shutil.copytree(TINY_STORE, folder)
        bend(folder / "tiny" / "1", change)
        bent = Store(folder, builtin=False).open("tiny@1")
        tower = open_dense_tower(bent, "fp32", SETTINGS)
        with pytest.raises(GoldenError):
            Proof(bent).check_dense(tower)


def bend(folder: Path, change: object) -> None:
    """Edit an artifact's golden cases, digests in its manifest included."""
    assert callable(change)
    cases = json.loads((folder / "goldens/cases.json").read_text())
    with np.load(folder / "goldens/arrays.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    change(cases, arrays)
    (folder / "goldens/cases.json").write_text(json.dumps(cases))
    np.savez(folder / "goldens/arrays.npz", **arrays)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        path = folder / entry["path"]
        entry |= {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_image_adapter_alone_hides_the_bases_positions(store: Store, source: DerivationSource) -> None:
    moved = replace(
        source, image_adapter=AdapterSource(module=projector(1)), text_adapter=AdapterSource(module=projector(2))
    )
    adapted = export_derivation(moved, name="moved", store=store, precisions=["fp32"])
    assert "dense_encoder" not in adapted.roles()
    assert adapted.dense_spec is None
    with pytest.raises(ArtifactNotFound, match="no dense_encoder"):
        open_dense_tower(adapted, "fp32", SETTINGS)


def test_what_does_not_fit_together_is_refused(store: Store, source: DerivationSource) -> None:
    alone = replace(source, dense_adapter=AdapterSource(module=projector(1), normalized_input=False), text_adapter=None)
    with pytest.raises(ExportRefused, match="different sizes"):
        export_derivation(
            replace(alone, image_adapter=AdapterSource(module=nn.Identity().eval())), name="odd", store=store
        )
    hidden = replace(source, base=store.open("moved@1"), dense_adapter=AdapterSource(module=projector(1)))
    with pytest.raises(ExportRefused, match="no dense_encoder"):
        export_derivation(hidden, name="odd", store=store)
    assert len(GOLDEN_TEXTS) == len(Goldens(bare(store)).cases.texts)
