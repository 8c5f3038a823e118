"""Zero-shot classification while training says what the house's evaluation says of the checkpoint."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.standard.classify import ZeroShotTask
from evaluation.standard.image_folder import read_image_folder
from evaluation.zero_shot import class_matrix, zero_shot
from training.checkpoint import load_model, read_checkpoint
from training.encoder import encoder_of
from training.history import step_folder

pytestmark = pytest.mark.torch
Train = Callable[..., Path]
OPTIONS = ("optim.steps=4", "run.checkpoint_steps=2", "run.validate_steps=9", "run.keep=9", "run.zero_shot_steps=2")
TEMPLATES = "method_options.templates=['plain {} shirt 0', 'plain {} shirt 1']"
COLOURS = ("red", "green", "blue", "white")


def logged(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["series"] == "zero_shot"]
    return {(int(row["step"]), row["name"]): float(row["value"]) for row in rows}


def test_a_label_column_is_classified_every_n_steps(train_squares: Train, squares: Path) -> None:
    run = train_squares(*OPTIONS, TEMPLATES, "run.zero_shot_label=colour")
    with (squares.parent / "captions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["image"].removesuffix(".png")) % 10 == 2]
    for step in (2, 4):
        loaded = load_model(step_folder(run, step))
        encoder, names = encoder_of(loaded, name="x"), sorted(COLOURS)
        images = encoder.encode_images([(squares.parent / row["image"]).read_bytes() for row in rows])
        truth = np.array([names.index(row["colour"]) for row in rows])
        expected = zero_shot(images, truth, class_matrix(encoder.encode_texts, names, loaded.info.templates))
        assert logged(run)[step, "accuracy/value"] == pytest.approx(expected.accuracy.value, rel=1e-5)
        assert logged(run)[step, "class_mean"] == pytest.approx(expected.class_mean, rel=1e-5)
        assert read_checkpoint(step_folder(run, step)).metrics["zero_shot"]["classes"] == 4
    assert {step for step, _ in logged(run)} == {2, 4}


def test_a_folder_is_classified_as_the_evaluation_does(train_squares: Train, squares: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    for number in range(24):
        name = COLOURS[number % 4]
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(squares.parent / f"{number}.png", folder / name / f"{number}.png")
    run = train_squares(*OPTIONS, TEMPLATES, f"run.zero_shot_folder={json.dumps(str(folder))}")
    task = ZeroShotTask("x", read_image_folder(folder), wordings=("own",))
    for step in (2, 4):
        rows = task.measure(encoder_of(load_model(step_folder(run, step)), name="x")).rows
        expected = {row.name.removesuffix(", own templates"): row.score for row in rows}
        assert {"top-1", "mean over classes", "majority baseline"} == expected.keys()
        for name, score in expected.items():
            assert logged(run)[step, name] == pytest.approx(score, rel=1e-5)


def test_what_cannot_be_classified_is_said_before_the_work(train_squares: Train, tmp_path: Path) -> None:
    for options, words in (
        (("run.zero_shot_steps=2",), "zero_shot_steps goes with one of zero_shot_folder and zero_shot_label"),
        (("run.zero_shot_label=colour",), "zero_shot_steps goes with one of"),
        (("run.zero_shot_steps=2", "run.zero_shot_label=size"), "no label 'size': this table has colour"),
        (("run.zero_shot_steps=2", "run.zero_shot_folder=nowhere"), "nowhere: no such folder"),
    ):
        with pytest.raises(ValueError, match=words):
            train_squares(*options)
        assert not (tmp_path / "run").exists()
