"""A conditional head on its way to an artifact: written with both of its inputs free, and measured against torch.

A row of its answer belongs to one picture and a column to one text, so three things must change neither: which pictures
come along, which texts do, and how far texts are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_store.errors import ExportRefused, GraphError
from model_store.fidelity import measure
from model_store.graph import Graph
from model_store.manifest import GraphSpec, TensorSpec
from model_store.modality.text import Tokenizer
from model_store.precisions.measure import INVARIANCE_TOLERANCE, MeasuredRows
from model_store.precisions.variants import FP32_RELATIVE_L2_MAX
from model_store.probe import probe
from model_store.towers import ConditionalHead, blocks, normalized
from training.exporting.derived_graphs import Built, Measured, Way, finished
from training.exporting.graphs import MAX_BATCH, export_program, save_program

FILE = "conditional_head.fp32.onnx"
_TEXTS = ("a red shoe", "日本語のテキスト", "", "a cat", "two dogs beside a fence and a tree " * 9)
_OTHERS = 16  # pictures beside the golden ones; each is read with every text
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class ConditionalSource:
    """A module in eval mode: unit image vectors float32 [B, D] and ids int64 [C, L] -> logits [B, C].

    L is free up to `context_length`. The logits are what softmax takes: the module knows the factor.
    """

    module: nn.Module
    context_length: int


def conditional_texts(tokenizer: Tokenizer) -> MeasuredRows:
    """What a conditional head is measured and proven on."""
    rows = [tokenizer.encode(text) for text in _TEXTS]
    return MeasuredRows(
        padded=tokenizer.pad(rows, tokenizer.spec.context_length), lengths=tuple(len(row) for row in rows)
    )


def build_conditional(source: ConditionalSource, way: Way, texts: MeasuredRows, folder: Path) -> Built:
    """Write and measure a conditional head behind `way`, on some texts.

    Raises:
        ExportRefused: its graph is not the module, or company or padding changes an answer.
    """
    count, ids = way.goldens + _OTHERS, texts.padded
    measured: Measured = {precision: vectors[:count] for precision, vectors in way.measured.items()}
    vectors = normalized(way.reference[:count])
    reference = _torch_logits(source, vectors, ids)
    draft = _written(source, vectors.shape[1], folder)
    try:
        probe(folder / draft.file, draft, feeds={"image_embeds": vectors[:1], "ids": ids[:1]})
        head = ConditionalHead(Graph.open(folder / draft.file, draft))
    except GraphError as error:
        raise ExportRefused(f"conditional_head: {error}") from error
    fidelity = measure(head.in_blocks(vectors, ids), reference)
    if not fidelity.centred_relative_l2 <= FP32_RELATIVE_L2_MAX:
        raise ExportRefused(
            f"conditional_head is not the torch model: centred relative L2 {fidelity.centred_relative_l2:.2e}, "
            f"at most {FP32_RELATIVE_L2_MAX:.0e} is allowed"
        )
    difference = _difference(head, vectors[: way.goldens], texts)
    if difference > INVARIANCE_TOLERANCE["fp32"]:
        raise ExportRefused(
            f"conditional_head: company or padding moves a row of logits by {difference:.2e} of its length, at most "
            f"{INVARIANCE_TOLERANCE['fp32']:.0e} is allowed"
        )
    graph = draft.model_copy(update={"batch_difference": difference, "fidelity": fidelity})
    logits: Measured = {precision: head.in_blocks(each, ids) for precision, each in measured.items()}
    return finished(graph, Way(goldens=way.goldens, reference=reference, measured=logits))


def _torch_logits(
    source: ConditionalSource, vectors: NDArray[np.float32], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The module's own answers, float32 [N, C], padding uncut."""
    if source.module.training:
        raise ExportRefused("conditional_head is in training mode: call eval() first")
    logits = np.empty((len(vectors), len(ids)), dtype=np.float32)
    for pictures, texts in blocks(*logits.shape, rows=_ROWS):
        try:
            with torch.inference_mode():
                found = source.module(torch.from_numpy(vectors[pictures]), torch.from_numpy(ids[texts]))
        except RuntimeError as error:
            raise ExportRefused(
                f"conditional_head does not take vectors [B, {vectors.shape[1]}] and ids: {error}"
            ) from error
        if found.shape != logits[pictures, texts].shape or not torch.isfinite(found).all():
            raise ExportRefused(f"conditional_head gives shape {list(found.shape)}, or values that are not finite")
        logits[pictures, texts] = found.float().numpy()
    return logits


def _written(source: ConditionalSource, dim: int, folder: Path) -> GraphSpec:
    module, names = source.module, ("batch", "labels")
    batch, labels = (torch.export.Dim(name, min=1, max=MAX_BATCH) for name in names)
    length = torch.export.Dim("length", min=1, max=source.context_length)
    program = export_program(
        module,
        {"image_embeds": torch.ones(2, dim), "ids": torch.ones(3, 4, dtype=torch.int64)},
        output_names=("logits",),
        free_axes=[{0: batch}, {0: labels, 1: length}],
    )
    files = save_program(program, module, folder / FILE)
    return GraphSpec(
        role="conditional_head",
        precision="fp32",
        file=files[0].name,
        external_files=tuple(path.name for path in files[1:]),
        inputs=(
            TensorSpec(name="image_embeds", dtype="float32", shape=("batch", dim)),
            TensorSpec(name="ids", dtype="int64", shape=("labels", "length")),
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=names),),
        batch_invariant=True,
        batch_difference=0.0,
        normalized_input=True,
    )


def _difference(head: ConditionalHead, vectors: NDArray[np.float32], texts: MeasuredRows) -> float:
    """How far a logit moves, in lengths of its picture's row: a picture alone, and a text alone without padding."""
    together = head(vectors, texts.padded)
    cut = [head(vectors, texts.batch([at])) for at in range(len(texts.padded))]
    alone = np.concatenate([head(vectors[at : at + 1], texts.padded) for at in range(len(vectors))])
    sizes = np.maximum(np.linalg.norm(together, axis=1, keepdims=True), 1e-12)
    return max(float(np.abs((other - together) / sizes).max()) for other in (np.concatenate(cut, axis=1), alone))
