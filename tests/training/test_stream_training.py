"""`clipworks train` on shards of the project's own exporter, by one process and by two."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from clipworks.cli import app
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.export_webdataset import write_webdataset
from evaluation.scenes.mixing import draw_records
from tests.tars import tar_bytes
from tests.training.broken_off import dies_in_the_fifth_step
from training.config import load_config, parse_config
from training.loop import train
from training.report import report_split

pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).with_name("stream_processes.py")
RECIPE = """
name = "stream"
seed = 3
method = "base"
[data]
kind = "webdataset"
folder = FOLDER
shards = "scenes-{000000..000003}.tar"
validation = "scenes-000004.tar"
samples = 48
cache_px = 20
buffer = 7
workers = 2
[augment]
templates = ["a drawing of {}"]
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16, dropout = 0.1}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 8
steps = 6
rate = 3e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
device = "cpu"
precision = "fp32"
threads = 1
log_steps = 2
validate_steps = 6
checkpoint_steps = 3
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of twelve scenes to train on, one that validates."""
    folder = tmp_path_factory.mktemp("stream")
    write_webdataset(draw_records(SceneConfig(), range(60)), folder, size_px=48, per_shard=12)
    (folder / "stream.toml").write_text(RECIPE.replace("FOLDER", json.dumps(str(folder))))
    return folder / "stream.toml"


def run_in(folder: Path) -> str:
    return f"run.folder={json.dumps(str(folder))}"


def same_tensors(left: Path, right: Path) -> bool:
    first, second = load_file(left), load_file(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of six steps by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = CliRunner().invoke(app, ["train", str(recipe), "--set", run_in(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.long
def test_the_command_trains_judges_and_logs(whole: Path) -> None:
    info = json.loads((whole / "checkpoint.json").read_text())
    assert info["step"] == 6
    assert info["metrics"]["validation"]["all"]["t2i_r@1"]["n"] == 12
    with (whole / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == "6"]
    numbers = {(row["series"], row["name"]): float(row["value"]) for row in rows}
    assert numbers["train", "pairs_per_s"] > 0
    assert 0 <= numbers["train", "data_wait_share"] <= 1
    assert numbers["train", "data_wait_s"] >= 0
    assert numbers["bad_samples", "broken picture"] == 0
    assert report_split(whole, split="validation") == info["metrics"]["validation"]
    with pytest.raises(ValueError, match=r"name data\.test"):
        report_split(whole, split="test")


def test_a_resumed_run_is_bit_equal(recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "broken"
    dies_in_the_fifth_step(recipe, run_in(folder), monkeypatch)
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 3
    torch.manual_seed(99)
    train(recipe, [run_in(folder)], resume=True)
    assert same_tensors(folder / "state.safetensors", whole / "state.safetensors")
    assert same_tensors(folder / "weights.safetensors", whole / "weights.safetensors")


def test_bad_samples_are_told_and_logged(recipe: Path, tmp_path: Path) -> None:
    shard = (recipe.parent / "scenes-000000.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(shard)
    (tmp_path / "1.tar").write_bytes(tar_bytes({"1.jpg": b"junk", "1.txt": b"a", "2.txt": b"alone", "3.txt": b"more"}))
    (tmp_path / "validation.csv").write_text("image,caption\na.png,a red square\nb.png,a blue square\n")
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (20, 16), colour).save(tmp_path / f"{name}.png")
    console = Console(file=io.StringIO(), width=200)
    table = f'{{kind = "table", folder = {json.dumps(str(tmp_path))}, table = "validation.csv"}}'
    result = train(
        recipe,
        [
            *(run_in(tmp_path / "run"), f"data.folder={json.dumps(str(tmp_path))}", 'data.shards="*.tar"'),
            *("data.workers=0", "data.samples=12", f"data.validation={table}", "optim.steps=3", "run.log_steps=1"),
        ],
        console=console,
    )
    assert result.metrics["all"]["t2i_r@1"]["n"] == 2
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["series"] == "bad_samples" and row["step"] == "3"]
    counts = {row["name"]: float(row["value"]) for row in rows}
    assert counts["no picture"] >= 2
    assert counts["broken picture"] >= 1
    told = [line for line in console.file.getvalue().splitlines() if "left out so far" in line]
    assert told[-1].startswith(f"step 3: {sum(counts.values()):.0f} samples left out so far (")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.shards="none-{0..1}.tar"', r"no shard .*none-0\.tar"),
        ('data.validation="none.tar"', r"no shard .*none\.tar"),
        ("data.workers=5", "4 shards for 5 readers"),
        ('run.report="fashion"', "judged by 'retrieval'"),
        ('method="negclip"', "streamed"),
        ("data.bufer=3", r"data\.bufer: there is no such setting"),
        ("data.cache_px=4", r"data\.cache_px"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(recipe: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(recipe, [run_in(tmp_path / "run"), override])
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training-at-size.md").read_text(encoding="utf-8")
    recipe = page.partition("```toml\n")[2].partition("```")[0]
    config = parse_config(tomllib.loads(recipe), where="docs/training-at-size.md")
    assert config.data.samples == 10_000_000
    assert config.optim.steps == pytest.approx(20 * config.data.samples / config.optim.batch_size, rel=0.01)


def test_more_workers_may_resume(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Not bit-equal, and the recipe is the same one."""
    other = load_config(recipe, ["data.workers=0", run_in(whole)])
    assert other.data.workers == 0
    assert train(recipe, ["data.workers=0", run_in(whole)], resume=True).step == 6


