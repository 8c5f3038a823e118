"""An artifact in use: its graphs opened, proven on the golden cases, and each behind a batcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ArtifactError, RoleNotFound
from model_store.graph import example_feeds, require_device
from model_store.manifest import ADAPTERS, ENCODERS, DenseSpec, ImageSpec, Manifest, Precision, Role, TextSpec
from model_store.modality.text import Tokenizer
from model_store.probe import ProbeLog
from model_store.proving import Proof
from model_store.store import Artifact
from model_store.towers import (
    ConditionalHead,
    OpenedHead,
    Tower,
    open_conditional_head,
    open_head,
    open_tower,
)
from service.engine.batcher import Batcher, BatchObserver
from service.engine.dense import DenseSession
from service.engine.opening import EngineSettings, Owned, choose_precision, probe_graphs
from service.engine.reranking import RerankSession, has_reranker
from service.engine.stacking import EqualShapes, SharedTexts, Stacking
from service.engine.token_rows import TokenRows
from service.timing import Deadline


@dataclass(frozen=True)
class OpenedModel:
    """Sessions of one artifact that reproduced its golden cases; knows no event loop."""

    artifact: Artifact
    towers: dict[Role, Tower]
    heads: dict[str, OpenedHead]
    conditional: ConditionalHead | None
    tokenizer: Tokenizer | None
    seconds: dict[str, float]

    def token_rows(self) -> TokenRows | None:
        """None: it reads no texts."""
        if self.tokenizer is None:
            return None
        text = self.towers.get("text_encoder")
        return TokenRows(self.tokenizer, is_exact_padded=bool(text and text.encoder.spec.batch_difference == 0.0))


def open_model(artifact: Artifact, settings: EngineSettings, *, only: Sequence[Role] = ()) -> OpenedModel:
    """Open every encoder, adapter and head of an artifact and prove them; blocking, takes seconds.

    only: these encoders with their adapters, and no head.

    Raises:
        RoleNotFound: one of `only` is not there.
        ArtifactError: whatever is wrong with it (integrity, a crash in the probe, provider, goldens).
    """
    clock = _Stopwatch()
    deadline = Deadline.after(settings.load_timeout_s)
    options = settings.session
    proof = Proof(artifact)
    tokenizer = artifact.tokenizer() if artifact.text_spec else None
    proof.check_inputs(tokenizer)
    clock.lap("inputs")
    chosen = _served_encoders(artifact, settings, only or ENCODERS)
    if missing := set(only) - {spec.role for _, spec in chosen}:
        raise RoleNotFound(f"{artifact.reference} has no {' and no '.join(sorted(missing))}")
    probed = ProbeLog(settings.probe_log)
    key = probed.key(artifact.build(settings.precision or "fp32"), options)
    asked = None if only else artifact.graph_spec("conditional_head", "fp32")
    if settings.probe_first and not probed.knows(key):
        on_device = [*chosen, asked] if asked else chosen
        followers = _followers(artifact, [spec.role for _, spec in chosen], with_heads=not only)
        probe_graphs(on_device, followers, options, deadline=deadline, stopping=settings.stopping)
        probed.remember(key)
        clock.lap("probe")
    heads = {} if only else {name: open_head(artifact, name, options) for name in artifact.heads()}
    conditional = open_conditional_head(artifact, options) if asked else None
    if asked and conditional:
        require_device(asked[0], conditional.graph, example_feeds(asked[1]))
    towers: dict[Role, Tower] = {}
    for owner, spec in chosen:
        tower = open_tower(artifact, spec.role, spec.precision, options)
        clock.lap("open")
        require_device(owner, tower.encoder, example_feeds(spec))
        limit = settings.max_batch_images if spec.role == "image_encoder" else settings.max_batch_texts
        size = limit if tower.batch_invariant else 1
        proof.check_tower(spec.role, tower, heads, batch_size=size, conditional=conditional)
        clock.lap("goldens")
        towers[spec.role] = tower
    return OpenedModel(artifact, towers, heads, conditional, tokenizer, clock.seconds)


def _served_encoders(artifact: Artifact, settings: EngineSettings, roles: Sequence[Role]) -> list[Owned]:
    """(owner, spec) of every encoder that will be opened."""
    found: list[Owned] = []
    for role in roles:
        if role in artifact.roles():
            precision = choose_precision(artifact, role, settings.precision, settings.device)
            graph = artifact.graph_spec(role, precision)
            if graph is None:
                raise ArtifactError(f"{artifact.reference} has no {precision} graph for {role}")
            found.append(graph)
    if not found and roles == ENCODERS:
        raise ArtifactError(f"{artifact.reference} has no encoder that can be served")
    return found


def _followers(artifact: Artifact, encoders: Sequence[Role], *, with_heads: bool) -> list[Owned]:
    """Adapters of these encoders, and class heads."""
    roles: list[Role] = [adapter for encoder, adapter in zip(ENCODERS, ADAPTERS, strict=True) if encoder in encoders]
    adapters = [found for role in roles if (found := artifact.graph_spec(role, "fp32"))]
    return [*adapters, *(artifact.head_graph(name) for name in artifact.heads() if with_heads)]


class RunningModel:
    """An opened model with a batcher per encoder (and its adapter) and per head; belongs to one event loop.

    `dense` opens the dense encoder when it is first asked for, `rerank` the reranker. The batcher of an encoder with an
    adapter gives both vectors of an item, the adapter's last; see Tower.both.
    """

    def __init__(self, opened: OpenedModel, settings: EngineSettings, observer: BatchObserver) -> None:
        self.opened = opened
        self.artifact = opened.artifact
        self.manifest: Manifest = opened.artifact.manifest
        self.name = self.manifest.name
        self.version = self.manifest.version
        self.reference = opened.artifact.reference
        self.space = self.manifest.space
        self.dim = self.manifest.dim
        self.fingerprint = self.manifest.fingerprint
        self.precision: dict[str, Precision] = {
            role: tower.encoder.spec.precision for role, tower in opened.towers.items()
        }
        self.build = opened.artifact.build(settings.precision or next(iter(self.precision.values())))
        self.tokenizer = opened.tokenizer
        self._token_rows = opened.token_rows()
        self.tokenising = asyncio.Semaphore(1)
        self.heads = opened.heads
        self.dense = DenseSession(opened.artifact, settings, observer)
        self.rerank = RerankSession(opened.artifact, settings, observer)
        self.has_reranker = has_reranker(opened.artifact)
        self.batchers: dict[Role, Batcher] = {}
        self.head_batchers: dict[str, Batcher] = {}
        limits = {"image_encoder": settings.max_batch_images, "text_encoder": settings.max_batch_texts}
        for role, tower in opened.towers.items():
            self.batchers[role] = Batcher(
                f"{self.reference}/{role}",
                tower.both if tower.adapter else tower.encoder,
                max_batch=limits[role] if tower.batch_invariant else 1,
                max_items=settings.max_queue_items,
                max_wait_s=settings.max_wait_s,
                observer=observer,
                stacking=self._stacking(role),
            )
        self.texts_at_once = settings.max_batch_texts
        if (conditional := opened.conditional) is not None:
            self.batchers["conditional_head"] = Batcher(
                f"{self.reference}/conditional_head",
                lambda stack: conditional(*stack),
                max_batch=settings.max_batch_texts,
                max_items=settings.max_queue_items,
                max_wait_s=settings.max_wait_s,
                observer=observer,
                stacking=SharedTexts(settings.max_batch_texts),
            )
        for name, head in opened.heads.items():
            self.head_batchers[name] = Batcher(
                f"{self.reference}/class_head.{name}",
                head,
                max_batch=settings.max_batch_images if head.graph.spec.batch_invariant else 1,
                max_items=settings.max_queue_items,
                max_wait_s=settings.max_wait_s,
                observer=observer,
            )

    def _stacking(self, role: Role) -> Stacking[NDArray[Any]]:
        return self._token_rows.stacking if role == "text_encoder" and self._token_rows else EqualShapes()

    @property
    def image_spec(self) -> ImageSpec | None:
        return self.artifact.image_spec if "image_encoder" in self.batchers else None

    @property
    def text_spec(self) -> TextSpec | None:
        return self.artifact.text_spec if "text_encoder" in self.batchers else None

    @property
    def dense_spec(self) -> DenseSpec | None:
        return self.artifact.dense_spec

    @property
    def sessions(self) -> list[str]:
        """Roles whose sessions are open now."""
        late = [("dense_encoder", self.dense), ("token_encoder", self.rerank), ("reranker", self.rerank)]
        return [*self.batchers, *(role for role, session in late if session.opened)]

    @property
    def has_conditional_head(self) -> bool:
        """Whether it judges labels by a head that reads them for each picture, and not by text vectors."""
        return "conditional_head" in self.batchers

    @property
    def batch_invariant(self) -> bool:
        return all(tower.batch_invariant for tower in self.opened.towers.values())

    def knows(self, row: NDArray[np.int64]) -> bool:
        """Whether the ids of a text have a token of its words."""
        return self.tokenizer is None or self.tokenizer.knows(row.tolist())

    def token_row(self, text: str) -> NDArray[np.int64]:
        """Ids of one text, int64 [L], as the text encoder's batcher wants them.

        Raises:
            InvalidText: see Tokenizer.encode.
            RoleNotFound: the model has no text encoder.
        """
        if self._token_rows is None:
            raise RoleNotFound(f"{self.reference} has no text encoder")
        return self._token_rows.row(text)

    def fault(self) -> str | None:
        """Why this model cannot answer, or None."""
        return next((f"{b.name}: {b.broken}" for b in self._workers() if b.broken), None)

    def longest_run_s(self) -> float:
        return max(batcher.running_s() for batcher in self._workers())

    async def close(self, reason: str = "the model was unloaded") -> None:
        await self.dense.close(reason)
        await self.rerank.close(reason)
        for batcher in self._workers():
            await batcher.close(reason)

    def _workers(self) -> list[Batcher]:
        dense = [self.dense.opened] if self.dense.opened else []
        reranker = [self.rerank.opened.texts, self.rerank.opened.pairs] if self.rerank.opened else []
        return [*self.batchers.values(), *self.head_batchers.values(), *dense, *reranker]


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
