"""Linear probes: scikit-learn's probabilities, and class heads from a recipe to a checkpoint and its report."""

from __future__ import annotations

import csv
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from evaluation.metrics import normalize
from model_store.towers import activated
from training import few_shot, report
from training.checkpoint import load_head, load_model, read_checkpoint
from training.loop import train
from training.methods.parts.linear_heads import logistic_probe
from training.opening import open_checkpoint
from training.report import report_split

pytestmark = pytest.mark.torch

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}
BASE = """
name = "tiny"
seed = 3
method = "base"
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
image = {trunk = "clipworks_conv_t", size_px = 16}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 8
steps = 4
rate = 3e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
device = "cpu"
threads = 1
report = "fashion"
"""


@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_are_sklearns(classes: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(classes), 12)
    vectors = normalize(rng.normal(size=(classes, 8))[truth] + rng.normal(size=(len(truth), 8)))
    (weight, bias), converged = logistic_probe(vectors, truth, classes=classes, c=10.0, steps=2000)
    theirs = LogisticRegression(C=10.0, max_iter=2000).fit(vectors.astype(np.float64), truth)
    assert converged
    np.testing.assert_allclose(
        activated(vectors @ weight + bias, "softmax"), theirs.predict_proba(vectors), rtol=1e-6, atol=1e-9
    )
    order = np.roll(np.arange(classes), 1)
    moved, _ = logistic_probe(vectors, np.argsort(order)[truth], classes=classes, c=10.0, steps=2000)
    np.testing.assert_allclose(vectors @ moved[0] + moved[1], (vectors @ weight + bias)[:, order], atol=0.02)
    assert not logistic_probe(vectors, truth, classes=classes, c=1e4, steps=2)[1]
    with pytest.raises(ValueError, match="no picture"):
        logistic_probe(vectors, truth, classes=classes + 1, c=1.0, steps=10)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 coloured squares with titles, their recipe, and a base trained for four steps."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "baseColour"])
        for number in range(120):
            name = list(COLOURS)[number % 4]
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 8, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            kind = ("shirt", "belt", "thing")[number % 3]
            writer.writerow([f"{number}.png", f"plain {name} {kind}", name if number != 6 else ""])
    (folder / "base.toml").write_text(BASE.replace('folder = "."', f"folder = {json.dumps(str(folder))}"))
    train(folder / "base.toml", [f"run.folder={json.dumps(str(folder / 'base'))}"])
    return folder


def head_of(table: Path, method: str, tmp_path: Path, **options: object) -> Path:
    recipe = tmp_path / "head.toml"
    text = (table / "base.toml").read_text().replace('method = "base"', f'method = "{method}"')
    recipe.write_text(f"base = {json.dumps(str(table / 'base'))}\n{text}")
    folder = tmp_path / method
    sets = [f"method_options.{name}={json.dumps(value)}" for name, value in options.items()]
    train(recipe, [f"run.folder={json.dumps(str(folder))}", *sets])
    return folder


@pytest.mark.parametrize("method", ["gda", "linear_probe"])
def test_a_head_becomes_a_checkpoint_that_explains_itself(table: Path, tmp_path: Path, method: str) -> None:
    folder = head_of(table, method, tmp_path, label="baseColour", shots=50)
    info, head = read_checkpoint(folder), load_head(folder)
    base = load_model(table / "base")
    assert head.labels == info.labels == tuple(sorted(COLOURS))
    assert (info.graphs, info.inherited) == ({}, ("image_encoder", "text_encoder"))
    assert head.base_sha256 == base.info.weights_sha256
    assert {name: array.shape for name, array in head.arrays.items()} == {"weight": (16, 4), "bias": (4,)}
    told = info.metrics["validation"]
    fewer = told["shots"]["classes_with_fewer"]
    assert sorted(fewer) == sorted(COLOURS)
    assert (sum(fewer.values()), told["shots"]["pictures"]) == (95, 95)
    # The stored arrays, behind the base's own vectors, give the numbers that the checkpoint tells.
    again = report_split(folder, data_folder=table, split="validation")
    assert again["head"]["accuracy"] == told["head"]["accuracy"]
    assert again["zero_shot"]["accuracy"] == told["zero_shot"]["accuracy"]
    assert again["head"]["accuracy"]["value"] > 0.9 > again["head"]["majority"]
    assert report_split(folder, data_folder=table, split="test")["head"]["accuracy"]["n"] == 12
    with pytest.raises(ValueError, match=f"class head of method {method}, not a model"):
        open_checkpoint(folder)
    with pytest.raises(ValueError, match="is no class head"):
        load_head(table / "base")


