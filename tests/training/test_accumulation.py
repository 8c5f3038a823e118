"""A batch encoded in parts has the gradients of the whole batch, for every method that allows it; others refuse."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training import method as methods
from training.accumulation import add_gradients, check_accumulation, split, total
from training.data.batches import BatchPlan
from training.method import ContrastiveMethod, StepMethod

pytestmark = pytest.mark.torch
MakeContext = Callable[..., methods.Context]
Train = Callable[..., Path]
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "info_nce": ("base", {}, ()),
    "sigmoid": ("base", {"loss": "sigmoid", "frozen": ("trunk",)}, ("model.logit_bias=true",)),
    "negclip": ("negclip", {}, ()),
    "own": ("negclip", {"own_negatives_only": True}, ()),
    "focal": ("negclip", {"loss": "focal"}, ()),
    "negation": ("negation", {}, ()),
    "kd": ("kd", {"preset": "unified", "fd": 2.0, "mfd": 2.0, "gd": 1.0, "afd": 1.0, "mask_px": 4}, ()),
}


def started(name: str, options: dict[str, Any], context: methods.Context) -> ContrastiveMethod:
    torch.manual_seed(0)
    method = methods.create(name, options)
    assert isinstance(method, ContrastiveMethod)
    method.setup(context)
    for module, _ in method.modules().values():
        module.train()
    return method


def batch_of(context: methods.Context, method: methods.Method) -> dict[str, Tensor]:
    batches = context.source.batches(
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        BatchPlan(batch_size=8, negatives=method.needs.negatives, second=method.second),
    )
    return method.needs.of(batches(0))


def gradients(method: StepMethod, batch: dict[str, Tensor], parts: int, **changes: Any) -> dict[str, Tensor]:
    parameters = {name: p for group in method.param_groups() for name, p in group.parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    given: dict[str, Any] = {
        "modules": [module for module, _ in method.modules().values()],
        "autocast": nullcontext,
        "scaled": lambda loss: loss,
        "reseed": lambda: torch.manual_seed(5),
        "before_last": lambda: None,
    }
    losses = add_gradients(method, batch, 0.5, parts=parts, **{**given, **changes})
    found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    return {**found, "loss": total(losses).detach()}


@pytest.mark.parametrize("case", CASES)
def test_parts_have_the_gradients_of_the_whole(
    case: str, make_context: MakeContext, square_base: Path, tiny_vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options, overrides = CASES[case]
    # The small model has batch norms: where its trunk is not locked, the model is a ViT.
    model = () if name == "negation" or case == "sigmoid" else (tiny_vit,)
    context = make_context(*overrides, *model, base=square_base if name == "negation" else None)
    taught = {"teacher": str(square_base)} if name == "kd" else {}
    method = started(name, {**options, **taught}, context)
    batch, seen = batch_of(context, method), list[int]()
    encode = method.encode

    def spying(piece: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(len(piece["image"]))
        return encode(piece)

    monkeypatch.setattr(method, "encode", spying)
    whole, parted = gradients(method, batch, 1), gradients(method, batch, 3)
    assert seen == [8, 3, 3, 2, 3, 3, 2]
    assert whole.keys() == parted.keys()
    assert {"model.logit_scale", "model.clip.logit_scale"} & whole.keys()
    assert max(float(each.abs().max()) for name, each in whole.items() if name != "loss") > 1e-3
    for each, expected in whole.items():
        torch.testing.assert_close(
            parted[each], expected, rtol=1e-4, atol=1e-6, msg=lambda m, each=each: f"{each}: {m}"
        )


def test_both_passes_drop_the_same(make_context: MakeContext, square_base: Path) -> None:
    context = make_context("model.text.dropout=0.5", base=square_base)
    method = started("negation", {}, context)
    batch = batch_of(context, method)
    found = gradients(method, batch, 2)

    def in_one_graph(batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        parts = [method.encode(piece) for piece in split(batch, 2)]
        return method.compare({name: torch.cat([each[name] for each in parts]) for name in parts[0]}, batch, progress)

    method.step = in_one_graph  # type: ignore[method-assign]
    for each, expected in gradients(method, batch, 1).items():
        torch.testing.assert_close(found[each], expected, rtol=1e-4, atol=1e-6)
    assert (gradients(method, batch, 1, reseed=lambda: torch.manual_seed(6))["loss"] - found["loss"]).abs() > 1e-4


def test_batch_norms_count_each_part_once(make_context: MakeContext) -> None:
    context = make_context()
    method = started("base", {}, context)
    norm = next(m for m in method.modules()["model"][0].modules() if isinstance(m, nn.BatchNorm2d))
    gradients(method, batch_of(context, method), 2)
    assert int(norm.num_batches_tracked) == 2
    assert norm.track_running_stats


def test_parts_under_autocast_reach_every_weight(make_context: MakeContext, tiny_vit: str) -> None:
    context = make_context(tiny_vit)
    method = started("base", {}, context)
    batch = batch_of(context, method)
    whole, parted = (
        gradients(method, batch, parts, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
        for parts in (1, 2)
    )
    assert whole.keys() == parted.keys()
    for each, expected in whole.items():
        torch.testing.assert_close(parted[each], expected, rtol=0.1, atol=float(expected.abs().max()) * 0.1 + 1e-5)


def test_more_parts_than_rows_are_one_row_each() -> None:
    pieces = split({"image": torch.arange(3), "text": torch.arange(6).view(3, 2)}, 5)
    assert [each["image"].tolist() for each in pieces] == [[0], [1], [2]]
    assert [each["text"].shape for each in pieces] == [(1, 2)] * 3


def test_methods_that_work_in_one_piece_refuse(squares: Path, square_base: Path, train_squares: Train) -> None:
    with pytest.raises(ValueError, match=r"optim\.accumulate is 2, but method labclip does not encode rows apart"):
        train_squares("method=labclip", "method_options.captions=1", "optim.accumulate=2", base=square_base)

    class OwnStep(type(methods.create("base", {}))):
        def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
            return {}

    own = OwnStep(methods.create("base", {}).options)  # type: ignore[attr-defined]
    check_accumulation("own", own, 1)
    with pytest.raises(ValueError, match="method own does not encode rows apart"):
        check_accumulation("own", own, 2)


def test_the_loop_learns_the_same_in_parts(train_squares: Train, square_base: Path) -> None:
    options = ("method=negation", "optim.steps=3", "run.validate_steps=9", "run.checkpoint_steps=9")
    whole = train_squares(*options, base=square_base, name="whole")
    parts = train_squares(*options, "optim.accumulate=3", base=square_base, name="parts")
    expected, found = (load_file(each / "weights.safetensors") for each in (whole, parts))
    for name, tensor in expected.items():
        # Adam turns the rounding of gradients that are zero, such as those of key biases, into tiny steps.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
