"""The dense part of a derivation: an adapter of positions, measured behind its base's dense graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import ExportRefused
from model_store.golden import Goldens, thinned
from model_store.graph import open_graph
from model_store.towers import DenseTower
from training.exporting.derived_graphs import AdapterSource, Built, Way, build_adapter

Outputs = dict[str, NDArray[np.float32]]


def build_dense_adapter(source: AdapterSource, base: Artifact, folder: Path) -> tuple[Built, Outputs]:
    """Write and measure the adapter of positions; also its reference outputs as the goldens keep them.

    The rows are those positions of the base's golden pictures that its goldens keep; torch's go in, and the fp32
    graph's are what it is judged behind.

    Raises:
        ExportRefused: the base has no dense role without an adapter already, or the graph is not the module.
    """
    owner, encoder = base.owner("dense_encoder"), base.graph_spec("dense_encoder", "fp32")
    if owner is None or encoder is None:
        raise ExportRefused(f"{base.reference} has no dense_encoder for an adapter to follow")
    goldens = Goldens(owner)
    pictures = goldens.dense_inputs()
    kept = {name: goldens.arrays[f"dense_embeds.{name}"] for name in pictures}
    tower = DenseTower(open_graph(*encoder))
    measured = {name: thinned(tower(pixels).positions) for name, pixels in pictures.items()}
    reference = _rows(kept)
    way = Way(goldens=len(reference), reference=reference, measured={"fp32": _rows(measured)})
    built = build_adapter(source, "dense_adapter", way, folder)
    return built, _by_picture(built.outputs, kept)


def _rows(grids: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Positions [rows, columns, D] of all pictures, by picture id: [N, D]."""
    return np.concatenate([grids[name].reshape(-1, grids[name].shape[-1]) for name in sorted(grids)])


def _by_picture(rows: NDArray[np.float32], grids: Mapping[str, NDArray[np.float32]]) -> Outputs:
    outputs: Outputs = {}
    start = 0
    for name in sorted(grids):
        height, width = grids[name].shape[:2]
        outputs[f"dense_adapter.{name}"] = rows[start : start + height * width].reshape(height, width, -1)
        start += height * width
    return outputs
