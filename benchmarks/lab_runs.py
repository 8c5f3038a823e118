"""A run of a study: its recipe and its seeds, the run that it starts from, and whether it stands on this machine."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from training.config import TrainConfig, load_config, parse_config

ROOT = Path(__file__).resolve().parents[1]
RUNS, CONFIGS = ROOT / ".runs" / "lab", ROOT / "training" / "configs" / "lab"
RECORDS, TOY = ROOT / "benchmarks" / "lab", RUNS / "toy"
SHUFFLES = (1, 2)
CHECKPOINT, SPENT = "checkpoint.json", "spent.json"

Standing = Literal["absent", "cut", "trained", "another recipe", "another base"]
Measurement = Literal["questions", "heads", "training-free", "wise-ft", "linear probe", "bounds", "student", "nothing"]


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One line of a study.

    recipe: a file of training/configs/lab, without its ending; None trains nothing and measures the base as it is.
    replication: r draws the scenes and splits the pairs by r, and its base is the base of replication r. seed: of
    training, r as well; a run with another one is a shuffling of that replication. overrides: as on the command line.
    base: the run that it starts from; where `taught`, the teacher of the method kd, from which nothing starts.
    """

    name: str
    folder: Path
    record: Path
    recipe: str | None
    measured: Measurement = "questions"
    replication: int = 0
    seed: int = 0
    overrides: tuple[str, ...] = ()
    base: StudyRun | None = None
    taught: bool = False
    small: bool = False

    @property
    def kind(self) -> str:
        """What the replications and shufflings of one line share."""
        return self.name.rsplit("/", 1)[0]

    @property
    def seeds(self) -> dict[str, int | None]:
        """All that chance decides: a claim that holds over them does not rest on one base, one draw or one split."""
        return {
            "training": None if self.recipe is None else self.seed,
            "scenes": self.replication,
            "split": self.replication,
            "base": None if self.base is None else self.base.seed,
        }


def shuffles(*, small: bool) -> tuple[int, ...]:
    """Further seeds of training beside a replication's own; a toy has none."""
    return () if small else SHUFFLES


def suffix(replication: int, seed: int) -> str:
    """ "r1"; "r0-seed2" of a shuffling."""
    return f"r{replication}" if seed == replication else f"r{replication}-seed{seed}"


def study_run(
    kind: str,
    recipe: str | None,
    replication: int = 0,
    *,
    study: str = "",
    seed: int | None = None,
    overrides: tuple[str, ...] = (),
    base: StudyRun | None = None,
    taught: bool = False,
    measured: Measurement = "questions",
    small: bool,
) -> StudyRun:
    """A run of a kind, with its places: runs and records of `study` lie in a folder of its own, toys' records too."""
    seed = replication if seed is None else seed
    name = f"{kind}/{suffix(replication, seed)}"
    return StudyRun(
        name=name,
        folder=RUNS / study / name,
        record=(TOY / "records" if small else RECORDS) / study / f"{name.replace('/', '-')}.json",
        recipe=recipe,
        measured=measured,
        replication=replication,
        seed=seed,
        overrides=overrides,
        base=base,
        taught=taught,
        small=small,
    )


def toy_overrides(recipe: Path) -> list[str]:
    """What makes a recipe seconds long: two steps, and scenes enough that each label is in one."""
    data = tomllib.loads(recipe.read_text(encoding="utf-8"))["data"]
    at, scenes = ("data", data) if "parts" in data else ("data.scenes", data["scenes"])
    fewer = [f"{at}.parts.{number}.scenes=200" for number in range(len(scenes["parts"]))]
    return ["optim.steps=2", "optim.batch_size=16", "optim.warmup_steps=1", *fewer]


def overrides_of(one: StudyRun) -> list[str]:
    """Everything in which the run differs from its recipe, but for places on this machine.

    Raises:
        ValueError: nothing is trained.
    """
    if one.recipe is None:
        raise ValueError(f"{one.name} measures its base, it has no recipe")
    r = one.replication
    seeds = [f"seed={one.seed}", f"data.seed={r}", f"data.split_seed={r}"]
    return [*one.overrides, *seeds, *(toy_overrides(CONFIGS / f"{one.recipe}.toml") if one.small else ())]