@pytest.fixture(scope="module")
def together(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: their rows of an epoch, and a run."""
    folder = tmp_path_factory.mktemp("together")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
        + [str(folder), str(recipe), run_in(folder / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=SCRIPT.parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
def test_two_processes_see_each_sample_of_an_epoch_once(together: Path) -> None:
    found = [load_file(together / f"{process}.safetensors") for process in (0, 1)]
    rows = torch.stack([each["rows"] for each in found])
    assert rows.shape == (2, 6, 4)
    assert len(rows.unique()) == 48
    for each in found:
        # From the middle on, and from a place that knows of both processes.
        assert torch.equal(each["rest"], each["rows"][2:])
        assert sum(name.endswith("/place") for name in each) == 4
        assert each["bad"] == 0
    positions = [{name: tensor for name, tensor in each.items() if "/place" in name} for each in found]
    assert all(torch.equal(positions[0][name], positions[1][name]) for name in positions[0])


@pytest.mark.long
def test_two_processes_train_and_resume(together: Path) -> None:
    info = json.loads((together / "run" / "checkpoint.json").read_text())
    assert info["step"] == 6
    state = load_file(together / "run" / "state.safetensors")
    assert {name for name in state if name.startswith("data/") and name.endswith("/place")} == {
        f"data/{reader}/place" for reader in range(4)
    }


@pytest.mark.slow
def test_a_student_learns_from_shards_in_half_precision_and_parts_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(recipe, [run_in(teacher), "optim.steps=2", "seed=5"])
    taught = f'method_options={{teacher = {json.dumps(str(teacher))}, preset = "unified"}}'
    options = ["method=kd", taught, "run.precision=bf16", "optim.accumulate=2", "run.keep=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        train(recipe, [run_in(folder), *options])
    train(recipe, [run_in(parts), *options], from_step=3)
    assert same_tensors(whole / "weights.safetensors", parts / "weights.safetensors")
    with (whole / "log.csv").open(newline="") as file:
        terms = {row["name"] for row in csv.DictReader(file) if row["series"] == "train"}
    assert {"task", "fd", "icl", "crd"} <= terms
    with pytest.raises(ValueError, match="wants a look at every picture beforehand: shards that are streamed"):
        train(recipe, [run_in(tmp_path / "refused"), *options, "method_options.looks=2"])
