"""Image towers that keep their positions: one run gives a vector for every cell and the pooled vector of the picture.

Nothing is trained here: a tower's own weights are read another way. Positions are not normalised.
"""

# torch gives every submodule and buffer the type Tensor | Module; open_clip and timm build on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any, Literal

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers.classifier import ClassifierHead, NormMlpClassifierHead
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from training.models.positions import centre_distances, resample_grid
from training.models.slim_blocks import SlimBlock

Attention = Literal["maskclip", "sclip", "naclip"]
Dense = tuple[Tensor, Tensor]
GAUSSIAN_STD_CELLS = 5.0  # NACLIP (Hajimiri et al., 2025), its published setting


class NoPositions(ValueError):
    """This tower has no vector for a position; the message says why."""


class VitDense(nn.Module):
    """An open_clip ViT whose last block answers for every patch: pixels [B, 3, H, W] -> [B, rows, columns, D], [B, D].

    Only the last block's attention is replaced, for the positions alone; the pooled vector is the model's own.
    With v, k, q of that block and its output projection,

        maskclip  v of the position itself (Zhou et al., 2022, "Extract Free Dense Labels from CLIP")
        sclip     (softmax(q q') + softmax(k k')) v, then the block's residual and MLP (Wang et al., 2024, equation 5)
        naclip    softmax(k k' + Gaussian of the cells' distance) v, no residual, no MLP (Hajimiri et al., 2025)

    Larger and non-square pictures get position embeddings resampled with bicubic weights.
    """

    def __init__(self, visual: VisionTransformer, attention: Attention) -> None:
        super().__init__()
        last = visual.transformer.resblocks[-1]
        if visual.attn_pool is not None:
            raise NoPositions("its tokens are pooled by attention of their own (CoCa)")
        if type(last) not in (ResidualAttentionBlock, SlimBlock) or not visual.transformer.batch_first:
            raise NoPositions(f"its last block is a {type(last).__name__} of a form that is not known here")
        if visual.pool_type not in ("tok", "avg"):
            raise NoPositions(f"it pools by {visual.pool_type!r}")
        self.visual = visual
        self.attention: Attention = attention

    def forward(self, x: Tensor) -> Dense:
        visual, last = self.visual, self.visual.transformer.resblocks[-1]
        x, rows, columns = self._embed(x)
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        query, key, value = split_heads(last, last.ln_1(x))
        positions = self._positions(x, query, key, value, rows, columns)
        return project(positions, visual.proj).unflatten(1, (rows, columns)), self._pooled(x, query, key, value)

    def _embed(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Class and patch tokens [B, 1 + rows * columns, width] with their position embeddings."""
        visual = self.visual
        x = visual.conv1(x)
        batch, _, rows, columns = x.shape
        table = visual.positional_embedding
        table = torch.cat([table[:1], resample_grid(table[1:], visual.grid_size, rows, columns)])
        return torch.cat([visual.class_embedding.expand(batch, 1, -1), x.flatten(2).mT], dim=1) + table, rows, columns

    def _positions(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, rows: int, columns: int) -> Tensor:
        """Patch tokens [B, rows * columns, width] after the replaced block and the last norm."""
        last = self.visual.transformer.resblocks[-1]
        if self.attention == "maskclip":
            attended = value[:, :, 1:]
        else:
            weights = attention_weights(self.attention, query, key, rows, columns)
            attended = (weights @ value)[:, :, 1:]
        out = last.ls_1(merge_heads(last, attended))
        if self.attention == "sclip":
            out = x[:, 1:] + out
            out = out + last.ls_2(last.mlp(last.ln_2(out)))
        return self.visual.ln_post(out)

    def _pooled(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The model's own embedding [B, D]; behind a class token the last block runs for that token alone."""
        visual, last = self.visual, self.visual.transformer.resblocks[-1]
        if visual.pool_type == "tok":
            x, query = x[:, :1], query[:, :, :1]
        x = x + last.ls_1(merge_heads(last, functional.scaled_dot_product_attention(query, key, value)))
        x = x + last.ls_2(last.mlp(last.ln_2(x)))
        if visual.pool_type == "tok":
            pooled = visual.ln_post(x[:, 0])
        elif visual.final_ln_after_pool:
            pooled = visual.ln_post(x[:, 1:].mean(dim=1))
        else:
            pooled = visual.ln_post(x)[:, 1:].mean(dim=1)
        return project(pooled, visual.proj)


def attention_weights(kind: Attention, query: Tensor, key: Tensor, rows: int, columns: int) -> Tensor:
    """What replaces the last block's attention, [B, heads, 1 + rows * columns, the same]; the first is the class token.

    SCLIP's rows sum to 2, as in its code; NACLIP's Gaussian is 1 at the position itself and 0 for the class token.
    """
    scale = query.shape[-1] ** -0.5
    by_key = key @ key.mT * scale
    if kind == "sclip":
        return (query @ query.mT * scale).softmax(dim=-1) + by_key.softmax(dim=-1)
    near = torch.exp(-centre_distances(rows, columns, by_key.dtype) / (2 * GAUSSIAN_STD_CELLS**2))
    return (by_key + functional.pad(near, (1, 0, 1, 0))).softmax(dim=-1)


def split_heads(block: ResidualAttentionBlock | SlimBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [B, heads, L, width / heads] of a block's packed projection."""
    packed = functional.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, value = (each.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2) for each in packed.chunk(3, -1))
    return query, key, value


def merge_heads(block: ResidualAttentionBlock | SlimBlock, attended: Tensor) -> Tensor:
    """[B, heads, L, width / heads] -> [B, L, width] through the block's output projection."""
    return rows_through(block.attn.out_proj, attended.transpose(1, 2).flatten(2))


def rows_through(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the last axis of [..., C], as one product of a matrix: the exporter then writes its weight as
    it stands, as it does in the image encoder, and both graphs can read one copy.
    """
    return linear(x.flatten(0, -2)).view(*x.shape[:-1], linear.out_features)


def project(x: Tensor, projection: nn.Parameter | None) -> Tensor:
    return x if projection is None else x @ projection


class ResNetDense(nn.Module):
    """An open_clip ResNet: each position's value through the attention pool's output projection.

    Pixels [B, 3, H, W] -> [B, H / 32, W / 32, D], [B, D]; position embeddings are added to each position, resampled for
    other sizes (Zhou et al., 2022, section 3.2).
    """

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual = visual
        side = round((visual.attnpool.positional_embedding.shape[0] - 1) ** 0.5)
        self.grid = (side, side)

    def forward(self, x: Tensor) -> Dense:
        visual, pool = self.visual, self.visual.attnpool
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
        rows, columns = x.shape[2:]
        x = x.flatten(2).mT
        table = torch.cat(
            [pool.positional_embedding[:1], resample_grid(pool.positional_embedding[1:], self.grid, rows, columns)]
        )
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + table
        value = pool.v_proj(x)
        pooled = attend_once(pool.q_proj(x[:, :1]), pool.k_proj(x), value, pool.num_heads)
        both = rows_through(pool.c_proj, torch.cat([pooled, value[:, 1:]], dim=1))
        return both[:, 1:].unflatten(1, (rows, columns)), both[:, 0]


def attend_once(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of queries [B, Q, C] over [B, L, C], heads merged again: [B, Q, C]."""
    query, key, value = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class TimmDense(nn.Module):
    """A convolutional timm trunk behind open_clip: its head, applied position by position, when that head is linear.

    Pixels [B, 3, H, W] -> [B, rows, columns, D], [B, D]. Where a LayerNorm stands between the mean over positions and
    the projection (ConvNeXt), every position is divided by the pooled vector's deviation instead of its own: then the
    positions' mean is exactly the embedding, and short vectors stay short.
    """

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        unknown = "its head is not a mean over positions and linear layers"
        head: Any = getattr(visual.trunk, "head", None)
        if type(head) not in (ClassifierHead, NormMlpClassifierHead) or head.global_pool.pool_type != "avg":
            raise NoPositions(unknown)
        norm = getattr(head, "norm", nn.Identity())
        layers = [getattr(head, "pre_logits", nn.Identity()), head.fc, *visual.head]
        if any(not isinstance(each, nn.Identity | nn.Dropout | nn.Linear) for each in layers):
            raise NoPositions(unknown)
        if not isinstance(norm, nn.Identity | LayerNorm2d):
            raise NoPositions(f"its head has a {type(norm).__name__}")
        self.visual = visual
        self.norm = norm
        self.linears = nn.ModuleList(each for each in layers if isinstance(each, nn.Linear))

    def forward(self, x: Tensor) -> Dense:
        features = self.visual.trunk.forward_features(x)
        if features.ndim != 4:
            raise NoPositions(f"its features are {features.ndim}-dimensional, not [B, C, rows, columns]")
        positions = features.permute(0, 2, 3, 1)
        if isinstance(self.norm, LayerNorm2d):
            centred = positions - positions.mean(dim=-1, keepdim=True)
            spread = centred.mean(dim=(1, 2), keepdim=True).square().mean(dim=-1, keepdim=True)
            positions = centred * (spread + self.norm.eps).rsqrt() * self.norm.weight + self.norm.bias
        for linear in self.linears:
            positions = rows_through(linear, positions)
        return positions, positions.mean(dim=(1, 2))
