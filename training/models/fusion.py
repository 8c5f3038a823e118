"""The fusion of a reranker: a small transformer over a text's tokens that look at a picture's positions.

ALBEF's multimodal encoder and its image-text matching head (Li et al., 2021, "Align before Fuse", section 3.1), with
norms in front of the branches (Xiong et al., 2020), on top of states that a frozen dual encoder gives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.positions import resample_grid

Looks = Literal["positions", "pooled"]
Seen = list[tuple[Tensor, Tensor]]
"""Of B pictures, the keys and values [B, heads, P, W / heads] of each layer."""

_STD = 0.02
_NEVER = -1e4


class FusionLayer(nn.Module):
    """Tokens attend to each other, then to positions, then an MLP: [B, L, W] -> [B, L, W]."""

    def __init__(self, width: int, heads: int, *, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_in, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, bias: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """bias: added to scores of tokens, [B, 1, 1, L]."""
        query, key, value = (self._split(part) for part in self.self_in(self.self_norm(x)).chunk(3, dim=-1))
        x = x + self.self_out(_joined(functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)))
        query = self._split(self.query(self.cross_norm(x)))
        x = x + self.cross_out(_joined(functional.scaled_dot_product_attention(query, keys, values)))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))

    def keys_and_values(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of positions [B, P, W]: twice [B, heads, P, W / heads]."""
        key, value = self.key_value(positions).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, W] -> [B, heads, L, W / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Fusion(nn.Module):
    """Positions [B, rows, columns, D], un-normalised, and token states [B, L, T] with their mask int64 [B, L] -> [B].

    The answer is a logit: the difference of the two that ALBEF's matching head has. It is read at the first token,
    which every text has. Where a position is, its vector need not say: `places`, learnt at `grid` x `grid` and read at
    any other grid, is added to it. looks "pooled": the mean over the positions is all that tokens see (a control).

    mean [D] and spread: of positions in training, so that any base's numbers come in as about unit ones.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        grid: int,
        context_length: int,
        looks: Looks = "positions",
    ) -> None:
        super().__init__()
        self.grid, self.looks = (grid, grid), looks
        self.register_buffer("mean", torch.zeros(image_dim))
        self.register_buffer("spread", torch.ones(()))
        self.image_in, self.image_norm = nn.Linear(image_dim, width), nn.LayerNorm(width)
        self.places = nn.Parameter(torch.zeros(grid * grid, width))
        self.text_norm, self.text_in = nn.LayerNorm(text_dim), nn.Linear(text_dim, width)
        self.order = nn.Parameter(torch.zeros(context_length, width))
        self.layers = nn.ModuleList(FusionLayer(width, heads, hidden=hidden) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)
        self._initialise()

    def forward(self, dense_embeds: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        return self.match(self.seen(dense_embeds), text_tokens, text_mask)

    def seen(self, dense_embeds: Tensor) -> Seen:
        """What the layers look at; it depends on pictures alone, so several texts may share it."""
        if self.looks == "pooled":
            dense_embeds = dense_embeds.mean(dim=(1, 2), keepdim=True)
        rows, columns = dense_embeds.shape[1:3]
        x = self.image_in((dense_embeds - self.mean) / self.spread).flatten(1, 2)
        x = self.image_norm(x + resample_grid(self.places, self.grid, rows, columns))
        return [layer.keys_and_values(x) for layer in self._layers()]

    def match(self, seen: Seen, text_tokens: Tensor, text_mask: Tensor, which: Tensor | None = None) -> Tensor:
        """Logits [N] of texts [N, L, T]. which: int64 [N], the picture of `seen` beside each; None: in order."""
        bias = torch.zeros_like(text_mask, dtype=text_tokens.dtype).masked_fill(text_mask == 0, _NEVER)[:, None, None]
        x = self.text_in(self.text_norm(text_tokens)) + self.order[: text_tokens.shape[1]]
        for layer, (keys, values) in zip(self._layers(), seen, strict=True):
            x = layer(x, bias, keys, values) if which is None else layer(x, bias, keys[which], values[which])
        return self.head(self.norm(x[:, 0])).squeeze(-1)

    def _layers(self) -> list[FusionLayer]:
        return [layer for layer in self.layers if isinstance(layer, FusionLayer)]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for layer in self._layers():  # branches start small, so that the sum of all of them does
            for last in (layer.self_out, layer.cross_out, layer.mlp_out):
                nn.init.normal_(last.weight, std=_STD)
        nn.init.normal_(self.places, std=1.0)
        nn.init.normal_(self.order, std=_STD)
        nn.init.normal_(self.head.weight, std=_STD)
