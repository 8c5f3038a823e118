"""The reranker of a model: opened by the first request that needs it, proven, then behind a batcher for each graph."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import RoleNotFound
from model_store.graph import example_feeds, require_device
from model_store.manifest import RERANKING
from model_store.modality.text import Tokenizer
from model_store.probe import ProbeLog
from model_store.proving import Proof
from model_store.reranking import Reranker, TextTokens, open_reranker
from service.engine.batcher import Batcher, BatchObserver
from service.engine.late import Late
from service.engine.opening import EngineSettings, Owned, opened_in_time, probe_graphs
from service.engine.stacking import EqualPairs
from service.timing import Deadline

_PAIRS_OF_AN_ITEM = 8  # a pair is less work than an encoded picture: about a twelfth of one (docs/rerank.md)
_MAX_NUMBERS = 2**23  # of the positions of one run: 32 MiB


@dataclass(frozen=True)
class RerankBatchers:
    """texts: token ids [L] -> states [L, W]. pairs: PictureAndText -> a logit."""

    tokenizer: Tokenizer
    texts: Batcher
    pairs: Batcher

    def ids(self, text: str) -> tuple[NDArray[np.int64], int]:
        """Ids [L] of one text as the token encoder takes them, and how many of them are the text's own.

        The length depends on the text alone, never on its company. Raises InvalidText.
        """
        row = self.tokenizer.encode(text)
        return self.tokenizer.pad([row])[0], len(row)

    async def close(self, reason: str) -> None:
        await self.texts.close(reason)
        await self.pairs.close(reason)


class RerankSession(Late[RerankBatchers]):
    """Opens both graphs once, whoever asks first. Belongs to an event loop."""

    def __init__(self, artifact: Artifact, settings: EngineSettings, observer: BatchObserver) -> None:
        async def opened() -> RerankBatchers:
            reranker = await opened_in_time(artifact, settings, open_proven)
            texts = Batcher(
                f"{artifact.reference}/token_encoder",
                lambda ids: reranker.encoder.run({"ids": ids})["text_tokens"],
                max_batch=settings.max_batch_texts,
                observer=observer,
                max_items=settings.max_queue_items,
                max_wait_s=settings.max_wait_s,
            )
            pairs = Batcher(
                f"{artifact.reference}/reranker",
                lambda stack: matched(reranker, *stack),
                max_batch=settings.max_batch_images,
                observer=observer,
                stacking=EqualPairs(_MAX_NUMBERS),
                max_items=_PAIRS_OF_AN_ITEM * settings.max_queue_items,
                max_wait_s=settings.max_wait_s,
            )
            return RerankBatchers(reranker.tokenizer, texts, pairs)

        super().__init__(f"{artifact.reference}/reranker", opened, RerankBatchers.close)


def has_reranker(artifact: Artifact) -> bool:
    """Whether it has all that a text and a picture need to be matched."""
    return {*RERANKING, "dense_encoder"} <= set(artifact.roles())


def matched(reranker: Reranker, positions: NDArray[np.float32], states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [B] of positions [B, rows, columns, D] and states [B, L, W] of texts of one length."""
    return reranker.match(positions, TextTokens(states, np.ones(states.shape[:2], dtype=np.int64)))


def open_proven(artifact: Artifact, settings: EngineSettings) -> Reranker:
    """Open both graphs and prove them; blocking, may take seconds.

    Raises:
        RoleNotFound: the artifact has no reranker.
        ArtifactError: whatever is wrong with it (integrity, a crash in the probe, provider, goldens).
    """
    found: list[Owned] = [each for role in RERANKING if (each := artifact.graph_spec(role, "fp32"))]
    if len(found) < len(RERANKING):
        raise RoleNotFound(f"{artifact.reference} has no reranker")
    probed = ProbeLog(settings.probe_log)
    key = probed.key(f"reranker/{artifact.build(settings.precision or 'fp32')}", settings.session)
    if settings.probe_first and not probed.knows(key):
        deadline = Deadline.after(settings.load_timeout_s)
        probe_graphs(found, [], settings.session, deadline=deadline, stopping=settings.stopping)
        probed.remember(key)
    reranker = open_reranker(artifact, settings.session)
    for (owner, spec), graph in zip(found, (reranker.encoder, reranker.fusion), strict=True):
        require_device(owner, graph, example_feeds(spec))
    Proof(artifact).check_reranker(reranker)
    return reranker


def positions_source(artifact: Artifact) -> str:
    """Names what makes the position vectors of an artifact: the files of the graphs, and how pictures are prepared.

    Position vectors of two artifacts are the same where this is equal; how precise a server runs the graphs is no
    part of it.
    """
    digest = hashlib.sha256()
    if artifact.dense_spec is not None:
        digest.update(artifact.dense_spec.model_dump_json().encode())
    for role in ("dense_encoder", "dense_adapter"):
        if found := artifact.graph_spec(role, "fp32"):
            owner, spec = found
            digest.update("".join(f"\0{role}\0{owner.entry(path).sha256}" for path in sorted(spec.files)).encode())
    return digest.hexdigest()
