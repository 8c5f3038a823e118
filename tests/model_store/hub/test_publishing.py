"""Foreign layouts become artifacts whose vectors are the torch model's, through the doors that serving uses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_store.artifact import Artifact
from model_store.errors import ExportRefused
from model_store.fidelity import measure
from model_store.hub.checks import shipped_pairs
from model_store.hub.folder import FolderRepository
from model_store.hub.publishing import publish_foreign
from model_store.hub.pulling import download, plan_pull
from model_store.hub.scale import ScaleFound
from model_store.manifest import Role
from model_store.modality.image import decode, prepare
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import normalized, open_tower

pytest.importorskip("torch")
from tests.model_store.hub.layouts import immich, pairs, transformers_layouts  # noqa: E402
from tests.model_store.hub.layouts.captions import taught_captions  # noqa: E402
from tests.model_store.hub.layouts.exporting import move_weights  # noqa: E402
from tests.model_store.hub.layouts.source_models import SourceModel, tiny_clip, tiny_siglip, vit_b_32  # noqa: E402

pytestmark = pytest.mark.torch

Write = Callable[[Path, SourceModel], None]
MODELS: dict[str, Callable[..., SourceModel]] = {"clip": tiny_clip, "siglip": tiny_siglip}
LAYOUTS: dict[str, Write] = {
    "immich_v1": immich.write_immich_v1,
    "immich_v2": immich.write_immich_v2,
    "split": transformers_layouts.write_transformersjs_split,
    "joint": transformers_layouts.write_transformersjs_joint,
    "optimum": transformers_layouts.write_optimum,
    "flat": pairs.write_flat_pair,
}
JOINT_OUTSIDE = "joint_outside"
"""The joint graph with its weights beside it."""
CENTRED_MAX = 1e-4


@cache
def source_of(model: str) -> SourceModel:
    return taught_captions(MODELS[model]())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A model in a layout, in a folder that is only read: each is exported once."""

    @cache
    def write(layout: str, model: str) -> Path:
        folder = tmp_path_factory.mktemp("written")
        if layout == JOINT_OUTSIDE:
            shutil.copytree(write("joint", model), folder, dirs_exist_ok=True)
            move_weights(folder / "onnx" / "model.onnx", "model.onnx_data")
        else:
            LAYOUTS[layout](folder, source_of(model))
        return folder

    return write


@pytest.fixture
def copied(written: Callable[[str, str], Path], tmp_path: Path) -> Callable[[str, str], None]:
    """Write a model in a layout into the folder of this test, to be changed there."""
    return lambda layout, model: shutil.copytree(written(layout, model), tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def pulled(
    written: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Artifact]:
    """The artifact that a model in a layout becomes in fp32, made once."""
    return cache(lambda layout, model: published(written(layout, model), tmp_path_factory.mktemp("store")))


def no_scale(_: object) -> ScaleFound:
    return ScaleFound(scale=None, bias=None, source="nobody was asked")


def published(folder: Path, store: Path, **options: Any) -> Artifact:
    plan = plan_pull(FolderRepository(folder), other=options.pop("other", None))
    return publish_foreign(
        download(plan, find_scale=no_scale), name="pulled", store=Store(store, builtin=False), **options
    )


def vectors(artifact: Artifact, role: Role, inputs: NDArray[Any], precision: Any = "fp32") -> NDArray[np.float32]:
    """Unit vectors, one row at a time where the graph takes no more."""
    tower = open_tower(artifact, role, precision, SessionSettings())
    step = len(inputs) if isinstance(tower.encoder.spec.inputs[0].shape[0], str) else 1
    return normalized(np.concatenate([tower(inputs[i : i + step]) for i in range(0, len(inputs), step)]))


def distances(artifact: Artifact, source: SourceModel) -> tuple[float, float]:
    """Centred relative distances of (images, texts) from the torch model through open_clip's own preprocessing."""
    shown = shipped_pairs()
    spec = artifact.image_spec
    assert spec
    pixels = np.stack([prepare(decode(data), spec) for data in shown.pictures])
    pictures = [Image.open(BytesIO(data)).convert("RGB") for data in shown.pictures]
    texts = [*shown.captions[:8], "a red shoe", "Two dogs, one ball", "it's 12:30 — don't panic!"]
    images = measure(vectors(artifact, "image_encoder", pixels), normalized(source.image_vectors(pictures)))
    ids = artifact.tokenizer()(texts)
    words = measure(vectors(artifact, "text_encoder", ids), normalized(source.text_vectors(texts)))
    return images.centred_relative_l2, words.centred_relative_l2


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        pytest.param(layout, model, marks=[pytest.mark.long] if model == "siglip" and layout != "split" else [])
        for layout in (*LAYOUTS, JOINT_OUTSIDE)
        for model in MODELS
    ],
)
def test_every_layout_is_the_torch_model(pulled: Callable[[str, str], Artifact], model: str, layout: str) -> None:
    source, artifact = source_of(model), pulled(layout, model)
    images, texts = distances(artifact, source)
    assert images < CENTRED_MAX
    assert texts < CENTRED_MAX
    manifest = artifact.manifest
    assert manifest.provenance.verified == "wrapped"
    assert manifest.metrics["wrapped/captions recall@1"] == 1
    assert all(graph.batch_invariant and graph.inputs[0].shape[0] == "batch" for graph in manifest.graphs)
    assert [graph.inputs[0].dtype for graph in manifest.graphs] == ["uint8", "int64"]
    # Texts run at their own length where padding says nothing and the graph's length is free.
    assert manifest.text
    assert manifest.text.dynamic_length == (
        model == "clip" and layout in ("split", "joint", "joint_outside", "optimum")
    )
    artifact.verify()
    proof = Proof(artifact)
    proof.check_inputs(artifact.tokenizer())
    for role in ("image_encoder", "text_encoder"):
        proof.check_tower(role, open_tower(artifact, role, "fp32", SessionSettings()), {}, batch_size=3)


