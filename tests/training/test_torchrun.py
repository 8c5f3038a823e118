"""Two processes, started as docs/training-steps.md says, are one: `torchrun -m training`, batch norms and all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import load_model
from training.history import saved_steps

pytestmark = [pytest.mark.torch, pytest.mark.slow]
# Batch norms are trained here: without the joint ones, two processes learn something else.
OPTIONS = (
    "optim.steps=4",
    "run.checkpoint_steps=2",
    "run.validate_steps=2",
    "run.keep=2",
    "run.zero_shot_steps=4",
    "run.zero_shot_label=colour",
    "method_options.local_loss=true",
)
TIMES = ("pairs_per_s", "data_wait_s", "data_wait_share")


def test_torchrun_trains_what_one_process_trains(
    squares: Path, train_squares: Callable[..., Path], train_on_two: Callable[..., str], tmp_path: Path
) -> None:
    two, mirror = tmp_path / "two", tmp_path / "mirror"
    said = train_on_two(
        squares, f"run.folder={json.dumps(str(two))}", f"run.mirror={json.dumps(str(mirror))}", *OPTIONS
    )
    assert said.count("checkpoint at step 4") == 1
    one = train_squares(*OPTIONS)
    expected, found = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4)
    assert list(saved_steps(two)) == [2, 4]
    assert json.loads((mirror / "latest.json").read_text()) == {"folder": "step-00000004"}
    logs = []
    for folder in (one, two):
        with (folder / "log.csv").open(newline="") as file:
            logs.append([row for row in csv.DictReader(file) if row["name"] not in TIMES])
    assert [(row["step"], row["name"]) for row in logs[0]] == [(row["step"], row["name"]) for row in logs[1]]
    for left, right in zip(*logs, strict=True):
        assert float(left["value"]) == pytest.approx(float(right["value"]), rel=1e-3, abs=1e-6), left
    assert load_model(two).info.metrics == load_model(one).info.metrics
