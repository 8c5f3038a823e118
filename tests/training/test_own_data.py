"""A person's own captions and classes: what is wrong is said before the first step, and no step is ever lost."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from evaluation.standard.tables import table_captions
from model_store.store import Store
from tests.stores import SHOP_STORE
from training import method as methods
from training.checkpoint import load_head, read_checkpoint
from training.config import ARTIFACT
from training.data.classes import read_classes
from training.interrupts import TrainingStopped
from training.log import headline
from training.loop import train
from training.publish import publish_checkpoint
from training.recipes import FOLDER, find_recipe, shipped_recipes
from training.report import report_split

pytestmark = pytest.mark.torch

COLOURS = ("red", "green", "blue", "white", "black")
SHORT = [
    *("optim.steps=4", "optim.batch_size=8", "optim.warmup_steps=1", "run.device=cpu", "run.threads=1"),
    *("run.validate_steps=2", "run.checkpoint_steps=2", "run.log_steps=1"),
]


def write_captions(folder: Path, *, names: str = "picture {letter}.png", count: int = 60) -> Path:
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(count):
            colour = COLOURS[number % len(COLOURS)]
            name = names.format(letter="abcdefghij"[number // 10] + "klmnopqrst"[number % 10], number=number)
            Image.new("RGB", (24 + number % 3, 24), colour).save(folder / name)
            writer.writerow([name, f"a {colour} square"])
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "mine")


def start(name: str, data: Path, run: Path, *more: str, console: Console | None = None, **options: Any) -> Any:
    overrides = [f"data.folder={json.dumps(str(data))}", f"run.folder={json.dumps(str(run))}", *SHORT, *more]
    return train(find_recipe(name), overrides, console=console, **options)


def test_captions_of_any_names_train_and_are_judged(captions: Path, tmp_path: Path) -> None:
    said = Console(file=io.StringIO(), width=120, force_terminal=True)
    result = start("captions", captions, tmp_path / "run", console=said)
    assert result.step == 4
    printed = said.file.getvalue()
    assert "nan" not in printed
    assert "pictures" in printed
    assert "t2i_r@1" in printed
    held_out = report_split(tmp_path / "run", data_folder=captions, split="test")
    assert held_out["all"]["t2i_r@1"]["n"] + result.metrics["all"]["t2i_r@1"]["n"] < 30


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("fashion", ["data.label_columns=[]", "data.split.by=name"], "run.report is 'fashion'.*baseColour"),
        ("fashion", [], "no value for baseColour"),
        ("captions", ["data.split.by=number"], "holds no number to split by; set data.split.by"),
        ("captions", ["data.caption_column=text"], "no column 'text'; it has 'image', 'caption'"),
        ("captions", ["optim.batch_size=64"], "48 training rows do not fill a batch|rows do not fill a batch"),
        ("captions", ["data.split.modulo=1000"], "for validation: a hash of the file's name modulo 1000"),
        ("captions", ["method=gda", "method_options={label=\"class\"}"], "set base to its checkpoint"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_written(
    captions: Path, tmp_path: Path, recipe: str, more: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start(recipe, captions, tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_all_bad_pictures_are_named_at_once(captions: Path, tmp_path: Path) -> None:
    for path in captions.glob("picture a?.png"):
        path.unlink()
    for path in captions.glob("picture b?.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1[0-9] of \d+ images cannot be read") as refused:
        start("captions", captions, tmp_path / "run")
    lines = str(refused.value).splitlines()
    assert len(lines) == 12
    assert lines[-1].startswith("and ")
    assert "picture ak.png: No such file or directory" in lines
    assert any(line.startswith("picture b") and "not an image" in line for line in lines)


def test_a_run_folder_that_cannot_be_written_is_found_first(captions: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no folder that can be written to"):
        start("captions", captions, tmp_path / "file" / "run")


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes("\ufeffimage,caption\r\na.png,une fleur rouge é\r\n".encode())
    assert [(image, caption) for image, caption, _ in table_captions(path)] == [("a.png", "une fleur rouge é")]
    path.write_text("image;caption\na.png;b\n")
    with pytest.raises(ValueError, match="no column 'image'; it has 'image;caption'.*separated by commas"):
        table_captions(path)


def test_a_judge_that_fails_costs_no_step(captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = methods.create

    def fails_when_asked_late(name: str, options: dict[str, Any]) -> methods.Method:
        method, asked = create(name, options), iter(range(100))

        def validated() -> None:
            if next(asked) == 2:  # after the rehearsal and the second step
                raise RuntimeError("the judge is out of memory")

        monkeypatch.setattr(method, "validated", validated)
        return method

    monkeypatch.setattr(methods, "create", fails_when_asked_late)
    with pytest.raises(RuntimeError, match="out of memory"):
        start("captions", captions, tmp_path / "run")
    monkeypatch.undo()
    saved = read_checkpoint(tmp_path / "run")
    assert saved.step == 4
    assert saved.metrics["validation"]["all"]["t2i_r@1"]["n"] > 0  # of the second step


def test_a_stop_leaves_a_checkpoint_that_goes_on(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    create = methods.create

    def interrupted(name: str, options: dict[str, Any]) -> methods.Method:
        method, calls = create(name, options), iter(range(100))
        step = method.step

        def stops(batch: dict, progress: float) -> dict:
            if next(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return step(batch, progress)

        monkeypatch.setattr(method, "step", stops)
        return method

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(methods, "create", interrupted)
    with pytest.raises(TrainingStopped, match=r"stopped after step 3 of 4; the checkpoint is in .*run") as stopped:
        start("captions", captions, tmp_path / "run")
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    assert (stopped.value.step, read_checkpoint(tmp_path / "run").step) == (3, 3)
    assert start("captions", captions, tmp_path / "run", resume=True).step == 4


def write_classes(folder: Path, *, each: int) -> Path:
    for number, colour in enumerate(COLOURS):
        (folder / f"my {colour}s").mkdir(parents=True)
        for place in range(each):
            Image.new("RGB", (30 + place, 30), colour).save(
                folder / f"my {colour}s" / f"{'abcdefgh'[place]}{number}.png"
            )
    return folder


def test_a_few_pictures_of_each_class_become_a_head_of_a_stored_model(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "classes", each=6)
    store = Store(Path(shutil.copytree(SHOP_STORE, tmp_path / "store")), builtin=False)
    base = ["base=artifact:fashion-small", f"run.store={json.dumps(str(store.root))}"]
    result = start("classes", folder, tmp_path / "run", *base)
    assert result.metrics["head"]["accuracy"]["value"] == 1.0
    head = load_head(tmp_path / "run")
    assert head.labels == tuple(sorted(f"my {colour}s" for colour in COLOURS))
    artifact = publish_checkpoint(tmp_path / "run", "mine", store, precisions=["fp32"])
    assert artifact.base is not None
    assert artifact.base.reference == "fashion-small@1"
    assert artifact.heads()["class"].labels == head.labels
    held_out = report_split(tmp_path / "run", data_folder=folder, split="test")
    assert held_out["head"]["accuracy"]["n"] == 5


def test_a_stored_model_is_never_trained(captions: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tune.toml"
    text = (FOLDER / "captions.toml").read_text(encoding="utf-8")
    recipe.write_text(
        'base = "artifact:fashion-small"\n' + text[: text.index("[model]")] + text[text.index("[optim]") :]
    )
    store = f"run.store={json.dumps(str(SHOP_STORE))}"
    with pytest.raises(ValueError, match="a stored model, whose weights are not trained"):
        start(str(recipe), captions, tmp_path / "run", store)
    with pytest.raises(ValueError, match="base artifact:nobody: .*nobody"):
        start("classes", captions, tmp_path / "run", "base=artifact:nobody")
    with pytest.raises(ValueError, match=r"leave \[model\] out"):
        start("captions", captions, tmp_path / "run", "base=artifact:fashion-small", store)


def test_classes_are_split_evenly_or_by_their_folders(tmp_path: Path) -> None:
    counts = {split: len(rows) for split, rows in read_classes(write_classes(tmp_path / "few", each=3)).items()}
    assert counts == {"train": 10, "validation": 5, "test": 0}
    write_classes(tmp_path / "parted" / "train", each=4)
    write_classes(tmp_path / "parted" / "test", each=2)
    parted = {split: len(rows) for split, rows in read_classes(tmp_path / "parted").items()}
    assert parted == {"train": 20, "validation": 10, "test": 0}


def test_recipes_on_a_stored_model_name_the_one_that_is_shipped() -> None:
    bases = {tomllib.loads(path.read_text(encoding="utf-8")).get("base", "") for path in FOLDER.rglob("*.toml")}
    assert {base for base in bases if base.startswith(ARTIFACT)} == {f"{ARTIFACT}{Store(None).default_name()}"}


def test_recipes_are_found_by_name() -> None:
    assert {"captions", "classes", "fashion", "lab/b0"} <= set(shipped_recipes())
    assert all(shipped_recipes().values())
    assert find_recipe("lab/b0") == FOLDER / "lab" / "b0.toml"
    with pytest.raises(ValueError, match="no recipe of this name; shipped are aligned, captions, classes"):
        find_recipe("no-such")


def test_the_headline_shows_what_was_measured() -> None:
    assert headline({"all": {"t2i_r@1": {"value": 0.5, "low": 0.1, "n": 9}, "rows": 9}}) == "all/t2i_r@1 0.500"
    assert headline({"single": 0.9, "binding": {"swap": 0.7, "other": 0.1}}) == "single 0.900, binding/swap 0.700"
    assert headline({"rows": 3}) == ""
