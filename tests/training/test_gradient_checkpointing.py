"""Gradient checkpointing: towers of transformer blocks compute them twice and learn the same; others refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training import method as methods
from training.data.batches import BatchPlan
from training.methods.base import BaseMethod

pytestmark = pytest.mark.torch
MakeContext = Callable[..., methods.Context]
Train = Callable[..., Path]


def started(context: methods.Context, *frozen: str) -> BaseMethod:
    torch.manual_seed(0)
    method = methods.create("base", {"frozen": frozen})
    assert isinstance(method, BaseMethod)
    method.setup(context)
    method.model.train()
    return method


def gradients(method: BaseMethod, context: methods.Context, block: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Of one batch, and how often `block` was run."""
    batches = context.source.batches(
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        BatchPlan(batch_size=8),
    )
    runs: list[int] = []
    counting = block.register_forward_pre_hook(lambda *given: runs.append(1))
    method.model.zero_grad()
    torch.manual_seed(1)
    sum(method.step(method.needs.of(batches(0)), 0.0).values()).backward()  # type: ignore[union-attr]
    counting.remove()
    return {name: p.grad.clone() for name, p in method.model.named_parameters() if p.grad is not None}, len(runs)


def check_equal(method: BaseMethod, context: methods.Context, *blocks: str) -> None:
    plain = [gradients(method, context, method.model.get_submodule(block)) for block in blocks]
    method.model.checkpoint_gradients()
    for block, (expected, once) in zip(blocks, plain, strict=True):
        found, twice = gradients(method, context, method.model.get_submodule(block))
        assert (once, twice) == (1, 2)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_towers_of_open_clip(make_context: MakeContext, tiny_vit: str) -> None:
    context = make_context(tiny_vit)
    check_equal(started(context), context, "clip.visual.transformer.resblocks.1", "clip.transformer.resblocks.0")


def test_own_towers_whose_trunk_is_locked(make_context: MakeContext) -> None:
    context = make_context("model.text.dropout=0.3")
    check_equal(started(context, "trunk"), context, "text.transformer.resblocks.0")


def test_an_aligned_models_text_tower(make_context: MakeContext, aligned_squares: Path) -> None:
    context = make_context(recipe=aligned_squares)
    check_equal(started(context, "trunk"), context, "text.layers.1")


def test_the_loop_learns_the_same(train_squares: Train, tiny_vit: str) -> None:
    options = (tiny_vit, "optim.steps=2", "run.validate_steps=9")
    plain = train_squares(*options, name="plain")
    saving = train_squares(*options, "run.gradient_checkpointing=true", name="saving")
    expected, found = (load_file(each / "weights.safetensors") for each in (plain, saving))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_batch_norms_and_methods_without_towers_refuse(train_squares: Train, square_base: Path) -> None:
    with pytest.raises(ValueError, match="this image tower trains batch norms"):
        train_squares("run.gradient_checkpointing=true")
    with pytest.raises(ValueError, match="for methods that train towers, which labclip does not"):
        train_squares(
            "run.gradient_checkpointing=true", "method=labclip", "method_options.captions=1", base=square_base
        )
