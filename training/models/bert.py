"""BERT as a sentence encoder: token ids in, the mean of the last layer's vectors out."""

# torch gives every submodule and buffer the type Tensor | Module.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.aligned_config import BertConfig
from training.aligned_sources import PAD_ID


class BertLayer(nn.Module):
    """Self-attention and an MLP, each followed by a layer norm over its sum with its input (Devlin et al., 2019)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.mlp_in, self.mlp_out = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, W] and what is added to the attention scores, [B, 1, 1, L] -> [B, L, W]."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = self.attention_norm(x + self.attention_out(attended.transpose(1, 2).flatten(2)))
        return self.mlp_norm(x + self.mlp_out(nn.functional.gelu(self.mlp_in(x))))

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, W] -> [B, heads, L, W / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FactorisedTable(nn.Module):
    """Token embeddings as the product of two matrices: ids [...] -> [..., W] (Lan et al., 2020, "ALBERT")."""

    def __init__(self, vocab_size: int, *, rank: int, width: int) -> None:
        super().__init__()
        self.table: nn.Module = nn.Embedding(vocab_size, rank)
        self.widen = nn.Linear(rank, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.widen(self.table(ids))


class BertTower(nn.Module):
    """int64 [B, L] -> [B, W]: the mean over a text's tokens as a unit vector, less `centre`.

    What is not PAD_ID belongs to the text, so rows may be padded to any length (Reimers and Gurevych, 2019: mean
    pooling over the attention mask, normalised as sentence-transformers does). Every text is one segment.
    """

    centre: Tensor
    checkpointing: bool = False  # of gradients, see DualEncoder.checkpoint_gradients

    def __init__(self, config: BertConfig, *, vocab_size: int, context_length: int) -> None:
        super().__init__()
        self.tokens: nn.Module = (
            nn.Embedding(vocab_size, config.width)
            if config.table_rank is None
            else FactorisedTable(vocab_size, rank=config.table_rank, width=config.width)
        )
        self.context_length = context_length
        self.positions = nn.Parameter(torch.zeros(context_length, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.layers))
        self.register_buffer("centre", torch.zeros(config.width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.pooled(self.token_vectors(ids), ids)

    def token_vectors(self, ids: Tensor) -> Tensor:
        """[B, L, W] of the last layer; what lies at paddings means nothing."""
        return self._states(self.tokens(ids), ids != PAD_ID)

    def pooled(self, x: Tensor, ids: Tensor) -> Tensor:
        """Token vectors [B, L, W] of the ids [B, L] -> [B, W]."""
        return self._mean(x, ids != PAD_ID)

    def token_embedding(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, W], in front of positions and norm."""
        return self.tokens(ids)

    def end_of(self, ids: Tensor) -> Tensor:
        """Where each row of int64 [B, L] has its last token: int64 [B]."""
        return (torch.arange(ids.shape[1], device=ids.device) * (ids != PAD_ID)).amax(dim=-1)

    def read(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Embedded tokens [B, L, W], each row with its last token at `end` int64 [B] -> [B, W].

        All that stands up to there belongs to the text, the written word [PAD] too, which `forward` leaves out.
        """
        inside = torch.arange(tokens.shape[1], device=tokens.device)[None, :] <= end[:, None]
        return self._mean(self._states(tokens, inside), inside)

    def _states(self, tokens: Tensor, inside: Tensor) -> Tensor:
        """Embedded tokens [B, L, W] and which of them belong to a text, bool [B, L] -> [B, L, W]."""
        mask = inside.to(self.positions.dtype)
        bias = torch.zeros_like(mask).masked_fill(mask == 0, float("-inf"))[:, None, None]
        x = self.norm(tokens + self.positions[: tokens.shape[1]])
        for layer in self.layers:
            x = checkpoint(layer, x, bias, use_reentrant=False) if self.checkpointing else layer(x, bias)
        return x

    def _mean(self, x: Tensor, inside: Tensor) -> Tensor:
        weights = inside.to(x.dtype)[..., None]
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1) - self.centre
