"""The base method's start: where the sigmoid loss begins, and that a base is taken as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training import method as methods
from training.checkpoint import load_model, load_state
from training.methods.aligned import AlignedHeads, AlignedOptions
from training.methods.base import BaseMethod
from training.methods.labclip import LabclipMethod, LabclipOptions, TextMap
from training.models.towers import DualEncoder

MakeContext = Callable[..., methods.Context]
LN_100 = float(torch.tensor(math.log(100)))
# Its loss falls as the temperature's factor grows, by a rate of 1 in each step.
HOT = """
from training.methods.base import BaseMethod, BaseOptions


def create(options):
    return Hot(BaseOptions.parse(options, method="hot"))


class Hot(BaseMethod):
    def compare(self, vectors, batch, progress):
        return {**super().compare(vectors, batch, progress), "hot": -10 * self.model.logit_scale}
"""


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


def test_no_step_leaves_the_factor_above_a_hundred(
    added: Callable[[str, str], Path], train_squares: Callable[..., Path]
) -> None:
    added("hot", HOT)
    run = train_squares("method=hot", "optim.rate=1.0", "optim.warmup_steps=0", "optim.steps=4", "optim.ema_decay=0.5")
    state, model = load_state(run), load_model(run).model
    assert state["live/model.logit_scale"].item() == LN_100
    assert math.log(1 / 0.07) < model.logit_scale.item() <= LN_100


def test_every_method_with_a_factor_bounds_it() -> None:
    heads, labclip, model = AlignedHeads(AlignedOptions()), LabclipMethod(LabclipOptions()), DualEncoder()
    model.logit_scale = nn.Parameter(torch.tensor(9.0))
    heads.model, labclip.map = model, TextMap(2, log_scale=9.0)  # type: ignore[assignment]
    with torch.no_grad():
        heads.constrain()
        labclip.constrain()
    assert model.logit_scale.item() == labclip.map.log_scale.item() == LN_100
