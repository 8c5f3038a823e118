"""Class heads and cured text towers through `clipworks export`: the base is found, only the new part is published."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipworks.cli import app
from evaluation.encoder import ArtifactEncoder
from model_store.session import SessionSettings
from model_store.store import Artifact, Store
from model_store.towers import open_head
from training.checkpoint import load_head
from training.loop import train
from training.methods.parts.few_shot import head_name
from training.opening import open_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.slow]

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}
RECIPE = """
name = "squares"
seed = 3
method = "base"
[data]
folder = "."
cache_px = 16
label_columns = ["baseColour"]
negative_column = "wrong"
split = {modulo = 10, test = [1], validation = [2]}
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 16
steps = 4
rate = 3e-3
warmup_steps = 0
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.5
[run]
folder = "unset"
device = "cpu"
threads = 1
"""


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout + result.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ (published as squares@1), map/ and head/ made on top of it, and the store of all."""
    folder = tmp_path_factory.mktemp("publish")
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "baseColour", "wrong"])
        names = list(COLOURS)
        for number in range(80):
            name, other = names[number % 4], names[(number + 1) % 4]
            Image.new("RGB", (16, 16), COLOURS[name]).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"a {name} square", name, f"a {other} square"])
    recipe = RECIPE.replace('folder = "."', f"folder = {json.dumps(str(folder))}")
    (folder / "base.toml").write_text(recipe)
    train(folder / "base.toml", [f"run.folder={json.dumps(str(folder / 'base'))}"])
    for name, method in (("map", "labclip"), ("head", "linear_probe")):
        (folder / f"{name}.toml").write_text(
            f"base = {json.dumps(str(folder / 'base'))}\n" + recipe.replace('method = "base"', f'method = "{method}"')
        )
    train(folder / "map.toml", [f"run.folder={json.dumps(str(folder / 'map'))}"])
    head = [f"run.folder={json.dumps(str(folder / 'head'))}", "method_options.label=baseColour"]
    train(folder / "head.toml", head)
    return folder


def export(lab: Path, checkpoint: str, name: str, *more: str) -> tuple[int, str]:
    where = ("--store", lab / "store", "--precision", "fp32")
    return run("export", lab / checkpoint, "--name", name, *where, *more)


@pytest.fixture(scope="module")
def base(lab: Path) -> Artifact:
    refused = [export(lab, each, "early") for each in ("head", "map")]
    for code, said in refused:
        assert code != 0
        assert "no artifact of the store is the base" in " ".join(said.split())
    code, said = export(lab, "base", "squares", "--dense", "none")
    assert code == 0, said
    return Store(lab / "store", builtin=False).open("squares")


@pytest.mark.long
def test_a_class_head_is_published_alone_and_gives_the_checkpoints_logits(lab: Path, base: Artifact) -> None:
    code, said = export(lab, "head", "colours")
    assert code == 0, said
    artifact = Store(lab / "store", builtin=False).open("colours")
    assert [graph.role for graph in artifact.manifest.graphs] == ["class_head"]
    assert (artifact.base and artifact.base.reference, artifact.manifest.space) == ("squares@1", base.manifest.space)
    head, served = load_head(lab / "head"), open_head(artifact, head_name("baseColour"), SessionSettings())
    assert served.spec.labels == head.labels == tuple(sorted(COLOURS))
    pictures = [(lab / f"{number}.png").read_bytes() for number in range(8)]
    vectors = open_checkpoint(lab / "base").encode_images(pictures)
    np.testing.assert_allclose(
        served(vectors), vectors @ head.arrays["weight"] + head.arrays["bias"], rtol=1e-4, atol=1e-4
    )
    code, said = export(lab, "head", "colours", "--base", "colours@1")
    assert code != 0
    assert "is not the base of this checkpoint" in " ".join(said.split())


@pytest.mark.long
def test_a_cured_text_tower_keeps_its_bases_space_and_pictures(lab: Path, base: Artifact) -> None:
    code, said = export(lab, "map", "cured", "--base", "squares@1")
    assert code == 0, said
    artifact = Store(lab / "store", builtin=False).open("cured")
    assert [graph.role for graph in artifact.manifest.graphs] == ["text_encoder"]
    assert artifact.manifest.space == base.manifest.space
    (proof,) = artifact.manifest.space_proofs
    assert (proof.tower, proof.n) == ("text", 8)
    assert proof.base_value is not None
    assert proof.value >= (proof.at_least or 9) == pytest.approx(0.9 * proof.base_value)
    texts, pictures = ["a red square", "blue", "a white square"], [(lab / "5.png").read_bytes()]
    ours, theirs = ArtifactEncoder(artifact), open_checkpoint(lab / "map")
    np.testing.assert_allclose(ours.encode_texts(texts), theirs.encode_texts(texts), atol=1e-4)
    before = ArtifactEncoder(base)
    np.testing.assert_allclose(ours.encode_images(pictures), before.encode_images(pictures), atol=0)
    assert np.abs(ours.encode_texts(texts) - before.encode_texts(texts)).max() > 1e-3


def test_a_model_of_its_own_has_no_base(lab: Path) -> None:
    code, said = export(lab, "base", "again", "--base", "squares")
    assert code != 0
    assert "inherits nothing: leave --base out" in " ".join(said.split())


def test_a_derivation_has_its_bases_kinds_of_text_graphs(lab: Path) -> None:
    code, said = export(lab, "head", "again", "--text-precision", "fp32")
    assert code != 0
    assert "leave --text-precision out" in " ".join(said.split())


@pytest.mark.parametrize(
    ("label", "name"), [("baseColour", "basecolour"), ("Article type", "article-type"), ("色", "classes")]
)
def test_heads_are_named_after_their_label(label: str, name: str) -> None:
    assert head_name(label) == name
