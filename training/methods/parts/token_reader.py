"""Text towers that can be given embedded tokens in place of ids, for methods that learn vectors among them."""

from __future__ import annotations

import torch
from torch import Tensor

from model_store.errors import ExportRefused
from training.bases import StoredTowers
from training.exporting.graphs import TextGraph
from training.models.aligned import AlignedDualEncoder
from training.models.bert import BertTower
from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder, TextTower

TokenReader = TextTower | TextGraph | BertTower
"""A text tower with `token_embedding`, `end_of` and `read`: causal, or blind to what is behind the end token."""


def token_reader(model: DualEncoder) -> TokenReader:
    """The text tower of `model`, if vectors among its tokens can mean something.

    Raises:
        ValueError: they cannot; the message says why.
    """
    if isinstance(model, SmallDualEncoder):
        if model.text.pool == "bag":
            raise ValueError(
                'pool = "bag" adds token vectors up: a context of any length would be one vector, the same for all '
                'texts; take a base with pool = "eos" or "eos+bag"'
            )
        return model.text
    if isinstance(model, AlignedDualEncoder):
        return model.text
    if isinstance(model, OpenClipDualEncoder):
        try:
            graph = TextGraph(model.clip)
        except (AttributeError, ExportRefused) as error:
            raise ValueError(f"contexts need open_clip's own text transformer: {error}") from error
        if graph.attn_mask is None or graph.pool_type not in ("argmax", "eos"):
            raise ValueError(f"contexts need causal attention and its end token, this tower reads {graph.pool_type!r}")
        return graph
    if isinstance(model, StoredTowers):
        raise ValueError("a stored model is a graph of ids, in which nothing can be put: take its checkpoint as base")
    raise ValueError(f"contexts need a transformer over tokens, {type(model).__name__} has none that is known here")


def embedded(reader: TokenReader, ids: list[int]) -> Tensor:
    """[n, W]: the tokens of one text as the tower embeds them, without gradients."""
    device = next(reader.parameters()).device
    with torch.no_grad():
        return reader.token_embedding(torch.tensor([ids], device=device))[0]
