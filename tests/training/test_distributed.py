"""Two gloo processes under torchrun are one process: the same losses, the same gradients, the same checkpoint."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from training import method as methods
from training.distributed import Gathering, count, part_of, rank

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def alone() -> ModuleType:
    """The same code, in this process."""
    spec = importlib.util.spec_from_file_location("processes_alone", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A locked image tower: batch norm in train mode would see half of the rows.
OPTIONS = ("method=negation", "method_options.local_loss=true", "optim.steps=4")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, squares: Path, square_base: Path) -> Path:
    """What two processes left: losses and gradients of each, and one run."""
    folder = tmp_path_factory.mktemp("together")
    start, where = f"base={json.dumps(str(square_base))}", f"run.folder={json.dumps(str(folder / 'run'))}"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
        + [str(folder), str(squares), start, where, *OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=SCRIPT.parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    "loss", ["info_nce", "sigmoid", "negclip", "own", "focal", "excused", "fd", "icl", "crd", "gd"]
)
def test_two_processes_see_the_loss_and_the_gradients_of_one(together: Path, alone: ModuleType, loss: str) -> None:
    expected = alone.loss_and_gradients(loss, Gathering())
    assert set(expected) >= {"loss", "image.weight", "text.weight", "scale"}
    for process in (0, 1):
        found = load_file(together / f"{process}.safetensors")
        for kind in ("whole", "local", "apart"):
            for name, tensor in expected.items():
                torch.testing.assert_close(found[f"{loss}/{kind}/{name}"], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_statistics_of_norms_are_the_mean_of_both(together: Path) -> None:
    # Batches 0..3 and 1..4 with momentum .1: means 1.5 and 2.5, variance 5/3 each.
    for process in (0, 1):
        found = load_file(together / f"{process}.safetensors")
        torch.testing.assert_close(found["norm/running_mean"], torch.full((2,), 0.2))
        torch.testing.assert_close(found["norm/running_var"], torch.full((2,), 0.9 + 0.1 * 5 / 3))


def test_joint_batch_norms_of_two_processes_are_those_of_one(together: Path, alone: ModuleType) -> None:
    expected = alone.joint_norms()
    assert {"norm.weight", "act.running_var", "last.1.num_batches_tracked"} <= expected.keys()
    for process, rows in ((0, slice(0, 4)), (1, slice(4, 10))):
        found = load_file(together / f"{process}.safetensors")
        for name, tensor in expected.items():
            wanted = tensor[rows] if name == "input" else tensor
            # A bias in front of a norm has a gradient of zero, and what is computed of it is rounding: 2.4e-5 was seen.
            torch.testing.assert_close(found[f"joint/{name}"], wanted, rtol=1e-4, atol=1e-4)


def test_the_rows_that_judge_are_shared_out(together: Path, alone: ModuleType) -> None:
    """300 pictures in parts of 128 and then three of them, texts in parts of four."""
    expected = alone.shared_vectors()
    assert (expected["own pictures"], expected["own texts"]) == (303, 7)
    for process, counts in ((0, (128 + 44 + 2, 4)), (1, (128 + 1, 3))):
        found = load_file(together / f"{process}.safetensors")
        assert (found["vectors/own pictures"], found["vectors/own texts"]) == counts
        for name in ("prepared", "images", "texts"):
            torch.testing.assert_close(found[f"vectors/{name}"], expected[name], rtol=0, atol=1e-6)


def test_a_batch_that_does_not_divide_is_refused(together: Path) -> None:
    for process in (0, 1):
        assert "a batch of 7 does not divide among 2 processes" in (together / f"{process}.txt").read_text()


def test_a_local_loss_without_gathered_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="local_loss without gather_with_grad gives wrong gradients"):
        Gathering(local_loss=True, with_gradient=False)
    for method in ("base", "negclip", "negation"):
        with pytest.raises(ValueError, match="wrong gradients"):
            methods.create(method, {"local_loss": True, "gather_with_grad": False})
        methods.create(method, {"gather_with_grad": False})


def test_alone_nothing_is_exchanged() -> None:
    own = torch.randn(3, 2, requires_grad=True)
    for gathering in (Gathering(), Gathering(local_loss=True), Gathering(with_gradient=False)):
        assert gathering.vectors(own) is own
        assert gathering.rows(3) is None
    assert (count(), rank()) == (1, 0)
    assert not distributed.is_initialized()
    assert part_of({"image": own})["image"].shape == (3, 2)


def test_the_loop_under_torchrun_trains_what_one_process_trains(
    train_squares: Callable[..., Path], square_base: Path, together: Path
) -> None:
    one, two = train_squares(*OPTIONS, base=square_base), together / "run"
    expected, found = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    base = load_file(square_base / "weights.safetensors")
    for name, tensor in expected.items():
        # Adam turns the rounding of gradients that are zero, such as those of key biases, into tiny steps.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert max((expected[name] - base[name]).abs().max().item() for name in expected) > 1e-3
    parts = load_file(together / "parts" / "weights.safetensors")
    for name, tensor in expected.items():  # each process encoded its four rows in two parts
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-4)
    logs = []
    for folder in (one, two):
        with (folder / "log.csv").open(newline="") as file:
            logs.append([row for row in csv.DictReader(file) if row["name"] in ("loss", "grad_norm", "negation")])
    assert len(logs[0]) == 12
    for left, right in zip(*logs, strict=True):
        assert float(left["value"]) == pytest.approx(float(right["value"]), rel=1e-4)
    told = [json.loads((together / f"{process}.json").read_text()) for process in (0, 1)]
    assert told[0] == told[1]
    assert told[0]["metrics"] == json.loads((two / "checkpoint.json").read_text())["metrics"]["validation"]
