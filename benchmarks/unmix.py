"""The study of Unmix heads on scenes: trains what is missing, judges it on held-out scenes, writes the page.

    python benchmarks/unmix.py --list                 what was run here, and what there are records of
    python benchmarks/unmix.py --run '64px/*'         train and judge the runs of a pattern, bases first
    python benchmarks/unmix.py --write-docs           tables and picture of docs/unmix.md from benchmarks/lab/unmix/

A run is training/configs/lab/unmix.toml with overrides; its checkpoint lies in .runs/lab/unmix/NAME. Its base is
training/configs/lab/unmix-base.toml, trained from b0 of the same replication. `training-free` is the base as it is.
Replications and shufflings are those of benchmarks/lab.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from benchmarks.lab import base_run
from benchmarks.lab_records import Record
from benchmarks.lab_runs import Measurement, StudyRun, shuffles, study_run
from benchmarks.lab_study import Study, command_line

SIDES = (64, 112)
WEIGHTS = (0.0, 1.0, 10.0, 30.0)
REPLICATED = ("64px/mfi-0", "64px/mfi-30")
FREE = "training-free"


def runs(replications: int, small: bool) -> list[StudyRun]:
    """Everything that is measured here: the bases as they are, the curve of MFI's weight, and the ablations."""
    counted = range(replications)
    bases = [_run("base", r, recipe="unmix-base", base=base_run(r, small=small), small=small) for r in counted]
    sides = (64,) if small else SIDES
    out = [*bases]
    for side_px in sides:
        # In replications too only where heads are replicated.
        free = bases if side_px == 64 else bases[:1]
        kind = f"{side_px}px/{FREE}"
        out += [_run(kind, each.replication, measured="training-free", base=each, small=small) for each in free]
    for kind, overrides in _kinds(small).items():
        replicated = counted if kind in REPLICATED else counted[:1]
        out += [_head(kind, r, r, overrides, bases[r], small=small) for r in replicated]
        out += [_head(kind, 0, seed, overrides, bases[0], small=small) for seed in shuffles(small=small)]
    return out


def side_of(one: StudyRun) -> int:
    """Side of the pictures, in pixels, of heads and of what is training-free."""
    return int(one.name.split("px/")[0])


def _kinds(small: bool) -> dict[str, tuple[str, ...]]:
    kinds: dict[str, tuple[str, ...]] = {}
    for side_px in (64,) if small else SIDES:
        for weight in (0.0, 30.0) if small else WEIGHTS:
            kinds[f"{side_px}px/mfi-{weight:g}"] = (f"method_options.mfi={weight}",)
        kinds[f"{side_px}px/pooling-kept"] = ("method_options.pooling_kept=true",)
    if small:
        return kinds
    for side_px in SIDES:
        kinds[f"{side_px}px/cosine"] = ('method_options.similarity="cosine"', "method_options.slope=1.0")
    return {
        **kinds,
        "64px/others": ('method_options.templates=["a {}"]',),
        "64px/no-residual": ("method_options.residual=false", 'method_options.norm="batch"'),
        "64px/sources": ('method_options.preset="sources"',),
    }


def _head(
    kind: str, replication: int, seed: int, overrides: tuple[str, ...], base: StudyRun, *, small: bool
) -> StudyRun:
    side_px = int(kind.split("px/")[0])
    # Larger pictures have three times the cells: half as many in a batch.
    size = (f"method_options.dense_px={side_px}", *(("optim.batch_size=32",) if side_px == 112 else ()))
    chosen = (*overrides, *size)
    return _run(
        kind, replication, seed=seed, recipe="unmix", overrides=chosen, base=base, measured="heads", small=small
    )


def _run(
    kind: str,
    replication: int,
    *,
    recipe: str | None = None,
    seed: int | None = None,
    overrides: tuple[str, ...] = (),
    base: StudyRun,
    measured: Measurement = "nothing",
    small: bool,
) -> StudyRun:
    return study_run(
        kind,
        recipe,
        replication,
        study="unmix",
        seed=seed,
        overrides=overrides,
        base=base,
        measured=measured,
        small=small,
    )


def measure(one: StudyRun) -> Record:
    from benchmarks import unmix_judge

    return unmix_judge.measure(one, side_px=side_of(one))


def lines(found: Record) -> Iterator[str]:
    """What `--run` prints of a record."""
    scores = found.get("scores", {"": found})
    for name, numbers in scores.items():
        short = {key: round(value, 3) for key, value in numbers.items() if isinstance(value, float) and key != "cpu_s"}
        yield f"{name}{': ' if name else ''}{json.dumps(short)}"


def write(chosen: Sequence[StudyRun], small: bool) -> None:
    from benchmarks import unmix_tables

    unmix_tables.write(chosen, small=small)


STUDY = Study(about=__doc__ or "", runs=runs, measure=measure, lines=lines, write=write)

if __name__ == "__main__":
    sys.exit(command_line(STUDY))
