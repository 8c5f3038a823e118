"""Records of measurements, each with the recipe, seeds, commits and weights that it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.lab_runs import SPENT, StudyRun, expected, facts, recipe_of, same_recipe, standing, weights_of

JUDGED = "judged.json"
Record = dict[str, Any]


def identity(one: StudyRun, *, code: str | None) -> Record:
    """Of a run that stands here: recipe, all four seeds, digests of its and its base's weights, and the commits.

    code: the commit that judges; the one that trained is the checkpoint's.
    """
    found = None if one.recipe is None else facts(one.folder)
    base = one.base
    return {
        "recipe": None if found is None else recipe_of(expected(one)),
        "seeds": one.seeds,
        "base": None if base is None else {"run": base.name, "weights_sha256": weights_of(base)},
        "weights_sha256": weights_of(one),
        "trained_by": None if found is None else found["git_sha"],
        "judged_by": code,
    }


def spent(one: StudyRun) -> float | None:
    """Core-seconds of training, None where it is not known: cut and resumed, or trained by other means."""
    path = one.folder / SPENT
    return json.loads(path.read_text(encoding="utf-8"))["cpu_s"] if path.exists() else None


def judged_here(one: StudyRun) -> Record | None:
    """What was measured on this machine, of the weights that lie here now."""
    found = _read(one.folder / JUDGED)
    if found is None or standing(one) != "trained" or found["of"]["weights_sha256"] != weights_of(one):
        return None
    return found


def write_judged(one: StudyRun, numbers: Record, *, code: str | None) -> Record:
    found = {"of": identity(one, code=code), "cpu_s": spent(one), **numbers}
    one.folder.mkdir(parents=True, exist_ok=True)
    (one.folder / JUDGED).write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def keep(one: StudyRun) -> bool:
    """Put what was measured here into the records of git; False if nothing was."""
    found = judged_here(one)
    if found is None:
        return False
    one.record.parent.mkdir(parents=True, exist_ok=True)
    one.record.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return True


def record_of(one: StudyRun) -> Record | None:
    """The record in git, if it is of this recipe and, as far as both are known, of this base."""
    return _read(one.record) if record_state(one) in ("record", "record, base not known") else None


def record_state(one: StudyRun) -> str:
    """What the record in git is worth beside the study and beside the base on this machine."""
    found = _read(one.record)
    if found is None:
        return "-"
    of = found["of"]
    if (of["recipe"] is None) != (one.recipe is None):
        return "record of another recipe"
    if of["recipe"] is not None and not same_recipe(of["recipe"], one):
        return "record of another recipe"
    if one.base is None:
        return "record"
    of_base, base = of["base"]["weights_sha256"], _known_weights(one.base)
    if of_base is None or base is None:
        return "record, base not known"
    return "record" if of_base == base else "record of another base"


def here_state(one: StudyRun) -> str:
    """What this machine has of the run."""
    if judged_here(one) is not None:
        return "judged"
    stands = standing(one)
    if one.recipe is None:
        return "not judged" if stands == "trained" else "-"
    found = facts(one.folder)
    if stands == "cut" and found is not None:
        return f"cut at {found['step']:,} of {found['config']['optim']['steps']:,} steps"
    return {"absent": "-", "trained": "trained"}.get(stands, stands)


def _known_weights(one: StudyRun) -> str | None:
    """Of the run on this machine, or else of its record."""
    here = weights_of(one)
    found = None if here is not None else _read(one.record)
    return here if found is None else found["of"]["weights_sha256"]


def _read(path: Path) -> Record | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
