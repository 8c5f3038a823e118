"""A transformer block whose attention and MLP have any width, beside open_clip's, whose widths hang together."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from open_clip.transformer import LayerScale, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional


class SlimAttention(nn.Module):
    """Self-attention of heads * head_width channels over tokens [B, L, width]; weights are named as torch's
    MultiheadAttention names them, and packed as it packs them.
    """

    def __init__(self, width: int, *, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.num_heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj = nn.Linear(inner, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]; attn_mask [L, L] is added to the logits."""
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (each.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for each in packed.chunk(3, -1))
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class SlimBlock(nn.Module):
    """open_clip's ResidualAttentionBlock with an attention and an MLP of any width; equal to it at its own widths."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        mlp: int,
        pattern: ResidualAttentionBlock | SlimBlock,
    ) -> None:
        """pattern: the block whose kind of norm, activation and LayerScale this one has."""
        super().__init__()
        self.ln_1, self.ln_2 = _norm_like(pattern.ln_1, width), _norm_like(pattern.ln_2, width)
        self.attn = SlimAttention(width, heads=heads, head_width=head_width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, mlp), gelu=copy.deepcopy(pattern.mlp.gelu), c_proj=nn.Linear(mlp, width))
        )
        self.ls_1, self.ls_2 = _scale_like(pattern.ls_1, width), _scale_like(pattern.ls_2, width)

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """[B, L, width] -> the same; k_x and v_x are there because open_clip's Transformer passes None for them."""
        if k_x is not None or v_x is not None:
            raise ValueError("a slim block attends to its own tokens only")
        x = q_x + self.ls_1(self.attn(self.ln_1(q_x), attn_mask=attn_mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def get_weight_dtype(self) -> torch.dtype:
        """open_clip's towers ask for it."""
        return self.mlp.c_fc.weight.dtype


def _norm_like(norm: nn.LayerNorm, width: int) -> nn.LayerNorm:
    return type(norm)(width, eps=norm.eps)


def _scale_like(scale: nn.Module, width: int) -> nn.Module:
    if not isinstance(scale, LayerScale):
        return nn.Identity()
    made = LayerScale(width, inplace=scale.inplace)
    nn.init.constant_(made.gamma, float(scale.gamma.detach().mean()))
    return made
