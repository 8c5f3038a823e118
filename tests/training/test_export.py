"""The exporter through its public doors: what it publishes proves itself, what is not the model is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from model_store.errors import ExportRefused
from model_store.fidelity import measure
from model_store.golden import Goldens
from model_store.graph import open_graph
from model_store.identity import space_of
from model_store.manifest import ENCODERS, Precision
from model_store.precisions.variants import COSINE_FLOOR, FP32_RELATIVE_L2_MAX
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Artifact, Store
from model_store.towers import open_dense_tower
from training.exporting.export import (
    ExportSource,
    export_model,
    fingerprints_of,
    provenance,
)
from training.exporting.graphs import ImageGraph, TextGraph
from training.importing.importer import image_spec_of
from training.importing.openclip_weights import find_weights, load_model
from training.importing.tokenizer_import import import_tokenizer
from training.tiny import MERGES, build_tiny_artifact, merges_prefix, tiny_config, write_tiny_source

pytestmark = [pytest.mark.torch, pytest.mark.slow]

STRUCTURE = "tiny for tests"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Every precision of the tiny model, built once."""
    return build_tiny_artifact(tmp_path_factory.mktemp("store"), precisions=("fp32", "fp16", "int8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    folder = write_tiny_source(tmp_path_factory.mktemp("source"))
    model = load_model(find_weights(f"local-dir:{folder}", None))
    spec = image_spec_of(model)
    text = TextGraph(model).eval()
    tokenizer = import_tokenizer(
        tiny_config()["text_cfg"],
        file=folder / "merges.txt",
        context_length=text.context_length,
        table_rows=text.vocab_size,
        dynamic_length=text.dynamic_length,
    )
    return ExportSource(
        image=ImageGraph(model.visual, spec.mean, spec.std).eval(),
        text=text,
        image_spec=spec,
        text_spec=tokenizer.spec,
        tokenizer=tokenizer.data,
        structure=STRUCTURE,
        logit_scale=10.0,
        activation="softmax",
        templates=("{}",),
        provenance=provenance(
            source="test", architecture="tiny", activation="gelu", structure=STRUCTURE, licence="Apache-2.0"
        ),
    )


def test_every_variant_reproduces_the_goldens(artifact: Artifact) -> None:
    artifact.verify()
    goldens = Goldens(artifact)
    goldens.check_pixels()
    goldens.check_tokens(artifact.tokenizer())
    built = [(graph.role, graph.precision) for graph in artifact.manifest.graphs]
    assert {("image_encoder", "fp32"), ("text_encoder", "fp32"), ("image_encoder", "int8")} <= set(built)
    for graph in artifact.manifest.graphs:
        if graph.role in ENCODERS and graph.precision != "fp16":  # can crash this process; measured in a child
            goldens.check_vectors(graph.role, graph.precision, open_graph(artifact, graph))
    Proof(artifact).check_dense(open_dense_tower(artifact, "fp32", SessionSettings()))


def test_what_is_missing_is_explained(artifact: Artifact) -> None:
    built = {(graph.role, graph.precision) for graph in artifact.manifest.graphs}
    skipped = {(variant.role, variant.precision): variant.reason for variant in artifact.manifest.skipped}
    wanted: list[Precision] = ["fp32", "fp16", "int8"]
    for role in ("image_encoder", "text_encoder"):
        for precision in wanted:
            assert ((role, precision) in built) != ((role, precision) in skipped)


def test_fidelity_is_recorded_and_meets_its_floor(artifact: Artifact) -> None:
    for graph in artifact.manifest.graphs:
        assert graph.fidelity is not None
        assert graph.fidelity.n > 40
        if graph.precision == "fp32":
            assert graph.fidelity.centred_relative_l2 <= FP32_RELATIVE_L2_MAX
        else:
            assert graph.fidelity.cosine_min >= COSINE_FLOOR[graph.precision]
            assert graph.fidelity.centred_relative_l2 > FP32_RELATIVE_L2_MAX / 1e3, "not another number format at all"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_does_not_depend_on_its_company(artifact: Artifact, precision: Precision) -> None:
    found = artifact.graph_spec("image_encoder", precision)
    assert found is not None
    assert found[1].batch_invariant
    graph = open_graph(*found)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 48, 48, 3)).astype(np.uint8)
    pixels[7] = 255  # company with an extreme range: what moves dynamic int8
    together = graph(pixels)
    for size in (1, 2, 7, 31):
        apart = np.concatenate([graph(pixels[start : start + size]) for start in range(0, 32, size)])
        assert np.abs(apart - together).max() <= 1e-6 * np.abs(together).max()


def test_text_is_exact_at_every_cut(artifact: Artifact, source: ExportSource) -> None:
    found = artifact.graph_spec("text_encoder", "fp32")
    assert found is not None
    graph, tokenizer = open_graph(*found), artifact.tokenizer()
    row = tokenizer.encode("a photo of a red shoe")
    full = graph(tokenizer.pad([row], 24))
    for length in range(len(row), 24):
        assert np.abs(graph(tokenizer.pad([row], length)) - full).max() <= 1e-5 * np.abs(full).max()


