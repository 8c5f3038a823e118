"""The loop on a tiny recipe: it learns, logs, and resumes bit-equal; recipes refuse what they do not know."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from tests.training.broken_off import dies_in_the_fifth_step
from training import method as methods
from training.checkpoint import load_model
from training.config import MixedData, TableData, load_config, parse_config
from training.data.source import TableSource
from training.loop import train
from training.optimization import rate_at

TIMES = {"pairs_per_s", "data_wait_s", "data_wait_share"}
CONFIGS = Path(__file__).parents[2] / "training" / "configs"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}
RECIPE = """
name = "tiny"
seed = 3
method = "base"
[method_options]
templates = ["{}", "a {}"]
[data]
folder = "."
cache_px = 20
label_columns = ["baseColour"]
split = {modulo = 10, test = [1], validation = [2]}
[augment]
templates = ["a {}"]
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16, dropout = 0.1}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos+bag", dropout = 0.1}
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
threads = 1
log_steps = 1
validate_steps = 3
checkpoint_steps = 3
report = "fashion"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "baseColour"])
        for number in range(120):
            name = list(COLOURS)[number % 4]
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 8, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"plain {name} shirt", name])
    (folder / "tiny.toml").write_text(RECIPE.replace('folder = "."', f"folder = {json.dumps(str(folder))}"))
    return folder / "tiny.toml"


def run_folder(tmp_path: Path, name: str) -> tuple[Path, str]:
    return tmp_path / name, f"run.folder={json.dumps(str(tmp_path / name))}"


