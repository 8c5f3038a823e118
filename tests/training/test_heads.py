"""Pooling heads: what their per-position vectors have to do with the pooled one, and which of them know where."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn import functional

from training.config import ImageTowerConfig, SmallConfig, TextTowerConfig
from training.models.building import build_model
from training.models.towers import AttentionHead, FlatHead, MeanHead, SmallDualEncoder

CHANNELS, GRID, DIM = 8, 4, 6


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(seed))


def flat() -> FlatHead:
    torch.manual_seed(0)
    head = FlatHead(CHANNELS, DIM, grid=GRID, dropout=0.0)
    torch.nn.init.normal_(head.bias)
    return head.requires_grad_(False)


def attention() -> AttentionHead:
    torch.manual_seed(0)
    return AttentionHead(CHANNELS, DIM, grid=GRID, heads=2, dropout=0.0).requires_grad_(False)


def test_flat_head_is_a_linear_layer_on_the_flattened_grid() -> None:
    head, x = flat(), features()
    # weight [P, C, D] with positions row by row; a linear layer on [B, C, h, w] flattened has the channels first.
    weight = head.weight.permute(2, 1, 0).reshape(DIM, CHANNELS * GRID * GRID)
    torch.testing.assert_close(head(x), functional.linear(x.flatten(1), weight, head.bias))


def test_the_mean_of_flat_dense_vectors_is_the_pooled_one() -> None:
    head, x = flat(), features()
    dense = head.dense(x)
    assert dense.shape == (3, GRID, GRID, DIM)
    torch.testing.assert_close(dense.mean(dim=(1, 2)), head(x))
    # A position's vector speaks of that position alone.
    other = x.clone()
    other[:, :, 1, 2] += 1
    changed = (head.dense(other) - dense).abs().amax(dim=(0, 3)) > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]


def test_attention_head_is_clips_attention_pooling() -> None:
    head, x = attention(), features()
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + head.position[:, None]
    expected, _ = functional.multi_head_attention_forward(
        tokens[:1],
        tokens,
        tokens,
        embed_dim_to_check=CHANNELS,
        num_heads=2,
        in_proj_weight=None,
        in_proj_bias=torch.cat([head.query.bias, head.key.bias, head.value.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=head.projection.weight,
        out_proj_bias=head.projection.bias,
        use_separate_proj_weight=True,
        q_proj_weight=head.query.weight,
        k_proj_weight=head.key.weight,
        v_proj_weight=head.value.weight,
        need_weights=False,
    )
    torch.testing.assert_close(head(x), expected[0])


def test_attention_that_looks_everywhere_alike_pools_the_dense_vectors() -> None:
    # With silent queries every token weighs the same: the mean token and each position once.
    head, x = attention(), features()
    head.query.weight.zero_()
    head.query.bias.zero_()
    dense = head.dense(x).flatten(1, 2)
    first = head.projection(head.value(x.mean(dim=(2, 3)) + head.position[0]))
    expected = (dense.sum(dim=1) + first) / (GRID * GRID + 1)
    torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize("kind", ["mean", "flat", "attention"])
def test_only_the_mean_forgets_where(kind: str) -> None:
    mean = MeanHead(CHANNELS, DIM, dropout=0.0).requires_grad_(False)
    head = {"mean": mean, "flat": flat(), "attention": attention()}[kind]
    x = features()
    moved = x.flip(3)
    assert torch.allclose(head(x), head(moved), atol=1e-5) == (kind == "mean")


@pytest.mark.parametrize("pool", ["mean", "flat", "attention"])
def test_a_model_has_the_head_that_its_recipe_names(pool: Literal["mean", "flat", "attention"]) -> None:
    config = SmallConfig(
        kind="small",
        embed_dim=12,
        image=ImageTowerConfig(trunk="clipworks_conv_t", size_px=32, pool=pool),
        text=TextTowerConfig(merges=1, context_length=8, width=16, layers=1, heads=2),
    )
    torch.manual_seed(0)
    model = build_model(config, vocab_size=50, end_id=49).eval().requires_grad_(False)
    assert isinstance(model, SmallDualEncoder)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pooled, dense = model.encode_image(pixels), model.encode_dense(pixels)
    assert dense.shape == (2, 4, 4, 12)
    same = torch.allclose(dense.mean(dim=(1, 2)), pooled, rtol=1e-4, atol=1e-5)
    assert same == (pool != "attention")
    if pool != "mean":
        with pytest.raises(RuntimeError):
            model.encode_image(pixels[:, :16])  # a grid of another size has no weights