def test_files_carry_no_trace_of_the_machine(artifact: Artifact) -> None:
    for entry in artifact.manifest.files:
        data = (artifact.folder / entry.path).read_bytes()
        assert str(Path(open_clip.__file__).parent).encode() not in data, entry.path
        assert str(Path(__file__).parents[2]).encode() not in data, entry.path
        assert b"pkg.torch" not in data, entry.path


def test_fingerprints_follow_weights_specs_and_structure(source: ExportSource) -> None:
    first = fingerprints_of(source)
    structure = fingerprints_of(replace(source, structure="quickgelu"))
    assert (structure.image != first.image, structure.text != first.text) == (True, True)
    bilinear = source.image_spec.model_copy(update={"interpolation": "bilinear"})
    spec = fingerprints_of(replace(source, image_spec=bilinear))
    assert (spec.image != first.image, spec.text != first.text) == (True, False)
    tokenizer = fingerprints_of(replace(source, tokenizer=source.tokenizer + b" "))
    assert (tokenizer.image != first.image, tokenizer.text != first.text) == (False, True)
    weights = dict(source.image.state_dict())
    weights["visual.proj"] = weights["visual.proj"] + 1e-6
    changed = fingerprints_of(replace(source, image_weights=weights))
    assert (changed.image != first.image, changed.text != first.text) == (True, False)
    assert len({space_of(f) for f in (first, structure, spec, tokenizer, changed)}) == 5


class Noisy(nn.Module):
    """A module whose exported graph cannot be what torch answered: dropout left on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.dropout(self.inner(pixels), p=0.01, training=not torch.compiler.is_exporting())


def test_a_graph_that_is_not_the_model_is_refused(source: ExportSource, tmp_path: Path) -> None:
    store = Store(tmp_path, builtin=False)
    with pytest.raises(
        ExportRefused, match=r"image_encoder: the fp32 graph is not the torch model: centred relative L2"
    ):
        export_model(replace(source, image=Noisy(source.image).eval()), name="tiny", store=store, precisions=["fp32"])
    assert store.list() == []
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"lock"}  # of the store, which stays


class Loud(nn.Module):
    """Every layer's input has two huge channels that no weight reads: fp32 ignores them, an int8 scale cannot."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(48, 32)
        self.layers = nn.ModuleList([nn.Linear(34, 32, bias=False) for _ in range(6)])
        for layer in self.layers:
            nn.init.zeros_(layer.get_parameter("weight")[:, 32:])
        self.last = nn.Linear(32, 32, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.tanh(self.first(pixels.float().mean(dim=(1, 3)) / 255))
        loud = x.new_tensor([1000.0, -1000.0]).expand(x.shape[0], 2)
        for layer in self.layers:
            x = torch.tanh(4 * layer(torch.cat([x, loud], dim=1)))
        return self.last(x)


def test_a_variant_below_its_floor_is_left_out_with_the_numbers(source: ExportSource, tmp_path: Path) -> None:
    store = Store(tmp_path, builtin=False)
    artifact = export_model(replace(source, image=Loud().eval()), name="loud", store=store, precisions=["int8"])
    reasons = {(v.role, v.precision): v.reason for v in artifact.manifest.skipped}
    reason = reasons["image_encoder", "int8"]
    assert "min cosine" in reason
    assert "the floor is 0.995" in reason
    assert artifact.graph_spec("image_encoder", "int8") is None
    assert not (artifact.folder / "image_encoder.int8.onnx").exists()
    artifact.verify()


@pytest.mark.long
def test_sigmoid_models_keep_scale_and_bias(tmp_path: Path) -> None:
    artifact = build_tiny_artifact(tmp_path, sigmoid=True, precisions=("fp32",))
    assert artifact.manifest.activation == "sigmoid"
    assert artifact.manifest.logit_bias == -10.0
    assert artifact.manifest.logit_scale == pytest.approx(1 / 0.07)


def test_the_committed_fixture_is_what_the_generator_makes(artifact: Artifact) -> None:
    fixture = Store(Path(__file__).parents[1] / "fixtures" / "tiny_store", builtin=False).open("tiny")
    assert fixture.manifest.fingerprint == artifact.manifest.fingerprint
    goldens = Goldens(fixture)
    for role in ("image_encoder", "text_encoder"):
        found = artifact.graph_spec(role, "fp32")
        assert found is not None
        key = "image_embeds" if role == "image_encoder" else "text_embeds"
        assert measure(open_graph(*found)(goldens.inputs(role)), goldens.arrays[key]).centred_relative_l2 < 1e-4
    assert fixture.read("tokenizer/merges.txt") == merges_prefix(MERGES)
