"""Towers: encoder and adapter graphs from inputs to vectors, and heads from vectors to scores.

The server, the evaluation and the golden cases all call these, so that their numbers cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import RoleNotFound
from model_store.golden import Goldens
from model_store.graph import Graph, open_graph
from model_store.manifest import ADAPTERS, ENCODERS, GraphSpec, HeadSpec, Precision, Role
from model_store.session import SessionSettings

Vectors = NDArray[np.float32]
Activation = Literal["softmax", "sigmoid", "none"]
_TINY = 1e-12
_ROWS = 64  # texts of one run


@dataclass(frozen=True)
class Tower:
    """An encoder and, where the artifact has one, its adapter: a stack of inputs -> un-normalised float32 [B, D]."""

    encoder: Graph
    adapter: Graph | None = None

    def __call__(self, batch: NDArray[Any]) -> Vectors:
        vectors = self.encoder(batch)
        return vectors if self.adapter is None else adapt(self.adapter, vectors)

    def both(self, batch: NDArray[Any]) -> Vectors:
        """The encoder's vectors and behind them, in the same rows, the adapter's where there is one: [B, D + D']."""
        vectors = self.encoder(batch)
        return vectors if self.adapter is None else np.concatenate([vectors, adapt(self.adapter, vectors)], axis=1)

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return (self.encoder,) if self.adapter is None else (self.encoder, self.adapter)

    @property
    def batch_invariant(self) -> bool:
        return all(graph.spec.batch_invariant for graph in self.graphs)


@dataclass(frozen=True)
class DenseVectors:
    """Un-normalised vectors of one batch: positions float32 [B, rows, columns, D], pooled float32 [B, D]."""

    positions: Vectors
    pooled: Vectors


@dataclass(frozen=True)
class DenseTower:
    """A dense encoder with the adapters behind it: uint8 [B, H, W, 3] of equal sizes -> positions and pooled vectors.

    Positions go through the dense_adapter, pooled vectors through the image_adapter, so both lie in the space of the
    artifact's embeddings.
    """

    encoder: Graph
    adapter: Graph | None = None
    pooled_adapter: Graph | None = None

    def __call__(self, batch: NDArray[np.uint8]) -> DenseVectors:
        encoded = self.encoder.run({self.encoder.spec.inputs[0].name: batch})
        positions, pooled = encoded["dense_embeds"], encoded["image_embeds"]
        if self.adapter is not None:
            positions = adapt_positions(self.adapter, positions)
        return DenseVectors(positions, pooled if self.pooled_adapter is None else adapt(self.pooled_adapter, pooled))

    @property
    def graphs(self) -> tuple[Graph, ...]:
        return tuple(graph for graph in (self.encoder, self.adapter, self.pooled_adapter) if graph is not None)

    @property
    def batch_invariant(self) -> bool:
        return all(graph.spec.batch_invariant for graph in self.graphs)


@dataclass(frozen=True)
class OpenedHead:
    """A class head on the artifact's image vectors."""

    graph: Graph
    spec: HeadSpec

    def __call__(self, vectors: Vectors) -> Vectors:
        """Logits [B, C] of image vectors [B, D], normalised here when the head was fitted on unit vectors."""
        return self.graph(normalized(vectors) if self.graph.spec.normalized_input else vectors)

    def scores(self, logits: NDArray[np.floating], activation: Activation | None = None) -> NDArray[np.float64]:
        """Scores [..., C] of logits; None means the head's own activation, "none" gives the logits back."""
        kind = activation or self.spec.activation
        values = logits.astype(np.float64)
        return values if kind == "none" else activated(values / self.spec.temperature, kind)


@dataclass(frozen=True)
class ConditionalHead:
    """Logits of pictures against texts, by a graph that reads every text anew for each picture: B x C rows a run."""

    graph: Graph

    def __call__(self, vectors: Vectors, ids: NDArray[np.int64]) -> Vectors:
        """Logits [B, C] of image vectors [B, D], normalised here, and ids [C, L], in one run."""
        return self.graph.run({"image_embeds": normalized(vectors), "ids": ids})["logits"]

    def in_blocks(self, vectors: Vectors, ids: NDArray[np.int64], *, rows: int = _ROWS) -> Vectors:
        """The same in runs of at most `rows` texts, so that memory does not grow with B x C."""
        logits = np.empty((len(vectors), len(ids)), dtype=np.float32)
        for pictures, texts in blocks(len(vectors), len(ids), rows=rows):
            logits[pictures, texts] = self(vectors[pictures], ids[texts])
        return logits


def blocks(pictures: int, texts: int, *, rows: int) -> Iterator[tuple[slice, slice]]:
    """(pictures, texts) of pieces of at most `rows` pairs that cover all of them, pictures first."""
    wide = max(1, min(texts, rows))
    tall = max(1, rows // wide)
    for picture in range(0, pictures, tall):
        for text in range(0, texts, wide):
            yield slice(picture, min(picture + tall, pictures)), slice(text, min(text + wide, texts))


def adapt(adapter: Graph, vectors: Vectors) -> Vectors:
    """Adapter output [B, D'] of vectors [B, D]. A zero vector stays zero: it has no direction, whatever a bias adds."""
    adapted = adapter(normalized(vectors) if adapter.spec.normalized_input else vectors)
    empty = np.linalg.norm(vectors, axis=1) < _TINY
    return np.where(empty[:, None], np.float32(0), adapted) if empty.any() else adapted


def adapt_positions(adapter: Graph, positions: Vectors) -> Vectors:
    """dense_adapter output [..., D'] of positions [..., D]: each position by itself."""
    rows = adapt(adapter, positions.reshape(-1, positions.shape[-1]))
    return rows.reshape(*positions.shape[:-1], rows.shape[-1])


def normalized(vectors: NDArray[np.floating]) -> Vectors:
    """Unit rows [..., D]; a zero row stays zero."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)).astype(np.float32)


def activated(logits: NDArray[np.float64], kind: Literal["softmax", "sigmoid"]) -> NDArray[np.float64]:
    """Softmax over the last axis or sigmoid of each value; neither overflows."""
    if kind == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * logits))
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def open_tower(artifact: Artifact, role: Role, precision: Precision, settings: SessionSettings) -> Tower:
    """The encoder `role` at `precision` with its adapter; nothing is compared with golden cases here.

    Raises:
        RoleNotFound: not built at this precision, or too far from fp32 with what comes behind it.
        IntegrityError, GraphError, ProviderError: as `open_graph`.
    """
    found = _encoder_spec(artifact, role, precision)
    adapter = artifact.graph_spec(ADAPTERS[ENCODERS.index(role)], "fp32") if role in ENCODERS else None
    return Tower(open_graph(*found, settings), open_graph(*adapter, on_cpu(settings)) if adapter else None)


def open_dense_tower(artifact: Artifact, precision: Precision, settings: SessionSettings) -> DenseTower:
    """The dense encoder at `precision` with the adapters of its positions and of its pooled vector.

    A session of its own: open it when it is first needed. Its prepared pictures follow `artifact.dense_spec`. Without
    `settings.prepack` its weights stay in the file that the image encoder reads too.

    Raises:
        RoleNotFound: no dense role, not built at this precision, or not measured with what comes behind it;
            `artifact.served_precision("dense_encoder", precision)` names one that is.
        IntegrityError, GraphError, ProviderError: as `open_graph`.
    """
    encoder = _encoder_spec(artifact, "dense_encoder", precision)
    adapter, pooled = (artifact.graph_spec(role, "fp32") for role in ("dense_adapter", "image_adapter"))
    return DenseTower(
        open_graph(*encoder, settings),
        open_graph(*adapter, on_cpu(settings)) if adapter else None,
        open_graph(*pooled, on_cpu(settings)) if pooled else None,
    )


def open_head(artifact: Artifact, name: str, settings: SessionSettings) -> OpenedHead:
    """A class head, its labels compared with those it was published with.

    Raises:
        RoleNotFound: no such head.
        GoldenError: the manifest's labels were changed.
        IntegrityError, GraphError: as `open_graph`.
    """
    owner, graph = artifact.head_graph(name)
    Goldens(owner).check_declarations()
    return OpenedHead(open_graph(owner, graph, on_cpu(settings)), artifact.heads()[name])


def open_conditional_head(artifact: Artifact, settings: SessionSettings) -> ConditionalHead:
    """The conditional head, which runs where the encoders do: most of it is a text encoder.

    Raises:
        RoleNotFound: the artifact has none.
        IntegrityError, GraphError, ProviderError: as `open_graph`.
    """
    found = artifact.graph_spec("conditional_head", "fp32")
    if found is None:
        raise RoleNotFound(f"{artifact.reference} has no conditional_head")
    return ConditionalHead(open_graph(*found, settings))


def _encoder_spec(artifact: Artifact, role: Role, precision: Precision) -> tuple[Artifact, GraphSpec]:
    found = artifact.graph_spec(role, precision)
    if found is None:
        raise RoleNotFound(f"{artifact.reference} has no {role} in {precision}")
    if artifact.served_precision(role, precision) != precision:
        raise RoleNotFound(f"{artifact.reference}: what comes behind {role} was not measured with it in {precision}")
    return found


def on_cpu(settings: SessionSettings) -> SessionSettings:
    """Settings for adapters and heads: their rows are in main memory already, one small product is not worth a copy."""
    return SessionSettings(
        intra_threads=settings.intra_threads, spinning=settings.spinning, arena=settings.arena, memory_limit_bytes=0
    )
