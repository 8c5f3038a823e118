"""When a run of the laboratory counts as run, what its records are worth, and that the pages say what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import distillation, distillation_tables, lab, lab_report, unmix, unmix_tables
from benchmarks.lab_records import here_state, record_state
from benchmarks.lab_runs import StudyRun, expected, overrides_of, recipe_of, standing, throw_away
from benchmarks.lab_tables import Replicated, groups, headline_table, t_interval
from benchmarks.marked import replace_blocks
from training.data.scenes import scene_splits

PAGES = {
    "lab": (lab, lab_report),
    "unmix": (unmix, unmix_tables),
    "distillation": (distillation, distillation_tables),
}


@pytest.fixture
def base(tmp_path: Path) -> StudyRun:
    return replace(lab.base_run(1, small=False), folder=tmp_path / "base", record=tmp_path / "base.json")


@pytest.fixture
def tuned(tmp_path: Path, base: StudyRun) -> StudyRun:
    one = next(one for one in lab.runs(2, False) if one.name == "negclip/r1")
    return replace(one, folder=tmp_path / "tuned", record=tmp_path / "tuned.json", base=base)


def checkpoint(
    one: StudyRun, *, steps_left: int = 0, base_sha256: str | None = None, teacher: str | None = None, **changed: Any
) -> None:
    """What a checkpoint of the run says of itself; `changed` are settings of optim."""
    config = expected(one).model_dump(mode="json")
    config["optim"].update(changed)
    said: dict[str, Any] = {
        "distillation": teacher and {"teacher_digest": teacher},
        "config": config,
        "step": config["optim"]["steps"] - steps_left,
        "base_sha256": base_sha256,
    }
    one.folder.mkdir(exist_ok=True)
    (one.folder / "checkpoint.json").write_text(json.dumps({**said, "weights_sha256": f"weights of {one.name}"}))


def record(one: StudyRun, *, base_sha256: str | None, **changed: Any) -> None:
    recipe = recipe_of(expected(one))
    recipe["optim"].update(changed)
    of = {"recipe": recipe, "seeds": one.seeds, "base": {"run": "b0/r1", "weights_sha256": base_sha256}}
    one.record.write_text(json.dumps({"of": {**of, "weights_sha256": None}}))


def test_a_replication_varies_all_four_seeds() -> None:
    (first, second) = (one for one in lab.runs(2, False) if one.kind == "negclip" and one.seed == one.replication)
    assert second.seeds == {"training": 1, "scenes": 1, "split": 1, "base": 1}
    assert {"seed=1", "data.seed=1", "data.split_seed=1"} <= set(overrides_of(second))
    configs = [expected(one) for one in (first, second)]
    held = [set(scene_splits(config.data).heldout.pairs) for config in configs]  # type: ignore[arg-type]
    assert held[0] != held[1]
    assert second.base is not None
    assert expected(second.base).data.split_seed == 1  # type: ignore[union-attr]
    shuffling = next(one for one in lab.runs(2, False) if one.name == "negclip/r0-seed2")
    assert shuffling.seeds == {"training": 2, "scenes": 0, "split": 0, "base": 0}


def test_a_students_teacher_counts_by_its_weights_not_by_where_it_lies(tmp_path: Path, base: StudyRun) -> None:
    one = next(one for one in distillation.runs(1, False) if one.name == "conv/unified/r0")
    one = replace(one, folder=tmp_path / "student", record=tmp_path / "student.json", base=base)
    checkpoint(base)
    checkpoint(one, teacher="others")
    assert standing(one) == "another base"
    checkpoint(one, teacher=f"weights of {base.name}")
    moved = replace(one, base=replace(base, folder=tmp_path / "elsewhere"))
    assert (standing(one), standing(moved)) == ("trained", "trained")
    assert expected(one).method_options["teacher"] == str(base.folder)
    assert "teacher" not in recipe_of(expected(one))["method_options"]
    assert standing(replace(one, overrides=("method_options.fd=1",))) == "another recipe"
    record(one, base_sha256=f"weights of {base.name}")
    assert record_state(one) == "record"
    record(one, base_sha256="others")
    assert record_state(one) == "record of another base"


def test_what_a_checkpoint_has_left_of_its_base_is_no_other_recipe(tmp_path: Path) -> None:
    one = next(one for one in distillation.runs(1, False) if one.name == "tinyclip/by-hand-50/r0")
    one = replace(one, folder=tmp_path / "cut", base=None if one.base is None else replace(one.base, folder=tmp_path))
    checkpoint(one)
    said = json.loads((one.folder / "checkpoint.json").read_text())
    tower = {"width": 128, "heads": [4], "head_width": 32, "mlp": [512]}
    said["config"]["model"]["slim"] = {"image": None, "text": tower}
    (one.folder / "checkpoint.json").write_text(json.dumps(said))
    assert standing(one) == "trained"


def test_a_run_stands_by_its_recipe_and_its_bases_weights(base: StudyRun, tuned: StudyRun) -> None:
    assert standing(tuned) == "absent"
    checkpoint(base)
    checkpoint(tuned, base_sha256=f"weights of {base.name}")
    assert standing(tuned) == "trained", "however it was trained, and wherever its base lay"
    checkpoint(tuned, base_sha256=f"weights of {base.name}", steps_left=500)
    assert (standing(tuned), here_state(tuned)) == ("cut", "cut at 1,000 of 1,500 steps")
    checkpoint(tuned, base_sha256="others")
    assert (standing(tuned), here_state(tuned)) == ("another base", "another base")
    checkpoint(tuned, base_sha256=f"weights of {base.name}", rate=1e-4)
    assert standing(tuned) == "another recipe"


def test_a_record_of_another_base_or_recipe_is_no_record_of_the_run(base: StudyRun, tuned: StudyRun) -> None:
    assert record_state(tuned) == "-"
    record(tuned, base_sha256=f"weights of {base.name}")
    assert record_state(tuned) == "record, base not known"
    checkpoint(base)
    assert record_state(tuned) == "record"
    record(tuned, base_sha256="others")
    assert record_state(tuned) == "record of another base"
    record(tuned, base_sha256=f"weights of {base.name}", steps=7)
    assert record_state(tuned) == "record of another recipe"
    assert groups([tuned]) == [], "and no table shows it"


def test_a_toy_throws_no_run_of_the_study_away(base: StudyRun) -> None:
    checkpoint(base)
    with pytest.raises(ValueError, match="holds a run that is no toy"):
        throw_away(replace(base, small=True))
    assert base.folder.exists()
    throw_away(base)
    assert not base.folder.exists()


def test_replications_and_items_stand_apart() -> None:
    assert t_interval([0.4, 0.6]) == "", "two runs settle nothing"
    assert t_interval([0.4, 0.5, 0.6]) == ".252 to .748"  # 0.5 +- 4.303 * 0.1 / sqrt(3)
    assert t_interval([0.8, 0.9, 1.0]) == ".652 to 1.000"
    values = {"r0": 0.4, "r1": 0.5, "r2": 0.6}
    line = headline_table([Replicated("binding", values, (0.38, 0.42), [0.4, 0.41])]).splitlines()[-1]
    assert line == "| binding | 3 | .500 | r0 .400, r1 .500, r2 .600 | .252 to .748 | [.380, .420] | .400 to .410 |"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_says_what_the_records_say(name: str) -> None:
    study, report = PAGES[name]
    page = report.PAGE.read_text(encoding="utf-8")
    assert replace_blocks(page, report.blocks(study.runs(3, False))) == page
