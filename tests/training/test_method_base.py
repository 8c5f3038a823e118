"""The base method's start: where the sigmoid loss begins, and that a base is taken as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training import method as methods
from training.methods.base import BaseMethod

MakeContext = Callable[..., methods.Context]


def started(context: methods.Context, **options: Any) -> BaseMethod:
    torch.manual_seed(0)
    method = methods.create("base", options)
    assert isinstance(method, BaseMethod)
    method.setup(context)
    return method


@pytest.mark.parametrize("batch_size", [8, 64])
def test_the_sigmoid_loss_starts_at_the_rate_of_positives(make_context: MakeContext, batch_size: int) -> None:
    context = make_context("model.logit_bias=true", f"optim.batch_size={batch_size}")
    model = started(context, loss="sigmoid").model
    assert model.logit_bias is not None
    assert model.logit_bias.item() == pytest.approx(-math.log(batch_size - 1))
    # The chance of a pair of which nothing is known (cosine 0): one of the batch's texts is its own.
    assert torch.sigmoid(model.logit_bias).item() == pytest.approx(1 / batch_size)
    assert model.logit_scale.exp().item() == pytest.approx(10.0)


def test_info_nce_starts_at_clips_temperature(make_context: MakeContext) -> None:
    assert started(make_context()).model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-4)


def test_a_base_is_taken_as_it_is(make_context: MakeContext, square_base: Path) -> None:
    context = make_context(base=square_base)
    assert context.base is not None
    expected = context.base.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in started(context).model.state_dict().items())


def test_a_sigmoid_without_a_bias_is_refused(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match=r"loss sigmoid needs model\.logit_bias = true"):
        started(make_context(), loss="sigmoid")
