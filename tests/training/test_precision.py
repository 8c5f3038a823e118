"""fp16 with a scaled loss, its state in checkpoints, and the watch over losses that are no numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_store.identity import sha256_file
from training import method as methods
from training.checkpoint import INFO_FILE, STATE_FILE, load_state
from training.loop import train
from training.methods.base import BaseMethod
from training.optimization import LossWatch
from training.precision import MixedPrecision

pytestmark = pytest.mark.torch
Train = Callable[..., Path]
FP16 = ("run.precision=fp16", "optim.steps=5", "run.checkpoint_steps=2", "run.keep=9", "run.validate_steps=9")


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "log.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if (row["series"], row["name"]) == ("train", name)]


def stepped(precision: MixedPrecision, weight: nn.Parameter, optimizer: torch.optim.Optimizer, loss: float) -> None:
    optimizer.zero_grad()
    precision.scaled(weight.sum() * loss).backward()
    precision.unscale(optimizer)
    precision.step(optimizer)


def test_a_step_that_overflows_is_skipped_and_counted() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer, precision = torch.optim.SGD([weight], lr=0.1), MixedPrecision("fp16", device="cpu")
    stepped(precision, weight, optimizer, 1.0)
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    before = precision.numbers()
    stepped(precision, weight, optimizer, float("inf"))
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    assert precision.numbers() == {"loss_scale": before["loss_scale"] / 2, "skipped_steps": 1}
    again = MixedPrecision("fp16", device="cpu")
    again.restore(precision.state())
    assert again.numbers() == precision.numbers()
    assert again.state()["growth_tracker"] == precision.state()["growth_tracker"]


@pytest.mark.parametrize("name", ["fp32", "bf16", "auto"])
def test_other_precisions_scale_nothing(name: str) -> None:
    precision = MixedPrecision(name, device="cpu")  # type: ignore[arg-type]
    loss = torch.tensor(3.0)
    assert precision.scaled(loss) is loss
    assert (precision.state(), precision.numbers()) == ({}, {})
    precision.restore({"scale": torch.tensor(2.0)})
    with precision.autocast():
        found = nn.Linear(2, 2)(torch.ones(1, 2)).dtype
    assert found == (torch.bfloat16 if name == "bf16" else torch.float32)


def test_gradients_of_fp16_are_those_of_fp32(make_context: Callable[..., methods.Context], tiny_vit: str) -> None:
    context = make_context(tiny_vit)
    torch.manual_seed(0)
    method = methods.create("base", {})
    assert isinstance(method, BaseMethod)
    method.setup(context)
    (group,) = method.param_groups()
    optimizer, found = torch.optim.SGD(group.parameters.values(), lr=0.1), list[dict[str, Tensor]]()
    batch = {"image": torch.from_numpy(context.source.pixels[:8]), "caption_id": torch.arange(8)}
    batch["text"] = torch.from_numpy(context.tokenizer.pad([context.tokenizer.encode(t) for t in "abcdefgh"]))
    for name in ("fp32", "fp16"):
        precision = MixedPrecision(name, device="cpu")  # type: ignore[arg-type]
        known = {"scale": 1024.0, "growth_tracker": 0.0, "skipped": 0.0}
        precision.restore({each: torch.tensor(value) for each, value in known.items()})
        optimizer.zero_grad()
        with precision.autocast():
            losses = method.step(batch, 0.0)
        precision.scaled(losses["info_nce"]).backward()
        precision.unscale(optimizer)
        found.append({each: p.grad.clone() for each, p in group.parameters.items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, exact in found[0].items():
        torch.testing.assert_close(found[1][name], exact, rtol=0.05, atol=float(exact.abs().max()) * 0.02 + 1e-4)


def test_a_run_of_fp16_counts_what_it_skips_and_resumes_bit_equal(
    train_squares: Train, squares: Path, tiny_vit: str
) -> None:
    run = train_squares(tiny_vit, *FP16)
    state, skipped = load_state(run), logged(run, "skipped_steps")
    assert {"scaler/scale", "scaler/growth_tracker", "scaler/skipped"} <= state.keys()
    # The first scale is too large for this model: a few steps find another one, the others learn.
    assert 0 < skipped[-1] < 5
    assert logged(run, "loss_scale")[-1] == 2.0 ** (16 - skipped[-1])
    train(squares, [f"run.folder={json.dumps(str(run))}", tiny_vit, *FP16], from_step=2)
    again = load_state(run)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_fp16_skips_what_its_scale_makes_overflow(train_squares: Train, squares: Path, tiny_vit: str) -> None:
    """A scaler that was left at 2^120 halves it at every step, and no weight moves."""
    run = train_squares(tiny_vit, *FP16[:4], "run.validate_steps=1", "optim.steps=2")
    state = load_state(run)
    before = {name: tensor.clone() for name, tensor in state.items() if name.startswith("live/")}
    changed = {**state, "scaler/scale": torch.tensor(2.0**120, dtype=torch.float64)}
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, run / STATE_FILE)
    info = json.loads((run / INFO_FILE).read_text())
    (run / INFO_FILE).write_text(json.dumps({**info, "state_sha256": sha256_file(run / STATE_FILE)}))
    train(squares, [f"run.folder={json.dumps(str(run))}", tiny_vit, *FP16[:1], "optim.steps=4"], resume=True)
    after = load_state(run)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    skipped = state["scaler/skipped"].item()
    assert logged(run, "skipped_steps")[-2:] == [skipped + 1, skipped + 2]
    assert logged(run, "loss_scale")[-2:] == pytest.approx([2.0**119, 2.0**118], rel=1e-5)


def test_the_first_loss_that_is_no_number_is_named_later() -> None:
    watch = LossWatch("cpu", at_once=False)
    for step, loss in enumerate([1.0, 2.0, float("nan"), float("inf"), 1.0]):
        watch.note(step, torch.tensor(loss))
    with pytest.raises(ValueError, match="loss is nan at step 2"):
        watch.check()
    LossWatch("cpu", at_once=False).check()
    with pytest.raises(ValueError, match="loss is inf at step 7"):
        LossWatch("cpu", at_once=True).note(7, torch.tensor(float("inf")))


def test_a_run_whose_loss_leaves_the_numbers_ends_before_it_saves(train_squares: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss is nan at step"):
        train_squares("optim.rate=1e30", "optim.clip_norm=1e30", "optim.warmup_steps=0", "run.checkpoint_steps=6")
    assert not (tmp_path / "run" / "checkpoint.json").exists()
