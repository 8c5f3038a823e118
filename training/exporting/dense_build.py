"""The dense graph beside its image encoder in a staged artifact: built, or left out with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model_store.errors import ExportRefused, GraphError
from model_store.golden import EncodeDense, dense_goldens
from model_store.graph import Graph
from model_store.manifest import DenseSpec, GraphSpec, SkippedVariant
from model_store.precisions.variants import remove_variant
from training.exporting.dense import DENSE_FILE, check_module, encode_dense, measure_dense, write_dense
from training.exporting.shared_weights import share_weights
from training.models.dense import DenseSource

_CHECKED = 4  # pictures on which the dense module is compared with the image encoder before it is exported


def add_dense(
    source: DenseSource | str | None,
    image: nn.Module,
    graphs: list[GraphSpec],
    pixels: NDArray[np.uint8],
    folder: Path,
    say: Callable[[str], None],
) -> tuple[list[GraphSpec], list[SkippedVariant]]:
    """`graphs` with the dense one, the fp32 image encoder's entry naming the file both share; or why there is none."""
    if source is None:
        return graphs, []
    reason = source if isinstance(source, str) else ""
    if isinstance(source, DenseSource):
        say("dense_encoder fp32")
        (encoder,) = (graph for graph in graphs if (graph.role, graph.precision) == ("image_encoder", "fp32"))
        try:
            built = build_dense(source, image, encoder, pixels[:_CHECKED], folder)
        except (ExportRefused, GraphError) as error:
            reason = str(error)
        else:
            return [*(built.image if graph is encoder else graph for graph in graphs), built.graph], []
    say(f"no dense_encoder: {reason}")
    return graphs, [SkippedVariant(role="dense_encoder", precision="fp32", reason=reason)]


def dense_reference(
    source: DenseSource | str | None, graphs: Iterable[GraphSpec]
) -> tuple[DenseSpec, EncodeDense] | None:
    """What the golden cases of the dense graph are made of; None: it was not built."""
    if not isinstance(source, DenseSource) or all(graph.role != "dense_encoder" for graph in graphs):
        return None
    return source.spec, encode_dense(source)


def dense_spec_of(source: DenseSource | str | None, graphs: Iterable[GraphSpec]) -> DenseSpec | None:
    """The manifest's `dense`: None when the graph was not built."""
    found = dense_reference(source, graphs)
    return found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class BuiltDense:
    """The dense graph's entry, and the image encoder's, whose weights now lie in the file that both read."""

    graph: GraphSpec
    image: GraphSpec


def build_dense(
    source: DenseSource, image: nn.Module, image_graph: GraphSpec, pixels: NDArray[np.uint8], folder: Path
) -> BuiltDense:
    """Write, prove and measure the dense graph beside the fp32 image encoder in `folder`, sharing its weights.

    pixels: some prepared pictures of the image encoder, uint8 [N, H, W, 3].

    Raises:
        ExportRefused, GraphError: it cannot be built, and nothing in `folder` has changed.
    """
    check_module(source, image, pixels)
    try:
        draft = measure_dense(source, write_dense(source, folder), folder)
    except (ExportRefused, GraphError):
        remove_variant(folder / DENSE_FILE)
        raise
    picture = next(iter(dense_goldens(source.spec).values()))
    feeds = ((image_graph, pixels[:1]), (draft, picture))
    before = [Graph.open(folder / spec.file, spec).run({"pixels": rows}) for spec, rows in feeds]
    shared = share_weights(folder, (image_graph.file, draft.file))
    for (spec, rows), expected in zip(feeds, before, strict=True):
        after = Graph.open(folder / spec.file, spec).run({"pixels": rows})
        if any(not np.array_equal(after[name], expected[name]) for name in expected):
            raise ValueError(f"{spec.file} answers otherwise since its weights lie in {shared}")
    draft, image_graph = (spec.model_copy(update={"external_files": (shared,)}) for spec in (draft, image_graph))
    return BuiltDense(graph=draft, image=image_graph)