def expected(one: StudyRun) -> TrainConfig:
    """The run's whole recipe. The model is that of the base's recipe, so no checkpoint is needed to know it."""
    chosen = overrides_of(one)
    if one.base is not None and not one.taught:
        chosen += _assignments("model", expected(one.base).model.model_dump(mode="json"))
    return load_config(CONFIGS / f"{one.recipe}.toml", [*chosen, *_base_of(one)])


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """What decides a run's result beside its base's or teacher's weights: where they lie does not."""
    found = config.model_dump(mode="json", exclude={"run": True, "base": True})
    found["method_options"].pop("teacher", None)
    found["model"].pop("slim", None)  # what a checkpoint has left of its base's towers is a result
    return found


def same_recipe(stored: dict[str, Any], one: StudyRun) -> bool:
    """`stored`: a recipe as `recipe_of` gives it, or a checkpoint's config; settings that came later are defaults."""
    wanted = expected(one)
    try:
        values = {**stored, "run": wanted.run.model_dump(mode="json"), "base": wanted.base}
        if one.taught:
            values["method_options"] = {**stored["method_options"], "teacher": wanted.method_options["teacher"]}
        return recipe_of(parse_config(values, where=one.name)) == recipe_of(wanted)
    except ValueError:
        return False


def facts(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself, None where there is none."""
    path = folder / CHECKPOINT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def weights_of(one: StudyRun) -> str | None:
    """Digest of the weights that lie on this machine; of the base's where nothing is trained."""
    found = facts((one.base or one).folder if one.recipe is None else one.folder)
    return None if found is None else found["weights_sha256"]


def standing(one: StudyRun) -> Standing:
    """Whether the run's checkpoint is what the study asks for, whoever trained it."""
    if one.recipe is None:
        return "trained" if one.base is None else standing(one.base)
    found = facts(one.folder)
    if found is None:
        return "absent"
    if not same_recipe(found["config"], one):
        return "another recipe"
    if one.base is not None:
        learned_from = (found.get("distillation") or {}).get("teacher_digest") if one.taught else found["base_sha256"]
        if weights_of(one.base) not in (None, learned_from):
            return "another base"
    return "trained" if found["step"] == found["config"]["optim"]["steps"] else "cut"


def train_missing(one: StudyRun, console: Console) -> None:
    """Train the run, and first what it starts from, unless they stand; resume what was cut.

    Raises:
        ValueError: the folder holds a run of another recipe, or from another base.
    """
    if one.base is not None:
        train_missing(one.base, console)
    stands = standing(one)
    if one.recipe is None or stands == "trained":
        return
    if stands in ("another recipe", "another base"):
        raise ValueError(
            f"{one.folder} holds a run of {stands}: --run '{one.name}' --again runs it anew, or move it away to keep it"
        )
    from training.loop import train

    # What teachers say of the scenes is kept once for all runs.
    places = [f"run.folder={json.dumps(str(one.folder))}", f"run.features={json.dumps(str(RUNS / 'features'))}"]
    places += _base_of(one)
    print(f"== {one.name}: training{', from where it was cut' if stands == 'cut' else ''}", flush=True)
    began_s, cpu_s = time.time(), time.process_time()
    train(CONFIGS / f"{one.recipe}.toml", [*overrides_of(one), *places], resume=stands == "cut", console=console)
    spent = {"wall_s": time.time() - began_s, "cpu_s": time.process_time() - cpu_s}
    if stands == "absent":  # what a run cost that was cut is not known
        (one.folder / SPENT).write_text(json.dumps(spent) + "\n", encoding="utf-8")


def throw_away(one: StudyRun) -> None:
    """Remove a run from this machine, not its record.

    Raises:
        ValueError: a toy would throw away what is none.
    """
    found = facts(one.folder)
    if one.small and found is not None and not same_recipe(found["config"], one):
        raise ValueError(f"{one.folder} holds a run that is no toy: move it away first")
    shutil.rmtree(one.folder, ignore_errors=True)


def _base_of(one: StudyRun) -> list[str]:
    """The override that names the run's base or teacher."""
    if one.base is None:
        return []
    return [f"{'method_options.teacher' if one.taught else 'base'}={json.dumps(str(one.base.folder))}"]


def _assignments(key: str, value: Any) -> Iterator[str]:
    """A table as overrides, one for each leaf; JSON's scalars and arrays are TOML's."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _assignments(f"{key}.{name}", inner)
    elif value is not None:
        yield f"{key}={json.dumps(value)}"
