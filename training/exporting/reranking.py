"""A reranker on its way to an artifact: both of its graphs written with free axes, and measured against torch.

What is measured is the whole way as it is served: positions from the base's dense graph (and its adapter) at several
grids, token states from the new token graph. Neither company nor padding may change an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_store.artifact import Artifact
from model_store.errors import ExportRefused, GraphError
from model_store.fidelity import measure
from model_store.golden import (
    GOLDEN_TEXTS,
    RERANK_IDS,
    RERANK_MASK,
    RERANK_POSITIONS,
    Goldens,
    Tolerance,
    tolerance_for,
)
from model_store.graph import Graph
from model_store.manifest import GraphSpec, TensorSpec
from model_store.modality.text import Tokenizer
from model_store.precisions.measure import INVARIANCE_TOLERANCE, MeasuredRows
from model_store.precisions.variants import FP32_RELATIVE_L2_MAX
from model_store.probe import probe
from model_store.reranking import Reranker, TextTokens, token_mask
from model_store.session import SessionSettings
from model_store.towers import open_dense_tower
from training.exporting.graphs import MAX_BATCH, export_program, save_program

TOKENS_FILE, FUSION_FILE = "token_encoder.fp32.onnx", "reranker.fp32.onnx"
MATCH_TOLERANCE = 1e-3
"""What a logit may differ by where an artifact is opened, per unit of the largest golden logit or of 1."""
_EXPORT_SHARE = 0.1  # of that tolerance: other machines round otherwise
_COMPANY = (1, 2, 7)
_LONGEST_GRID = 512
_TEXTS = (*GOLDEN_TEXTS, "a red circle left of a blue square", "a blue circle left of a red square")
F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RerankSource:
    """Two modules in eval mode, as the roles of the artifact format have them.

    tokens: int64 [B, L] -> float32 [B, L, W]. fusion: positions float32 [B, rows, columns, D], token states, and their
    mask int64 [B, L] -> float32 [B]. L is free up to `context_length`, the grid is free.
    side_px: of the square pictures whose positions it was trained on.
    """

    tokens: nn.Module
    fusion: nn.Module
    context_length: int
    side_px: int


@dataclass(frozen=True, kw_only=True)
class BuiltReranker:
    """Both graphs, and what the goldens keep of them."""

    graphs: tuple[GraphSpec, GraphSpec]
    outputs: dict[str, NDArray[Any]]
    token_tolerance: Tolerance
    match_tolerance: float


def build_reranker(source: RerankSource, base: Artifact, tokenizer: Tokenizer, folder: Path) -> BuiltReranker:
    """Write and measure both graphs behind `base`.

    Raises:
        ExportRefused: no dense role, one whose pictures are of another size than training's, a graph that is not its
            module, or a pair whose logit depends on its company.
    """
    pictures = _positions(source, base)
    rows = [tokenizer.encode(text) for text in _TEXTS]
    texts = MeasuredRows(padded=tokenizer.pad(rows), lengths=tuple(len(row) for row in rows))
    mask = token_mask(texts.lengths or (), texts.padded.shape[1])
    states = _answers(source.tokens, "token_encoder", texts.padded)
    reference = {
        name: _answers(source.fusion, "reranker", *_paired(grid, states, mask)) for name, grid in pictures.items()
    }
    token_draft = _write_tokens(source, states.shape[2], folder)
    dim = next(iter(pictures.values())).shape[-1]
    match_draft = _write_fusion(source, dim, states.shape[2], folder)
    reranker = _opened(folder, token_draft, match_draft, texts, mask, pictures, tokenizer)
    token_graph = _measured_tokens(token_draft, reranker, texts, mask, states)
    largest = max(1.0, *(float(np.abs(each).max()) for each in reference.values()))
    match_graph = _measured_matches(match_draft, reranker, texts, mask, pictures, reference, largest)
    thin = {name: grid[::2, ::2] for name, grid in pictures.items()}
    outputs: dict[str, NDArray[Any]] = {RERANK_IDS: texts.padded, RERANK_MASK: mask, "token_encoder": states[mask == 1]}
    outputs |= {f"{RERANK_POSITIONS}{name}": grid for name, grid in thin.items()}
    outputs |= {
        f"reranker.{name}": _answers(source.fusion, "reranker", *_paired(grid, states, mask))
        for name, grid in thin.items()
    }
    return BuiltReranker(
        graphs=(token_graph, match_graph),
        outputs=outputs,
        token_tolerance=tolerance_for("fp32", token_graph.fidelity),
        match_tolerance=MATCH_TOLERANCE * largest,
    )


def _positions(source: RerankSource, base: Artifact) -> dict[str, F32]:
    """Of the base's dense golden pictures, [rows, columns, D] each, as the artifact will give them."""
    spec, owner = base.dense_spec, base.owner("dense_encoder")
    if spec is None or owner is None:
        raise ExportRefused(f"{base.reference} has no dense_encoder, whose positions a reranker reads")
    if (side := spec.height_px or spec.short_px) != source.side_px:
        raise ExportRefused(
            f"the reranker was trained on pictures of {source.side_px} px, the dense_encoder of {base.reference} takes "
            f"{side} px"
        )
    tower = open_dense_tower(base, base.served_precision("dense_encoder", "fp32"), SessionSettings())
    return {name: tower(pixels).positions[0] for name, pixels in Goldens(owner).dense_inputs().items()}


