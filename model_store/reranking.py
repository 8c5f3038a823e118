"""Reranking: how well a text fits a picture, judged from all of the picture's positions and all of the text's tokens.

The second stage of ALBEF (Li et al., 2021, "Align before Fuse"): embeddings find candidates, and a small transformer in
which tokens look at positions orders the first of them again. Embeddings and spaces are the base's, and stay so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import GoldenError, RoleNotFound
from model_store.golden import RERANK_IDS, RERANK_MASK, RERANK_POSITIONS, Goldens
from model_store.graph import Graph, open_graph
from model_store.modality.text import Tokenizer
from model_store.session import SessionSettings

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
PAIRS_AT_ONCE = 32  # of one run: 196 positions of 128 numbers are 3 MB
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class TextTokens:
    """Texts as a reranker reads them: states float32 [T, L, W]; mask int64 [T, L], which is 1 where a token counts."""

    states: F32
    mask: I64

    def __len__(self) -> int:
        return len(self.states)

    def pick(self, rows: Sequence[int] | NDArray[np.intp]) -> TextTokens:
        """These texts in this order, cut behind the longest of them."""
        mask = self.mask[rows]
        length = max(1, int(mask.sum(axis=1).max(initial=0)))
        return TextTokens(self.states[rows][:, :length], mask[:, :length])


class PairMatcher(ABC):
    """How pairs of pictures and texts are asked, whatever answers: graphs of an artifact, or a model in training."""

    tokenizer: Tokenizer

    @abstractmethod
    def tokens_of(self, ids: I64, mask: I64) -> TextTokens:
        """The states of padded ids int64 [T, L], of which those count where mask int64 [T, L] is 1."""

    @abstractmethod
    def match(self, positions: NDArray[np.floating], texts: TextTokens) -> F32:
        """Logits [B] of B pairs in one run, larger where the text is true of the picture; sigmoid makes a probability.

        positions: [B, rows, columns, D], un-normalised, as the artifact's dense encoder gives them with its adapter
        (`towers.DenseTower`), for pictures prepared by `artifact.dense_spec`. texts: B of them, the n-th for picture n.
        """

    def text_tokens(self, texts: Sequence[str]) -> TextTokens:
        """The states of T texts.

        Raises:
            InvalidText: one that the tokeniser does not take.
        """
        rows = [self.tokenizer.encode(text) for text in texts]
        ids = self.tokenizer.pad(rows)
        return self.tokens_of(ids, token_mask([len(row) for row in rows], ids.shape[1]))

    def match_each(self, pictures: Sequence[NDArray[np.floating]], texts: TextTokens) -> F32:
        """Logits [N] of N pairs, in runs of at most PAIRS_AT_ONCE pairs with equal grids.

        pictures: each [rows, columns, D], as for `match`, of any mix of shapes. Either side may be one for all: one
        text with N pictures, or one picture with N texts.

        Raises:
            ValueError: the sides have different lengths, and neither is 1.
        """
        count = max(len(pictures), len(texts))
        if {len(pictures), len(texts)} - {1, count}:
            raise ValueError(f"{len(pictures)} pictures and {len(texts)} texts are no pairs")
        logits = np.empty(count, dtype=np.float32)
        shapes: dict[tuple[int, ...], list[int]] = {}
        for pair in range(count):
            shapes.setdefault(pictures[pair % len(pictures)].shape, []).append(pair)
        for pairs in shapes.values():
            for at in range(0, len(pairs), PAIRS_AT_ONCE):
                some = pairs[at : at + PAIRS_AT_ONCE]
                grids = np.stack([pictures[pair % len(pictures)] for pair in some])
                logits[some] = self.match(grids, texts.pick([pair % len(texts) for pair in some]))
        return logits


@dataclass(frozen=True)
class Reranker(PairMatcher):
    """Both graphs of an artifact, and its tokeniser. It may be called from several threads."""

    encoder: Graph
    fusion: Graph
    tokenizer: Tokenizer

    def tokens_of(self, ids: I64, mask: I64) -> TextTokens:
        parts = [
            self.encoder.run({"ids": ids[at : at + _TEXTS_AT_ONCE]})["text_tokens"]
            for at in range(0, len(ids), _TEXTS_AT_ONCE)
        ]
        return TextTokens(np.concatenate(parts), mask)

    def match(self, positions: NDArray[np.floating], texts: TextTokens) -> F32:
        feeds = {
            "dense_embeds": np.asarray(positions, dtype=np.float32),
            "text_tokens": texts.states,
            "text_mask": texts.mask,
        }
        return self.fusion.run(feeds)["match"]


def token_mask(lengths: Sequence[int], longest: int) -> I64:
    """int64 [T, longest]: 1 for the first tokens of each row, as many as it has."""
    return (np.arange(longest)[None] < np.asarray(lengths)[:, None]).astype(np.int64)


def open_reranker(artifact: Artifact, settings: SessionSettings) -> Reranker:
    """Both graphs; they run where the encoders do. `Proof.check_reranker` compares them with their golden cases.

    Raises:
        RoleNotFound: the artifact has none.
        IntegrityError, GraphError, ProviderError: as `open_graph`.
    """
    tokens, fusion = artifact.graph_spec("token_encoder", "fp32"), artifact.graph_spec("reranker", "fp32")
    if tokens is None or fusion is None:
        raise RoleNotFound(f"{artifact.reference} has no reranker")
    return Reranker(open_graph(*tokens, settings), open_graph(*fusion, settings), artifact.tokenizer())


def check_reranker(goldens: Goldens, reranker: Reranker) -> float:
    """Read the golden texts, and match them with the golden positions; returns the largest difference of a logit.

    Raises:
        GoldenError: a token or a logit is not what it was in torch, or there are no cases.
    """
    where, arrays = goldens.artifact.reference, goldens.arrays
    ids, mask, tolerance = arrays.get(RERANK_IDS), arrays.get(RERANK_MASK), goldens.cases.match_tolerance
    grids = {key: each for key, each in arrays.items() if key.startswith(RERANK_POSITIONS)}
    if ids is None or mask is None or tolerance is None or not grids:
        raise GoldenError(f"{where}: golden cases of the reranker are missing")
    texts = reranker.tokens_of(ids, mask)
    goldens.check_outputs("token_encoder", "fp32", texts.states[mask == 1])
    largest = 0.0
    for key, grid in grids.items():
        reference = arrays.get(f"reranker.{key.removeprefix(RERANK_POSITIONS)}")
        if reference is None:
            raise GoldenError(f"{where}: golden logits of the reranker are missing")
        difference = float(np.abs(reranker.match_each([grid], texts) - reference).max())
        if not difference <= tolerance:
            raise GoldenError(
                f"{where}: reranker fp32 is not the exported model: a logit is {difference:.2e} off, at most "
                f"{tolerance:.0e} is allowed"
            )
        largest = max(largest, difference)
    return largest
