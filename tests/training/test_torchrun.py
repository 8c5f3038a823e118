"""Two processes under torchrun are one, with batch norms and all, whatever the method.

The recipes are trained one after another by the same two processes, which saves their start.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import load_model, read_checkpoint
from training.config import SmallConfig
from training.history import saved_steps
from training.loop import train

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.long]
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


STUDENT = 'method_options.image={trunk = "clipworks_conv_t", size_px = 24}'
MASKS = "method_options.masks={image=0.5,text=0.5,rate_share=60,start=1.0,ramp_share=0.2,fixed_share=0.4}"


@dataclass(frozen=True, kw_only=True)
class Both:
    """Folders of runs by one process and by two, and what the two printed of all their runs."""

    one: Path
    two: Path
    mirror: Path
    said: str


@pytest.fixture(scope="module")
def trained(squares: Path, vit_squares: Path, vit_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("torchrun")
    both = Both(one=folder / "one", two=folder / "two", mirror=folder / "mirror", said="")
    teacher = json.dumps(str(folder / "teacher"))
    train(squares, [f"run.folder={teacher}", "optim.steps=60", "seed=11"])
    terms = ", ".join(f"{term} = 1.0" for term in ("task", "fd", "gd", "icl", "crd", "afd"))
    recipes = {
        "base": (squares, OPTIONS),
        "kd": (
            squares,
            ("method=kd", f"method_options={{teacher = {teacher}, looks = 2, {terms}}}", "optim.steps=4")
            + ("model.embed_dim=24",),
        ),
        "kd_image": (
            squares,
            ("method=kd_image", STUDENT, f"base={teacher}", "optim.steps=4")
            + tuple(f"method_options.{each}" for each in ("icl=1", "crd=1", "local_loss=true")),
        ),
        "tinyclip": (
            vit_squares,
            ("method=tinyclip", f"base={json.dumps(str(vit_base))}", MASKS, "optim.steps=5", "optim.rate=1e-3")
            + ("method_options.local_loss=true",),
        ),
    }
    words: list[list[str]] = []
    for name, (recipe, options) in recipes.items():
        train(recipe, [f"run.folder={json.dumps(str(both.one / name))}", *options])
        places = [f"run.folder={json.dumps(str(both.two / name))}"]
        places += [f"run.mirror={json.dumps(str(both.mirror))}"] if name == "base" else []
        words.append([str(recipe), *(word for each in (*places, *options) for word in ("--set", each))])
    (folder / "recipes.json").write_text(json.dumps(words), encoding="utf-8")
    script, torchrun = Path(__file__).with_name("train_each.py"), Path(sys.executable).with_name("torchrun")
    done = subprocess.run(
        [torchrun, "--standalone", "--nproc_per_node", "2", script, folder / "recipes.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return replace(both, said=done.stdout)


def test_torchrun_trains_what_one_process_trains(trained: Both) -> None:
    one, two = trained.one / "base", trained.two / "base"
    assert trained.said.replace("\n", "").count(f"checkpoint at step 4: {two}") == 1  # lines are wrapped
    expected, found = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4)
    assert list(saved_steps(two)) == [2, 4]
    assert json.loads((trained.mirror / "latest.json").read_text()) == {"folder": "step-00000004"}
    logs = []
    for folder in (one, two):
        with (folder / "log.csv").open(newline="") as file:
            logs.append([row for row in csv.DictReader(file) if row["name"] not in TIMES])
    assert [(row["step"], row["name"]) for row in logs[0]] == [(row["step"], row["name"]) for row in logs[1]]
    for left, right in zip(*logs, strict=True):
        assert float(left["value"]) == pytest.approx(float(right["value"]), rel=1e-3, abs=1e-6), left
    assert load_model(two).info.metrics == load_model(one).info.metrics


@pytest.mark.parametrize("method", ["kd", "kd_image"])
def test_two_processes_train_the_student_that_one_does(trained: Both, method: str) -> None:
    one, two = (load_file(folder / method / "weights.safetensors") for folder in (trained.one, trained.two))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_two_processes_prune_what_one_does(trained: Both) -> None:
    one, two = trained.one / "tinyclip", trained.two / "tinyclip"
    models = [read_checkpoint(folder).config.model for folder in (one, two)]
    assert models[0] == models[1]
    assert isinstance(models[0], SmallConfig)
    assert models[0].slim
    assert models[0].slim.image
    assert models[0].slim.image.width < 128
    expected, found = (load_file(folder / "state.safetensors") for folder in (one, two))
    for name, tensor in expected.items():
        if name.startswith("live/"):
            torch.testing.assert_close(found[name].float(), tensor.float(), rtol=1e-3, atol=5e-4, msg=lambda m: name)  # noqa: B023
    for name in ("affinity", "sparsity_image", "sparsity_text"):
        assert logged(two, name) == pytest.approx(logged(one, name), rel=1e-3, abs=1e-5)


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "log.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if (row["series"], row["name"]) == ("train", name)]