def _paired(grid: F32, states: F32, mask: NDArray[np.int64]) -> tuple[F32, F32, NDArray[np.int64]]:
    """One picture with each of the texts."""
    return np.repeat(grid[None], len(states), axis=0), states, mask


def _answers(module: nn.Module, role: str, *inputs: NDArray[Any]) -> F32:
    """The module's own answers, padding uncut."""
    if module.training:
        raise ExportRefused(f"{role} is in training mode: call eval() first")
    try:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in inputs)).float().numpy()
    except RuntimeError as error:
        raise ExportRefused(f"{role} does not take what comes before it: {error}") from error
    if len(found) != len(inputs[0]) or not np.isfinite(found).all():
        raise ExportRefused(f"{role} gives shape {list(found.shape)}, or values that are not finite")
    return found


def _write_tokens(source: RerankSource, width: int, folder: Path) -> GraphSpec:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    length = torch.export.Dim("length", min=1, max=source.context_length)
    program = export_program(
        source.tokens,
        {"ids": torch.ones(3, 4, dtype=torch.int64)},
        output_names=("text_tokens",),
        free_axes=[{0: batch, 1: length}],
    )
    files = save_program(program, source.tokens, folder / TOKENS_FILE)
    return GraphSpec(
        role="token_encoder",
        precision="fp32",
        file=files[0].name,
        external_files=tuple(path.name for path in files[1:]),
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", "length")),),
        outputs=(TensorSpec(name="text_tokens", dtype="float32", shape=("batch", "length", width)),),
        batch_invariant=True,
        batch_difference=0.0,
    )


def _write_fusion(source: RerankSource, dim: int, width: int, folder: Path) -> GraphSpec:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    rows, columns = (torch.export.Dim(name, min=1, max=_LONGEST_GRID) for name in ("rows", "columns"))
    length, same = torch.export.Dim("length", min=1, max=source.context_length), torch.export.Dim.AUTO
    program = export_program(
        source.fusion,
        {
            "dense_embeds": torch.ones(2, 3, 5, dim),
            "text_tokens": torch.ones(2, 4, width),
            "text_mask": torch.ones(2, 4, dtype=torch.int64),
        },
        output_names=("match",),
        # Equal axes of several inputs are named once; the exporter finds by itself that the others are the same.
        free_axes=[{0: batch, 1: rows, 2: columns}, {0: same, 1: length}, {0: same, 1: same}],
    )
    files = save_program(program, source.fusion, folder / FUSION_FILE)
    grid, tokens = ("batch", "rows", "columns", dim), ("batch", "length", width)
    return GraphSpec(
        role="reranker",
        precision="fp32",
        file=files[0].name,
        external_files=tuple(path.name for path in files[1:]),
        inputs=(
            TensorSpec(name="dense_embeds", dtype="float32", shape=grid),
            TensorSpec(name="text_tokens", dtype="float32", shape=tokens),
            TensorSpec(name="text_mask", dtype="int64", shape=("batch", "length")),
        ),
        outputs=(TensorSpec(name="match", dtype="float32", shape=("batch",)),),
        batch_invariant=True,
        batch_difference=0.0,
    )


