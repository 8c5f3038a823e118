"""Runs of `clipworks eval`: their expected cost, their progress, and results kept for a run that was stopped."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clipworks.cli import output
from clipworks.cli.failures import INTERRUPTED, RefusedError, UsageError

if TYPE_CHECKING:
    from evaluation.dense.scene_set import PairChoice
    from evaluation.encoder import Encoder
    from evaluation.locating import Looking
    from evaluation.probe_results import ProbeResult
    from evaluation.results_file import EvaluationRun
    from evaluation.standard.asking import Task
    from evaluation.suites import Step, Suite


@dataclass(frozen=True)
class EvalPlan:
    """The suite of probes, if any, then other tasks: places in drawn scenes, sets of real data.

    suite_name: as it was asked for, None if only data was.
    """

    suite: Suite | None
    tasks: tuple[Task, ...]
    seed: int
    suite_name: str | None


def looking(short_px: int | None, templates: Sequence[str] | None) -> Looking:
    """Raises UsageError: a template without its place for the label."""
    from evaluation.locating import Looking

    try:
        return Looking(short_px=short_px, templates=tuple(templates) if templates else None)
    except ValueError as error:
        raise UsageError(f"--template: {error}") from error


def plan(
    encoder: Encoder,
    *,
    suite_name: str | None,
    data: Sequence[str],
    seed: int,
    pairs: PairChoice,
    looking: Looking,
    own: Task | None = None,
) -> EvalPlan:
    """own: the task of a suite of a user's own pictures, bias or robustness.

    Raises UsageError: no such suite, data that cannot be used, or options that change nothing.
    """
    from evaluation.bias.task import SUITE as BIAS
    from evaluation.dense.scene_set import chosen_pairs
    from evaluation.dense.task import SUITE, Localisation
    from evaluation.robustness.task import SUITE as ROBUSTNESS
    from evaluation.suites import suite, suite_names

    name = suite_name or (None if data else "quick")
    if pairs != "all" and name in (None, BIAS, ROBUSTNESS):
        raise UsageError("--pairs is for drawn scenes; give a --suite too")
    others = (SUITE, BIAS, ROBUSTNESS)
    if name not in (None, *others, *suite_names()):
        raise UsageError(f"no suite {name!r}: expected one of {', '.join((*suite_names(), *others))}")
    try:
        chosen = suite(name, seed=seed, pairs=chosen_pairs(pairs)) if name not in (None, *others) else None
        tasks = _tasks(name, data, seed=seed, pairs=pairs, looking=looking)
        tasks = tasks if own is None else (own, *tasks)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if str(looking) and not any(isinstance(task, Localisation) for task in tasks):
        raise UsageError(f"{looking}: for --suite {SUITE} and data that says where; nothing of it is asked")
    return EvalPlan(chosen, tasks, seed, name)


def _tasks(
    suite_name: str | None, data: Sequence[str], *, seed: int, pairs: PairChoice, looking: Looking
) -> tuple[Task, ...]:
    from evaluation.dense.task import SUITE, Localisation, scenes_task
    from evaluation.standard.specs import task

    drawn = [scenes_task(seed=seed, pairs=pairs)] if suite_name == SUITE else []
    found = [*drawn, *(task(spec) for spec in dict.fromkeys(data))]
    return tuple(replace(each, looking=looking) if isinstance(each, Localisation) else each for each in found)


def confirm(encoder: Encoder, asked: EvalPlan, *, yes: bool) -> None:
    """Say what a suite of full size costs, and ask whoever sits at a terminal."""
    from evaluation.suites import cost

    if asked.suite is None or asked.suite.name == "quick":
        return
    with _refused_if_broken():
        found = cost(asked.suite, encoder)
    seconds = "" if found.seconds is None else f", about {_duration(found.seconds)}"
    output.say(f"{asked.suite.name}: {found.pictures:,} pictures and {found.texts:,} texts to encode{seconds}")
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm("go on?", default=True, abort=True, err=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def kept_results(encoder: Encoder, asked: EvalPlan, *, folder: Path | None) -> Generator[Path]:
    """A folder for results as they come. The default one is of this question alone and lives until the run is whole:
    what has been judged to the end is judged anew the next time.

    Raises:
        typer.Exit: interrupted; what there is stays, and it is said where.
    """
    where = folder or _cache_folder(encoder, asked)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--folder {where}: {error.strerror}") from error
    before = _waiting(encoder, asked, where)
    if before:
        output.say(f"{before} of {_total(asked)} results lie in {where} already and are used")
    try:
        yield where
    except KeyboardInterrupt:
        output.say("stopped")
        _say_what_is_left(encoder, asked, where)
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        _say_what_is_left(encoder, asked, where)
        raise
    if folder is None:
        shutil.rmtree(where, ignore_errors=True)


def _say_what_is_left(encoder: Encoder, asked: EvalPlan, where: Path) -> None:
    found = _waiting(encoder, asked, where)
    if found:
        output.say(f"{found} of {_total(asked)} results are kept in {where}; the same command goes on from there")
    elif where.is_dir() and not any(where.iterdir()):
        where.rmdir()


def _total(asked: EvalPlan) -> int:
    return (len(asked.suite.probes) if asked.suite else 0) + len(asked.tasks)


def _waiting(encoder: Encoder, asked: EvalPlan, where: Path) -> int:
    from evaluation.suites import answered

    probes = len(answered(encoder, asked.suite, where)) if asked.suite else 0
    return probes + sum(_stored(encoder, task, where) is not None for task in asked.tasks)


def _cache_folder(encoder: Encoder, asked: EvalPlan) -> Path:
    """One for each encoder and question, so that two runs never mix."""
    from evaluation.suites import picture_px

    names = [asked.suite_name, asked.suite.pairs if asked.suite else (), *map(_question, asked.tasks)]
    key = repr((encoder.fingerprint, encoder.space, picture_px(encoder), asked.seed, names, _version()))
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "clipworks" / "eval" / hashlib.sha256(key.encode()).hexdigest()[:16]


def run(encoder: Encoder, asked: EvalPlan, *, folder: Path) -> EvaluationRun:
    """Raises:
    UsageError: data that cannot be used.
    RefusedError: the encoder answers NaN, or the wrong number of vectors.
    """
    from evaluation import suites
    from evaluation.results_file import EvaluationRun

    results: list[ProbeResult] = []
    with _progress() as tell:
        if asked.suite is not None:
            with _refused_if_broken():
                results += suites.run(encoder, asked.suite, folder=folder, progress=tell)
        for task in asked.tasks:
            results.append(_stored(encoder, task, folder) or _measured(encoder, task, folder, tell))
    return EvaluationRun(
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        space=encoder.space,
        suite=asked.suite_name,
        seed=asked.seed,
        size_px=suites.picture_px(encoder),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        clipworks=_version(),
        results=tuple(results),
    )


def _measured(encoder: Encoder, task: Task, folder: Path, tell: Callable[[Step], None]) -> ProbeResult:
    from evaluation.probe_results import write_result

    try:
        result = task.measure(encoder, progress=tell)
    except ValueError as error:
        raise UsageError(f"{task.name}: {error}") from error
    write_result(result, _path(folder, task))
    return result


def _stored(encoder: Encoder, task: Task, folder: Path) -> ProbeResult | None:
    """A result of the very same data and encoder; a file that cannot be read is measured again."""
    from evaluation.probe_results import read_result

    try:
        found = read_result(_path(folder, task))
    except (OSError, ValueError):
        return None
    return found if found.key == task.key(encoder) else None


def _path(folder: Path, task: Task) -> Path:
    return folder / f"data-{hashlib.sha256(_question(task).encode()).hexdigest()[:12]}.json"


def _question(task: Task) -> str:
    """The task's name, with how the encoder is asked if that was chosen."""
    looking = str(getattr(task, "looking", ""))
    return f"{task.name}; {looking}" if looking else task.name


@contextmanager
def _refused_if_broken() -> Generator[None]:
    """On drawn pictures only the encoder can be at fault."""
    try:
        yield
    except ValueError as error:
        raise RefusedError(str(error)) from error


@contextmanager
def _progress() -> Generator[Callable[[Step], None]]:
    """A bar with the probe and the time left on a terminal; a line for each probe elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def line(step: Step) -> None:
            nonlocal last
            if step.probe != last:
                output.say(f"eval: {step.probe} ({step.done} of {step.total} inputs encoded)")
            last = step.probe

        yield line
        return
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("")

        def show(step: Step) -> None:
            progress.update(bar, description=step.probe, completed=step.done, total=step.total)

        yield show


def _version() -> str:
    from importlib.metadata import version

    return version("clipworks")