def test_a_head_is_refused_behind_another_base(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = head_of(table, "gda", tmp_path, label="article_type", shots=0)
    assert load_head(folder).labels == ("belt", "shirt")
    other = tmp_path / "other"
    train(table / "base.toml", [f"run.folder={json.dumps(str(other))}", "seed=4"])
    with pytest.raises(ValueError, match="fitted on weights"):
        report_split(folder, data_folder=table, split="validation", base=other)
    with pytest.raises(ValueError, match="it is not there: say where it lies now"):
        report_split(folder, data_folder=table, split="validation", base=tmp_path / "moved")
    (folder / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match="sha256"):
        load_head(folder)
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--data", str(table)])
    assert report.main() == 1
    assert "sha256" in capsys.readouterr().err


def test_classes_may_be_named(table: Path, tmp_path: Path) -> None:
    folder = head_of(table, "gda", tmp_path, label="baseColour", only=["white", "blue"])
    assert load_head(folder).labels == ("blue", "white")
    judged = read_checkpoint(folder).metrics["validation"]
    assert judged["shots"]["classes"] == 2
    assert judged["shots"]["validation_without_a_class"] == 12 - judged["head"]["accuracy"]["n"] > 0


def test_unknown_labels_and_thin_classes_are_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no label 'size': this table has baseColour, article_type"):
        head_of(table, "gda", tmp_path, label="size")
    with pytest.raises(ValueError, match="0 of 4 classes have 99 training pictures"):
        head_of(table, "gda", tmp_path, label="baseColour", least=99)


@pytest.mark.long
def test_the_comparison_prints_every_head_beside_zero_shot(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "numbers.json"
    words = ["few_shot", "--base", str(table / "base"), "--data", str(table), "--label", "baseColour"]
    words += ["--shots", "1,50", "--seeds", "2", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert few_shot.main() == 0
    printed, (numbers,) = capsys.readouterr().out, json.loads(out.read_text())
    heads = ("bias", "mean", "frequencies", "clip_adapter", "gda", "linear_probe", "tip_adapter", "tip_adapter_f")
    assert [(run["method"], run["shots"]) for run in numbers["runs"]] == list(product(heads, (1,))) + list(
        product(heads, (50,))
    )
    assert (numbers["classes"], numbers["n"], numbers["split"]) == (4, 12, "validation")
    for run in numbers["runs"]:
        assert run["lowest"] <= run["accuracy"]["value"] <= run["highest"]
    assert "| zero-shot | 0 |" in printed
    knobs = {run["method"]: sorted(run["chosen"]) for run in numbers["runs"]}
    assert (knobs["gda"], knobs["tip_adapter_f"]) == (["mix"], ["alpha", "beta", "epoch"])
    assert re.search(r"\| tip_adapter \| 50 \|.*\| alpha [\d.e+]+, [\d.e+]+; beta [\d.]+, [\d.]+ \|", printed)
    assert printed.count("With 50 shots these classes have fewer pictures") == 1
    monkeypatch.setattr("sys.argv", [*words, "--head", "gda"])
    assert few_shot.main() == 0
    (numbers,) = json.loads(out.read_text())
    assert {run["method"] for run in numbers["runs"]} == {"bias", "mean", "frequencies", "gda"}
    monkeypatch.setattr("sys.argv", [*words, "--head", "tip_adaptor"])
    assert few_shot.main() == 1
    assert "no head 'tip_adaptor'; is tip_adapter meant?; there are: clip_adapter, gda" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*words, "--label", "size"])
    assert few_shot.main() == 1
    assert "no label 'size'" in capsys.readouterr().err