@pytest.mark.parametrize("model", MODELS)
def test_a_joint_graph_brings_its_scale(pulled: Callable[[str, str], Artifact], model: str) -> None:
    source, manifest = source_of(model), pulled("joint", model).manifest
    assert manifest.logit_scale == pytest.approx(source.logit_scale, rel=1e-4)
    assert manifest.logit_bias == pytest.approx(source.logit_bias or 0.0, rel=1e-4)
    assert manifest.activation == ("softmax" if source.logit_bias is None else "sigmoid")
    assert "joint graph" in manifest.scale_source


def test_without_a_scale_scores_are_cosines(pulled: Callable[[str, str], Artifact]) -> None:
    manifest = pulled("split", "clip").manifest
    assert (manifest.logit_scale, manifest.activation) == (None, "none")
    assert manifest.scale_source == "nobody was asked"


def test_normalised_graphs_give_vectors_of_any_length_again(pulled: Callable[[str, str], Artifact]) -> None:
    """immich's graphs end in a division by the length; the value before it is what is served."""
    artifact = pulled("immich_v2", "clip")
    assert not any(graph.normalized_output for graph in artifact.manifest.graphs)
    spec = artifact.image_spec
    assert spec
    pixels = np.stack([prepare(decode(data), spec) for data in shipped_pairs().pictures[:4]])
    tower = open_tower(artifact, "image_encoder", "fp32", SessionSettings())
    lengths = np.linalg.norm(tower(pixels), axis=1)
    assert np.ptp(lengths) > 1e-3


def test_towers_of_two_repositories_are_one_model(tmp_path: Path) -> None:
    source = source_of("clip")
    for name in ("vision", "text"):
        (tmp_path / name).mkdir()
    pairs.write_fastembed_pair(tmp_path / "vision", tmp_path / "text", source)
    with pytest.raises(ExportRefused, match="image tower alone.*--with"):
        published(tmp_path / "vision", tmp_path / "store")
    artifact = published(tmp_path / "vision", tmp_path / "store", other=FolderRepository(tmp_path / "text"))
    assert max(distances(artifact, source)) < CENTRED_MAX
    assert artifact.manifest.provenance.repository == "vision and text"


def test_int8_is_calibrated_without_torch_and_measured(written: Callable[[str, str], Path], tmp_path: Path) -> None:
    manifest = published(written("immich_v1", "clip"), tmp_path / "store", precisions=("fp32", "int8")).manifest
    int8 = manifest.graph("image_encoder", "int8")
    assert int8
    assert int8.fidelity
    assert int8.fidelity.cosine_min >= 0.995
    assert int8.batch_invariant
    assert [skipped.role for skipped in manifest.skipped] in ([], ["text_encoder"])


def test_random_towers_are_refused(tmp_path: Path) -> None:
    LAYOUTS["split"](tmp_path, tiny_clip(seed=7))
    with pytest.raises(ExportRefused, match=r"24 photographs and captions, \d+% find each other"):
        published(tmp_path, tmp_path / "store")
    assert not Store(tmp_path / "store", builtin=False).list()


