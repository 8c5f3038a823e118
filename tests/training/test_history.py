"""The checkpoints of a run: the last few stay, the newest is found under the old names, and no crash loses the last."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import FILES, INFO_FILE, STATE_FILE, WEIGHTS_FILE, load_model, load_state
from training.history import HISTORY, note_step, resumable, save_step, saved_steps, step_folder
from training.loop import train
from training.optimization import rate_at

pytestmark = pytest.mark.torch
Train = Callable[..., Path]
LONG = ("optim.steps=4", "run.checkpoint_steps=1", "run.validate_steps=9")


def save(folder: Path, step: int, *, keep: int = 2, value: float | None = None, in_use: tuple[Path, ...] = ()) -> Path:
    tensors = {"x": torch.full((2,), float(step if value is None else value))}
    info = {"step": step, "metrics": {}}
    return save_step(folder, info, weights=tensors, state=tensors, tokenizer=b"t", keep=keep, in_use=in_use)


@pytest.fixture(scope="module")
def run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, a checkpoint of each, all kept."""
    folder = tmp_path_factory.mktemp("history") / "run"
    train(squares, [f"run.folder={json.dumps(str(folder))}", *LONG, "run.keep=9"])
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


def test_the_last_few_stay_and_the_newest_has_the_old_names(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        target = save(tmp_path, step)
        assert target == step_folder(tmp_path, step)
        assert load_state(tmp_path)["x"].tolist() == [step, step]
    assert list(saved_steps(tmp_path)) == [10, 15]
    for name in (*FILES, INFO_FILE):
        assert (tmp_path / name).samefile(step_folder(tmp_path, 15) / name)
    assert not list(tmp_path.rglob("*.part*"))


def test_a_step_that_is_saved_again_replaces_itself_and_what_lies_behind_it_goes(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=9)
    save(tmp_path, 10, keep=9, value=-1)
    assert list(saved_steps(tmp_path)) == [5, 10]
    assert (
        load_file(step_folder(tmp_path, 10) / WEIGHTS_FILE)["x"][0] == load_file(tmp_path / WEIGHTS_FILE)["x"][0] == -1
    )
    save(tmp_path, 20, keep=1, in_use=(step_folder(tmp_path, 5),))
    assert list(saved_steps(tmp_path)) == [5, 20]


def interrupted(do: Callable[..., None], calls: Iterator[int], at: int) -> Callable[..., None]:
    """`do`, until it and others that share `calls` were called `at` times."""

    def call(*given: object, **more: object) -> None:
        if next(calls) >= at:
            raise KeyboardInterrupt
        do(*given, **more)

    return call


def test_a_save_that_dies_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at any of its renames and links: the newest whole checkpoint is the old one or the new one."""
    before = tmp_path / "before"
    save(before, 5, keep=1)
    found: list[float] = []
    for at in range(40):
        folder, calls, died = Path(shutil.copytree(before, tmp_path / f"stopped{at}")), itertools.count(), False
        with monkeypatch.context() as patch:
            for name in ("link", "replace", "rename"):
                patch.setattr(os, name, interrupted(getattr(os, name), calls, at))
            try:
                save(folder, 10, keep=1)
            except KeyboardInterrupt:
                died = True
        found.append(float(load_state(resumable(folder))["x"][0]))
        if not died:
            break
        save(folder, 15, keep=1)
        assert (list(saved_steps(folder)), resumable(folder)) == ([15], folder)
        assert not list(folder.rglob("*.part*"))
    assert found == sorted(found)
    assert (found[0], found[-1]) == (5, 10)
    assert 8 < len(found) < 40


def test_files_are_copied_where_nothing_can_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 5)
    assert load_state(tmp_path)["x"][0] == 5
    assert not (tmp_path / STATE_FILE).samefile(step_folder(tmp_path, 5) / STATE_FILE)


def test_numbers_reach_both_places(tmp_path: Path) -> None:
    save(tmp_path, 5)
    note_step(tmp_path, 5, {"validation": {"a": 1.0}})
    for folder in (tmp_path, step_folder(tmp_path, 5)):
        assert json.loads((folder / INFO_FILE).read_text())["metrics"] == {"validation": {"a": 1.0}}


def test_every_kept_step_is_a_checkpoint_of_its_own(run: Path) -> None:
    assert list(saved_steps(run)) == [1, 2, 3, 4]
    first = load_model(step_folder(run, 1))
    assert first.info.step == 1
    assert not torch.equal(first.model.text.projection.weight, load_model(run).model.text.projection.weight)


def test_a_torn_newest_checkpoint_is_passed_over(copied: Path, squares: Path, run: Path) -> None:
    for folder in (copied, step_folder(copied, 4)):
        torn = folder / STATE_FILE
        data = torn.read_bytes()
        torn.unlink()
        torn.write_bytes(data[:-1])
    assert resumable(copied) == step_folder(copied, 3)
    train(squares, [f"run.folder={json.dumps(str(copied))}", *LONG], resume=True)
    found, expected = load_state(copied), load_state(run)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_goes_on_from_the_step_that_is_named(copied: Path, squares: Path, run: Path) -> None:
    given = [f"run.folder={json.dumps(str(copied))}", *LONG, "run.keep=9"]
    with pytest.raises(ValueError, match="has no checkpoint of step 7; it has: 1, 2, 3, 4"):
        train(squares, given, from_step=7)
    train(squares, given, from_step=2)
    assert list(saved_steps(copied)) == [1, 2, 3, 4]
    found, expected = load_state(copied), load_state(run)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_from_before_there_was_a_history_goes_on(copied: Path, squares: Path) -> None:
    shutil.rmtree(copied / HISTORY)
    result = train(squares, [f"run.folder={json.dumps(str(copied))}", *LONG[1:], "optim.steps=5"], resume=True)
    assert (result.step, list(saved_steps(copied))) == (5, [5])


def test_more_steps_after_the_end_follow_the_longer_curve(copied: Path, squares: Path) -> None:
    where = f"run.folder={json.dumps(str(copied))}"
    with pytest.raises(ValueError, match="optim.steps is 3, and 4 steps are done"):
        train(squares, [where, "optim.steps=3"], resume=True)
    result = train(squares, [where, "optim.steps=6"], resume=True)
    assert (result.step, load_model(copied).info.config.optim.steps) == (6, 6)
    optim = load_model(copied).info.config.optim
    with (copied / "log.csv").open(newline="") as file:
        rates = {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == "rate"}
    shorter = optim.model_copy(update={"steps": 4})
    expected = [*(rate_at(step, shorter) for step in range(4)), rate_at(4, optim), rate_at(5, optim)]
    assert [rates[step] for step in range(1, 7)] == pytest.approx(expected, rel=1e-4)
    assert rates[5] > rate_at(4, shorter)


def test_a_used_folder_is_refused_even_if_only_its_history_is_left(copied: Path, squares: Path) -> None:
    for name in (*FILES, INFO_FILE):
        (copied / name).unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        train(squares, [f"run.folder={json.dumps(str(copied))}"])