def _opened(
    folder: Path,
    tokens: GraphSpec,
    fusion: GraphSpec,
    texts: MeasuredRows,
    mask: NDArray[np.int64],
    pictures: dict[str, F32],
    tokenizer: Tokenizer,
) -> Reranker:
    """Both graphs, each run in a process of its own first."""
    try:
        ids = texts.batch([0])
        states = probe(folder / tokens.file, tokens, feeds={"ids": ids})["text_tokens"]
        grid = next(iter(pictures.values()))[None]
        feeds = {"dense_embeds": grid, "text_tokens": states, "text_mask": mask[:1, : ids.shape[1]]}
        probe(folder / fusion.file, fusion, feeds=feeds)
        return Reranker(Graph.open(folder / tokens.file, tokens), Graph.open(folder / fusion.file, fusion), tokenizer)
    except GraphError as error:
        raise ExportRefused(f"reranker: {error}") from error


def _measured_tokens(
    draft: GraphSpec, reranker: Reranker, texts: MeasuredRows, mask: NDArray[np.int64], reference: F32
) -> GraphSpec:
    found = reranker.tokens_of(texts.padded, mask).states
    fidelity = measure(found[mask == 1], reference[mask == 1])
    if not fidelity.centred_relative_l2 <= FP32_RELATIVE_L2_MAX:
        raise ExportRefused(
            f"token_encoder is not the torch model: centred relative L2 {fidelity.centred_relative_l2:.2e}, at most "
            f"{FP32_RELATIVE_L2_MAX:.0e} is allowed"
        )
    difference = 0.0
    for at, length in enumerate(texts.lengths or ()):
        alone = reranker.tokens_of(texts.batch([at]), mask[at : at + 1, :length]).states[0]
        apart, size = found[at, :length] - alone, np.linalg.norm(alone, axis=1, keepdims=True)
        difference = max(difference, float(np.abs(apart / np.maximum(size, 1e-12)).max()))
    _refuse_company("token_encoder", difference)
    return draft.model_copy(update={"batch_difference": difference, "fidelity": fidelity})


def _measured_matches(
    draft: GraphSpec,
    reranker: Reranker,
    texts: MeasuredRows,
    mask: NDArray[np.int64],
    pictures: dict[str, F32],
    reference: dict[str, F32],
    largest: float,
) -> GraphSpec:
    """Every golden text with every picture, in runs of 1, 2 and 7 pairs, padding cut where that is possible."""
    tokens = reranker.tokens_of(texts.padded, mask)
    found = {name: [_in_runs(reranker, grid, tokens, size) for size in _COMPANY] for name, grid in pictures.items()}
    for name, answers in found.items():
        off = max(float(np.abs(each - reference[name]).max()) for each in answers)
        if not off <= _EXPORT_SHARE * MATCH_TOLERANCE * largest:
            raise ExportRefused(
                f"reranker is not the torch model: a logit of {name} is {off:.2e} off, at most "
                f"{_EXPORT_SHARE * MATCH_TOLERANCE * largest:.0e} is allowed"
            )
    difference = max(float(np.abs(each - answers[0]).max()) for answers in found.values() for each in answers) / largest
    _refuse_company("reranker", difference)
    both = [np.concatenate([each[name] for name in sorted(each)]) for each in (_first(found), reference)]
    fidelity = measure(both[0][:, None], both[1][:, None])
    return draft.model_copy(update={"batch_difference": difference, "fidelity": fidelity, "chain": {"fp32": fidelity}})


def _first(found: dict[str, list[F32]]) -> dict[str, F32]:
    return {name: answers[0] for name, answers in found.items()}


def _in_runs(reranker: Reranker, grid: F32, tokens: TextTokens, size: int) -> F32:
    parts: Sequence[range] = [range(at, min(at + size, len(tokens))) for at in range(0, len(tokens), size)]
    return np.concatenate([reranker.match_each([grid], tokens.pick(list(part))) for part in parts])


def _refuse_company(role: str, difference: float) -> None:
    if difference > INVARIANCE_TOLERANCE["fp32"]:
        raise ExportRefused(
            f"{role}: company or padding moves an answer by {difference:.2e} of its size, at most "
            f"{INVARIANCE_TOLERANCE['fp32']:.0e} is allowed"
        )