def test_a_graph_without_its_projection_is_refused(tmp_path: Path) -> None:
    transformers_layouts.write_optimum_unprojected(tmp_path, source_of("clip"))
    with pytest.raises(ExportRefused, match="before its projection"):
        published(tmp_path, tmp_path / "store")


@pytest.mark.parametrize(("weights", "graph"), [(True, False), (False, True)])
def test_the_wrong_gelu_is_refused(tmp_path: Path, weights: bool, graph: bool) -> None:
    """The configuration says what the weights need; the graph shows what it computes."""
    transformers_layouts.write_transformersjs_split(tmp_path, taught_captions(tiny_clip(quick_gelu=graph)))
    config = tmp_path / "config.json"
    text = config.read_text()
    given, wanted = ("quick_gelu", "gelu") if graph else ("gelu", "quick_gelu")
    assert f'"{given}"' in text
    config.write_text(text.replace(f'"{given}"', f'"{wanted}"'))
    named = "QuickGELU" if weights else "GELU"
    with pytest.raises(ExportRefused, match=f"trained with {named}, but the graphs compute"):
        published(tmp_path, tmp_path / "store")


SWAPPED = {"mean": [0.26862954, 0.26130258, 0.27577711], "std": [0.48145466, 0.4578275, 0.40821073]}


@pytest.mark.parametrize("change", [{"mean": [0.1] * 3}, SWAPPED, {"resize_mode": "squash"}])
def test_wrong_preprocessing_loses_the_captions(
    copied: Callable[[str, str], None], tmp_path: Path, change: dict[str, Any]
) -> None:
    """Nothing in a graph tells its mean or its resize: photographs that no longer find their captions do."""
    copied("immich_v1", "clip")
    file = tmp_path / "visual" / "preprocess_cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ExportRefused, match="find each other"):
        published(tmp_path, tmp_path / "store")


def test_renamed_outputs_are_not_guessed(copied: Callable[[str, str], None], tmp_path: Path) -> None:
    copied("joint", "clip")
    path = tmp_path / "onnx" / "model.onnx"
    model = onnx.load(path)
    for output in model.graph.output:
        for node in model.graph.node:
            for index, name in enumerate(node.output):
                if name == output.name:
                    node.output[index] = f"other_{name}"
            for index, name in enumerate(node.input):
                if name == output.name:
                    node.input[index] = f"other_{name}"
        output.name = f"other_{output.name}"
    onnx.save(model, path)
    with pytest.raises(ExportRefused, match="none of them is known as the image vector"):
        published(tmp_path, tmp_path / "store")


def test_a_batch_that_cannot_be_freed_is_run_row_by_row(copied: Callable[[str, str], None], tmp_path: Path) -> None:
    """A Reshape that mixes rows with channels keeps its batch of one, and its vectors stay right."""
    source = source_of("clip")
    copied("immich_v1", "clip")
    path = tmp_path / "visual" / "model.onnx"
    model = onnx.load(path)
    size = 3 * 32 * 32
    for name, shape in (("flat", [size]), ("back", [1, 3, 32, 32])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), f"shape.{name}"))
    taken = model.graph.input[0].name
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == taken:
                node.input[index] = "mixed"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(size), "order"))
    for offset, node in enumerate(
        (
            onnx.helper.make_node("Reshape", [taken, "shape.flat"], ["flattened"]),
            onnx.helper.make_node("Gather", ["flattened", "order"], ["gathered"], axis=0),
            onnx.helper.make_node("Reshape", ["gathered", "shape.back"], ["mixed"]),
        )
    ):
        model.graph.node.insert(offset, node)
    onnx.save(model, path)
    artifact = published(tmp_path, tmp_path / "store")
    graph = artifact.manifest.graph("image_encoder", "fp32")
    assert graph
    assert (graph.inputs[0].shape[0], graph.batch_invariant) == (1, False)
    assert max(distances(artifact, source)) < CENTRED_MAX


@pytest.mark.slow
@pytest.mark.long
def test_the_towers_of_vit_b_32(tmp_path: Path) -> None:
    """Of batch 1, the hardest layout, with the first layer only: all twelve passed too, split and joint as well."""
    source = taught_captions(vit_b_32(layers=1))
    LAYOUTS["immich_v1"](tmp_path, source)
    artifact = published(tmp_path, tmp_path / "store")
    assert max(distances(artifact, source)) < CENTRED_MAX
    assert all(graph.inputs[0].shape[0] == "batch" for graph in artifact.manifest.graphs)
