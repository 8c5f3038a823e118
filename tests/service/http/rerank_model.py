"""A reranker whose truth is known, behind the colour model: each word adds the most that any position has of it.

Its graphs are written by hand, so that what tests expect of it never comes from the code under test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from model_store.fidelity import measure
from model_store.golden import (
    RERANK_IDS,
    RERANK_MASK,
    RERANK_POSITIONS,
    DerivationGoldens,
    dense_goldens,
    tolerance_for,
    write_goldens,
)
from model_store.manifest import BaseReference, GraphSpec, Manifest, Provenance, TensorSpec
from model_store.reranking import token_mask
from model_store.store import Store, file_entries
from tests.service.http.colour_model import DENSE, DIM, colour_vectors, save, word_table

SCALE, OFFSET = 3.0, -2.0
TEXTS = ("a red thing", "green and blue", "blue blue blue", "no red")


def logits(positions: np.ndarray, states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[B] of positions [B, rows, columns, D], states [B, L, D] and their mask [B, L]."""
    flat = positions.reshape(len(positions), -1, positions.shape[-1])
    best = np.einsum("bld,bpd->blp", states, flat).max(axis=2)
    return (SCALE * (best * mask).sum(axis=1) + OFFSET).astype(np.float32)


def token_graph(path: Path) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Gather", ["table", "ids"], ["text_tokens"])]
    ids = helper.make_tensor_value_info("ids", types.INT64, ["batch", "length"])
    output = helper.make_tensor_value_info("text_tokens", types.FLOAT, ["batch", "length", DIM])
    table = onnx.numpy_helper.from_array(word_table(), "table")
    save(path, helper.make_graph(nodes, "tokens", [ids], [output], [table]))


def match_graph(path: Path) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    constants = {
        "flat": np.array([0, -1, DIM], dtype=np.int64),
        "last": np.array([2], dtype=np.int64),
        "tokens": np.array([1], dtype=np.int64),
        "scale": np.float32(SCALE),
        "offset": np.float32(OFFSET),
    }
    nodes = [
        helper.make_node("Reshape", ["dense_embeds", "flat"], ["places"]),
        helper.make_node("Transpose", ["places"], ["columns_of"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["text_tokens", "columns_of"], ["likeness"]),
        helper.make_node("ReduceMax", ["likeness", "last"], ["best"], keepdims=0),
        helper.make_node("Cast", ["text_mask"], ["counts"], to=types.FLOAT),
        helper.make_node("Mul", ["best", "counts"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "tokens"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["match"]),
    ]
    inputs = [
        helper.make_tensor_value_info("dense_embeds", types.FLOAT, ["batch", "rows", "columns", DIM]),
        helper.make_tensor_value_info("text_tokens", types.FLOAT, ["batch", "length", DIM]),
        helper.make_tensor_value_info("text_mask", types.INT64, ["batch", "length"]),
    ]
    output = helper.make_tensor_value_info("match", types.FLOAT, ["batch"])
    initial = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    save(path, helper.make_graph(nodes, "match", inputs, [output], initial))


def graphs() -> tuple[GraphSpec, GraphSpec]:
    perfect = measure(np.eye(3), np.eye(3))
    ids = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
    states = TensorSpec(name="text_tokens", dtype="float32", shape=("batch", "length", DIM))
    grid = TensorSpec(name="dense_embeds", dtype="float32", shape=("batch", "rows", "columns", DIM))
    mask = TensorSpec(name="text_mask", dtype="int64", shape=("batch", "length"))
    match = TensorSpec(name="match", dtype="float32", shape=("batch",))
    same = {"precision": "fp32", "batch_invariant": True, "batch_difference": 0.0, "fidelity": perfect}
    return (
        GraphSpec(role="token_encoder", file="token_encoder.onnx", inputs=(ids,), outputs=(states,), **same),
        GraphSpec(
            role="reranker",
            file="reranker.onnx",
            inputs=(grid, states, mask),
            outputs=(match,),
            chain={"fp32": perfect},
            **same,
        ),
    )


def publish(store: Path, name: str, *, base: str = "colours") -> None:
    """Write the reranker under `name` into a store that has the colour model."""
    opened = Store(store, builtin=False)
    above = opened.open(base)
    tokenizer = above.tokenizer()
    rows = [tokenizer.encode(text) for text in TEXTS]
    ids = tokenizer.pad(rows)
    mask = token_mask([len(row) for row in rows], ids.shape[1])
    states = word_table()[ids]
    outputs = {RERANK_IDS: ids, RERANK_MASK: mask, "token_encoder": states[mask == 1]}
    for key, pixels in dense_goldens(DENSE).items():
        grid = colour_vectors(pixels)[:, ::2, ::2]
        outputs[f"{RERANK_POSITIONS}{key}"] = grid[0]
        outputs[f"reranker.{key}"] = logits(np.repeat(grid, len(ids), axis=0), states, mask)
    folder = store / f".staged-{name}"
    folder.mkdir()
    token_graph(folder / "token_encoder.onnx")
    match_graph(folder / "reranker.onnx")
    write_goldens(
        folder,
        image=None,
        text=None,
        tolerances={"token_encoder": {"fp32": tolerance_for("fp32", None)}},
        derived=DerivationGoldens(outputs=outputs, match_tolerance=1e-3),
    )
    of = above.manifest
    manifest = Manifest(
        format=1, name=name, version=1, kind="derivation", dim=DIM, image=None, text=None, dense=None,
        base=BaseReference(name=of.name, version=of.version, fingerprint=of.fingerprint),
        graphs=graphs(), logit_scale=of.logit_scale, logit_bias=of.logit_bias, activation=of.activation,
        templates=of.templates, presence=of.presence, fingerprint=of.fingerprint, space=of.space,
        files=file_entries(folder),
        provenance=Provenance(source="a test", architecture="colours", activation="other", licence="none",
                              created_utc="2026-01-01T00:00:00Z", tools={}, recipe="test"),
    )  # fmt: skip
    opened.publish(folder, manifest)
