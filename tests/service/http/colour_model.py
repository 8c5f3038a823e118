"""A model whose truth is known: it sees red, green and blue cells, and knows these three words and "no".

Its graphs are written by hand, so that what tests expect of it never comes from the code under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from model_store.golden import dense_tolerance, tolerance_for, write_goldens
from model_store.identity import space_of
from model_store.manifest import (
    DenseSpec,
    Fingerprint,
    GraphSpec,
    ImageSpec,
    Manifest,
    Presence,
    Provenance,
    TensorSpec,
)
from model_store.store import Store, file_entries

LABELS = ["red", "green", "blue"]
TOKENS = {"red": 736, "green": 689, "blue": 65, "no": 871}  # of tiny's tokeniser
DIM, STRIDE, SIDE = 8, 8, 48
PRESENCE = Presence(
    positive_templates=("{}",),
    divide_by="one",
    scale=1.0,
    aggregation="max",
    calibration_slope=10,
    calibration_offset=-10,
    threshold=0.5,
)
DENSE = DenseSpec(
    stride_px=STRIDE, short_px=112, max_long_px=448, sizes="free", pooling="mean", interpolation="bilinear",
    mean=(0, 0, 0), std=(1, 1, 1),
)  # fmt: skip
IMAGE = ImageSpec(
    height_px=SIDE, width_px=SIDE, resize_mode="squash", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)


def colour_vectors(pixels: np.ndarray) -> np.ndarray:
    """Cells of [B, H, W, 3]: twice the mean of max(0, 2 * colour - sum of all) on three axes, .3 on the last."""
    levels = pixels.astype(np.float32) / 255
    pure = np.maximum(2 * levels - levels.sum(-1, keepdims=True), 0)
    batch, height, width, _ = pixels.shape
    cells = pure.reshape(batch, height // STRIDE, STRIDE, width // STRIDE, STRIDE, 3).mean((2, 4))
    vectors = np.zeros((*cells.shape[:3], DIM), dtype=np.float32)
    vectors[..., :3], vectors[..., 7] = 2 * cells, 0.3
    return vectors


def word_vectors(ids: np.ndarray) -> np.ndarray:
    return word_table()[ids].sum(1)


def word_table() -> np.ndarray:
    table = np.zeros((1014, DIM), dtype=np.float32)
    for axis, word in enumerate(LABELS):
        table[TOKENS[word], axis] = 1
    table[TOKENS["no"], :4] = (-0.5, -0.5, -0.5, 0.5)
    return table


def image_graph(path: Path, *, dense: bool) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    sides = ["height", "width"] if dense else [SIDE, SIDE]
    weights = np.zeros((DIM, 3, 1, 1), dtype=np.float32)
    weights[:3, :, 0, 0] = 2 * np.eye(3)
    bias = np.zeros(DIM, dtype=np.float32)
    bias[7] = 0.3
    nodes = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=types.FLOAT),
        helper.make_node("Mul", ["levels", "share"], ["shares"]),
        helper.make_node("Transpose", ["shares"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "pure_weights"], ["purity"]),
        helper.make_node("Relu", ["purity"], ["pure"]),
        helper.make_node("AveragePool", ["pure"], ["cells"], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2),
        helper.make_node("Conv", ["cells", "weights", "bias"], ["mapped"]),
        helper.make_node("Transpose", ["mapped"], ["dense_embeds"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["dense_embeds", "grid"], ["image_embeds"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("image_embeds", types.FLOAT, ["batch", DIM])]
    if dense:
        outputs.insert(0, helper.make_tensor_value_info("dense_embeds", types.FLOAT, ["batch", "rows", "columns", DIM]))
    initial = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in {
            "share": np.float32(1 / 255),
            "pure_weights": (2 * np.eye(3, dtype=np.float32) - 1)[:, :, None, None],
            "weights": weights,
            "bias": bias,
            "grid": np.array([1, 2], dtype=np.int64),
        }.items()
    ]
    pixels = helper.make_tensor_value_info("pixels", types.UINT8, ["batch", *sides, 3])
    save(path, helper.make_graph(nodes, "image", [pixels], outputs, initial))


def text_graph(path: Path) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("ReduceSum", ["words", "places"], ["text_embeds"], keepdims=0),
    ]
    initial = [
        onnx.numpy_helper.from_array(word_table(), "table"),
        onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "places"),
    ]
    ids = helper.make_tensor_value_info("ids", types.INT64, ["batch", "length"])
    output = helper.make_tensor_value_info("text_embeds", types.FLOAT, ["batch", DIM])
    save(path, helper.make_graph(nodes, "text", [ids], [output], initial))


def save(path: Path, graph: Any) -> None:
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)


def graph_spec(role: str, inputs: TensorSpec, *outputs: TensorSpec) -> GraphSpec:
    return GraphSpec(
        role=role, precision="fp32", file=f"{role}.onnx", inputs=(inputs,), outputs=outputs, batch_invariant=True,
        batch_difference=0,
    )  # fmt: skip


def publish(
    store: Path,
    name: str,
    *,
    presence: Presence | None = PRESENCE,
    dense: DenseSpec | None = DENSE,
    activation: Literal["softmax", "sigmoid"] = "softmax",
    logit_bias: float = 0.0,
) -> None:
    """Write the model under `name` into a store that has tiny@1, whose tokeniser it uses."""
    opened = Store(store, builtin=False)
    tiny = opened.open("tiny")
    folder = store / f".staged-{name}"
    folder.mkdir()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_bytes(tiny.read("tokenizer/merges.txt"))
    image_graph(folder / "image_encoder.onnx", dense=False)
    text_graph(folder / "text_encoder.onnx")
    pooled = TensorSpec(name="image_embeds", dtype="float32", shape=("batch", DIM))
    graphs = [
        graph_spec("image_encoder", TensorSpec(name="pixels", dtype="uint8", shape=("batch", SIDE, SIDE, 3)), pooled),
        graph_spec(
            "text_encoder",
            TensorSpec(name="ids", dtype="int64", shape=("batch", "length")),
            TensorSpec(name="text_embeds", dtype="float32", shape=("batch", DIM)),
        ),
    ]
    tolerance = {"fp32": tolerance_for("fp32", None)}
    tolerances = {"image_encoder": tolerance, "text_encoder": tolerance}
    if dense:
        image_graph(folder / "dense_encoder.onnx", dense=True)
        free = TensorSpec(name="pixels", dtype="uint8", shape=("batch", "height", "width", 3))
        cells = TensorSpec(name="dense_embeds", dtype="float32", shape=("batch", "rows", "columns", DIM))
        graphs.append(graph_spec("dense_encoder", free, cells, pooled))
        tolerances["dense_encoder"] = {"fp32": dense_tolerance()}

    def look(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions = colour_vectors(pixels)
        return positions, positions.mean((1, 2))

    write_goldens(
        folder,
        image=(IMAGE, lambda pixels: look(pixels)[1]),
        text=(tiny.tokenizer(), word_vectors),
        dense=(dense, look) if dense else None,
        tolerances=tolerances,  # type: ignore[arg-type]
    )
    fingerprint = Fingerprint(image="1" * 64, text="2" * 64)
    manifest = Manifest(
        format=1, name=name, version=1, kind="base", dim=DIM, image=IMAGE, text=tiny.text_spec, dense=dense,
        graphs=tuple(graphs), logit_scale=10, logit_bias=logit_bias, activation=activation, templates=("{}",),
        presence=presence, fingerprint=fingerprint, space=space_of(fingerprint), files=file_entries(folder),
        provenance=Provenance(source="a test", architecture="colours", activation="other", licence="none",
                              created_utc="2026-01-01T00:00:00Z", tools={}, recipe="test"),
    )  # fmt: skip
    opened.publish(folder, manifest)
