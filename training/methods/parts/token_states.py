"""The states of a text's tokens before they become one vector, of every text tower that has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.bases import StoredTowers
from training.exporting.graphs import TextGraph
from training.models.aligned import AlignedDualEncoder
from training.models.bert import BertTower
from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder, TextTower

StateTower = TextTower | TextGraph | BertTower


class TokenStates(nn.Module):
    """int64 [B, L], L up to `context_length` -> float [B, L, W], behind the last norm; company and padding change none
    of those that count.

    Raises:
        ValueError: a model whose text tower is not known here; the message says why.
    """

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.tower = _tower_of(model)
        self.context_length = self.tower.context_length

    @property
    def width(self) -> int:
        device = next(self.parameters()).device
        with torch.no_grad():
            return self(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[2]

    def forward(self, ids: Tensor) -> Tensor:
        return self.tower.token_vectors(ids)

    def mask(self, ids: Tensor) -> Tensor:
        """int64 [B, L]: 1 for the tokens of a text up to its last one, 0 for padding."""
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        return (places <= self.tower.end_of(ids)[:, None]).to(torch.int64)


class WordStates(nn.Module):
    """Token states with a learnt vector for each token of the vocabulary added: int64 [B, L] -> float [B, L, W].

    A frozen tower cannot tell words apart that its training never had. The vectors start as zeros, and `words` is
    trained while `states` stays.
    """

    def __init__(self, states: TokenStates, words: nn.Embedding) -> None:
        super().__init__()
        self.states, self.words = states, words
        self.context_length, self.width = states.context_length, states.width

    def forward(self, ids: Tensor) -> Tensor:
        return self.states(ids) + self.words(ids)


def _tower_of(model: DualEncoder) -> StateTower:
    if isinstance(model, SmallDualEncoder | AlignedDualEncoder):
        return model.text
    if isinstance(model, OpenClipDualEncoder):
        graph = TextGraph(model.clip)
        if graph.attn_mask is None or graph.pool_type not in ("argmax", "eos"):
            raise ValueError(f"token states need causal attention and its end token, it reads {graph.pool_type!r}")
        return graph
    if isinstance(model, StoredTowers):
        raise ValueError("a stored model gives vectors of whole texts only: take its checkpoint as base")
    raise ValueError(f"token states need a transformer over tokens, {type(model).__name__} has none that is known here")