def same_tensors(left: Path, right: Path) -> bool:
    a, b = load_file(left), load_file(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of six steps without a break."""
    folder, override = run_folder(tmp_path_factory.mktemp("runs"), "whole")
    train(recipe, [override])
    return folder


def test_a_resumed_run_is_bit_equal(recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, override = run_folder(tmp_path, "broken")
    dies_in_the_fifth_step(recipe, override, monkeypatch)
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 3
    assert not same_tensors(folder / "state.safetensors", whole / "state.safetensors")
    torch.manual_seed(99)  # what happened before a resume must not matter
    result = train(recipe, [override], resume=True)
    assert result.step == 6
    assert same_tensors(folder / "state.safetensors", whole / "state.safetensors")
    assert same_tensors(folder / "weights.safetensors", whole / "weights.safetensors")
    with (folder / "log.csv").open(newline="") as broken, (whole / "log.csv").open(newline="") as unbroken:
        lines = [[row for row in csv.reader(file) if not TIMES & {*row}] for file in (broken, unbroken)]
    assert lines[0] == lines[1]


def test_other_seeds_give_other_weights(recipe: Path, whole: Path, tmp_path: Path) -> None:
    folder, override = run_folder(tmp_path, "seed")
    train(recipe, [override, "seed=4", "optim.steps=3"])
    assert not same_tensors(folder / "weights.safetensors", whole / "weights.safetensors")


def test_resume_refuses_another_recipe_and_a_fresh_run_refuses_a_used_folder(recipe: Path, whole: Path) -> None:
    override = f"run.folder={json.dumps(str(whole))}"
    with pytest.raises(ValueError, match="cannot resume under another recipe: optim"):
        train(recipe, [override, "optim.rate=0.5"], resume=True)
    with pytest.raises(ValueError, match="holds a run already"):
        train(recipe, [override])


def test_the_log_holds_losses_rates_and_validation(whole: Path) -> None:
    with (whole / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["value"]) for row in rows if row["name"] == "rate"]
    assert rates == pytest.approx([0.0015, 0.003, 0.003, 0.0025607, 0.0015, 0.00043934], rel=1e-3)
    losses = [float(row["value"]) for row in rows if (row["series"], row["name"]) == ("train", "loss")]
    assert losses == [float(row["value"]) for row in rows if row["name"] == "info_nce"]
    assert len(losses) == 6
    for name, least, most in (("pairs_per_s", 1e-3, 1e9), ("data_wait_s", 0, 1e3), ("data_wait_share", 0, 1)):
        found = [float(row["value"]) for row in rows if (row["series"], row["name"]) == ("train", name)]
        assert len(found) == 6
        assert all(least <= value <= most for value in found)
    assert {row["step"] for row in rows if row["series"] == "validation"} == {"3", "6"}
    assert list((whole / "tensorboard").iterdir())


@pytest.mark.parametrize("options", [[], ["method_options.loss=sigmoid", "model.logit_bias=true"]])
def test_it_learns_colours(recipe: Path, tmp_path: Path, options: list[str]) -> None:
    _, override = run_folder(tmp_path, "learns")
    console = Console(file=io.StringIO(), width=200)
    steps = ["optim.steps=60", "run.validate_steps=60", "run.checkpoint_steps=60"]
    result = train(recipe, [override, *steps, *options], console=console)
    colour = result.metrics["all"]["t2i_r@1"]["value"]
    assert colour >= 0.9
    assert "t2i_r@1" in console.file.getvalue()


def test_held_out_rows_never_reach_the_method(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    create = methods.create

    def spying(name: str, options: dict) -> methods.Method:
        method = create(name, options)
        setup = method.setup

        def look(context: methods.Context) -> None:
            source = context.source
            assert isinstance(source, TableSource)
            seen.extend(row.group for row in source.rows)
            assert len(source.pixels) == len(source.rows)
            setup(context)

        monkeypatch.setattr(method, "setup", look)
        return method

    monkeypatch.setattr(methods, "create", spying)
    train(recipe, [run_folder(tmp_path, "spy")[1], "optim.steps=1"])
    assert sorted(seen) == [number for number in range(120) if number % 10 not in (1, 2)]


def test_words_no_caption_holds_are_zero(whole: Path) -> None:
    loaded = load_model(whole)
    weight = loaded.model.text.token_embedding.weight
    seen = sorted(
        {
            i
            for text in ("plain red shirt", "plain green shirt", "plain blue shirt", "plain white shirt", "a")
            for i in loaded.tokenizer.encode(text)
        }
    )
    unseen = torch.ones(len(weight), dtype=torch.bool)
    unseen[seen] = False
    assert (weight[unseen] == 0).all()
    assert (weight[seen].abs().sum(dim=1) > 0).all()


def test_rate_warms_up_and_ends_at_its_floor() -> None:
    recipe = load_config(CONFIGS / "fashion.toml", ["data.folder=x"]).optim
    optim = recipe.model_copy(update={"rate": 1.0, "warmup_steps": 10, "steps": 110, "final_rate_share": 0.1})
    assert rate_at(0, optim) == pytest.approx(0.1)
    assert rate_at(9, optim) == rate_at(10, optim) == pytest.approx(1.0)
    assert rate_at(60, optim) == pytest.approx(0.55)
    assert rate_at(109, optim) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_loads_and_names_a_method(path: Path) -> None:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    kind, somewhere = values["data"].get("kind", "table"), {"folder": "somewhere"}
    if kind in ("table", "folder", "pictures"):
        values["data"] = {**somewhere, **values["data"]}
    elif kind == "mixed":
        values["data"]["table"] = {**somewhere, **values["data"]["table"]}
    if str(values.get("base", "")).startswith("artifact:"):
        values["model"] = {"kind": "artifact", "reference": "somewhere"}
    elif "model" not in values:  # a cure takes its model from its base, which a fresh clone has not trained
        values["base"], values["model"] = "somewhere", tomllib.loads((CONFIGS / "lab" / "b0.toml").read_text())["model"]
    config = parse_config(values, where="x")
    methods.create(config.method, config.method_options)
    table = config.data.table if isinstance(config.data, MixedData) else config.data
    if isinstance(table, TableData):
        assert table.folder == Path("somewhere")
        assert not {1, 2} - {*table.split.test, *table.split.validation}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.stepz=3", "optim.stepz: there is no such setting; is optim.steps meant?"),
        ("optim.steps=0", "optim.steps"),
        ("model.kind=huge", "model"),
        ("seed", "expected key=value"),
        ("seed.x=1", "'seed' is a value"),
    ],
)
def test_settings_refuse_what_they_do_not_know(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(recipe, [override])


def test_unknown_methods_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no method 'nothing'; there are: aligned, base"):
        methods.create("nothing", {})
    with pytest.raises(ValueError, match="lozz"):
        methods.create("base", {"lozz": "info_nce"})
