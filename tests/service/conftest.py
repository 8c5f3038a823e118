"""Stores for service tests: the generated tiny artifact, and one whose graph does not end on a certain picture."""

import shutil
from pathlib import Path

import pytest

from model_store.manifest import Manifest
from model_store.store import file_entries

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
HANGING_LEVEL = 200  # an evenly grey picture of this level makes the looping graph loop


@pytest.fixture
def tiny_store(tmp_path: Path) -> Path:
    """A writable store folder with tiny@1."""
    return Path(shutil.copytree(TINY_STORE, tmp_path / "store"))


@pytest.fixture
def looping_store(tiny_store: Path, request: pytest.FixtureRequest) -> Path:
    """tiny@1 whose image graph runs a loop of many turns when a batch is evenly grey of HANGING_LEVEL.

    `@pytest.mark.parametrize("looping_store", [turns], indirect=True)` sets the number of turns.
    """
    onnx = pytest.importorskip("onnx")
    add_loop(onnx, tiny_store / "tiny" / "1" / "image_encoder.fp32.onnx", turns=getattr(request, "param", 10**12))
    update_manifest(tiny_store / "tiny" / "1", name="tiny")
    return tiny_store


@pytest.fixture
def endless_store(tiny_store: Path) -> Path:
    """tiny@1, and beside it endless@1, whose image graph does not end on any picture: it can never be opened."""
    onnx = pytest.importorskip("onnx")
    shutil.copytree(tiny_store / "tiny", tiny_store / "endless")
    folder = tiny_store / "endless" / "1"
    add_loop(onnx, folder / "image_encoder.fp32.onnx", turns=10**12, ordinary_turns=10**12)
    update_manifest(folder, name="endless")
    return tiny_store


def update_manifest(folder: Path, *, name: str) -> None:
    """Make the manifest say what is in the folder now."""
    path = folder / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_bytes())
    path.write_text(manifest.model_copy(update={"name": name, "files": file_entries(folder)}).model_dump_json())


def add_loop(onnx, path: Path, *, turns: int, ordinary_turns: int = 1) -> None:  # type: ignore[no-untyped-def]
    """Append an ONNX Loop behind the embedding: `turns` for the grey picture, `ordinary_turns` for others."""
    helper, types = onnx.helper, onnx.TensorProto
    model = onnx.load(path)
    graph = model.graph
    name = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["loop_start" if output == name else output for output in node.output]
    state = helper.make_tensor_value_info("state", types.FLOAT, None)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["turned"]),
            helper.make_node("Mul", ["turned", "zero"], ["nothing"]),
            helper.make_node("Add", ["state", "nothing"], ["next_state"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn_number", types.INT64, []),
            helper.make_tensor_value_info("go", types.BOOL, []),
            state,
        ],
        [
            helper.make_tensor_value_info("go_on", types.BOOL, []),
            helper.make_tensor_value_info("next_state", types.FLOAT, None),
        ],
        initializer=[helper.make_tensor("zero", types.FLOAT, [], [0.0])],
    )
    graph.initializer.extend(
        [
            helper.make_tensor("grey_level", types.INT32, [], [HANGING_LEVEL]),
            helper.make_tensor("few_turns", types.INT64, [], [ordinary_turns]),
            helper.make_tensor("many_turns", types.INT64, [], [turns]),
            helper.make_tensor("always", types.BOOL, [], [True]),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", [graph.input[0].name], ["levels"], to=types.INT32),
            helper.make_node("ReduceMax", ["levels"], ["highest"], keepdims=0),
            helper.make_node("ReduceMin", ["levels"], ["lowest"], keepdims=0),
            helper.make_node("Equal", ["highest", "grey_level"], ["highest_is_grey"]),
            helper.make_node("Equal", ["lowest", "grey_level"], ["lowest_is_grey"]),
            helper.make_node("And", ["highest_is_grey", "lowest_is_grey"], ["is_grey"]),
            helper.make_node("Where", ["is_grey", "many_turns", "few_turns"], ["turns"]),
            helper.make_node("Loop", ["turns", "always", "loop_start"], [name], body=body),
        ]
    )
    onnx.save(model, path)
