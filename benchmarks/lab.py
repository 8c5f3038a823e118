"""The study of methods on scenes: trains what is missing, judges every checkpoint on held-out scenes, writes the page.

    python benchmarks/lab.py --list                 what was run here, and what there are records of
    python benchmarks/lab.py --run 'grid/*'         train and judge the runs of a pattern, bases first
    python benchmarks/lab.py --write-docs           docs/lab.md's tables and pictures from the records

A run is a recipe of training/configs/lab with seeds; its checkpoint lies in .runs/lab/NAME. Replications (r0, r1, ...)
differ in all that chance decides: the base, the drawn scenes, the split of pairs and the seed of training. Shufflings
(r0-seed1, ...) differ from their replication in the seed of training only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from benchmarks.lab_records import Record
from benchmarks.lab_runs import Measurement, StudyRun, shuffles, study_run
from benchmarks.lab_study import Study, command_line

REPLICATED = ("control", "negclip", "negclip-neighbours", "labclip")
ONCE = ("negclip-focal", "negation", "negation-reader", "one-topic")
FINE_TUNES = ("negclip", "negation-reader", "one-topic")  # whose way from the base WiSE-FT walks


def base_run(replication: int, *, small: bool) -> StudyRun:
    """B0, from which all fine-tunes start."""
    return study_run("b0", "b0", replication, small=small)


def runs(replications: int, small: bool) -> list[StudyRun]:
    """Everything that the study trains and measures, bases first."""
    counted, further = range(replications), shuffles(small=small)
    bases = [base_run(r, small=small) for r in counted]
    out = [*bases, study_run("b1", "b1", 0, small=small)]
    for head in ("mean", "flat"):
        for captions in ("places", "no-places"):
            pool = (f'model.image.pool="{head}"',)
            kind, recipe = f"grid/{head}-{captions}", f"grid-{captions}"
            out += [study_run(kind, recipe, 0, seed=seed, overrides=pool, small=small) for seed in (0, *further)]
    for tuning in REPLICATED:
        out += [study_run(tuning, tuning, r, base=bases[r], small=small) for r in counted]
    for tuning in ("control", "negclip", "labclip"):
        out += [study_run(tuning, tuning, 0, seed=seed, base=bases[0], small=small) for seed in further]
    out += [study_run(tuning, tuning, 0, base=bases[0], small=small) for tuning in ONCE]
    tuned = [one for one in out if one.kind in FINE_TUNES and one.seed == one.replication]
    out += [_measured(f"wise-ft/{one.name}", one, "wise-ft") for one in tuned]
    return [*out, _measured("probe/b0/r0", bases[0], "linear probe"), _measured("bounds/b0/r0", bases[0], "bounds")]


def _measured(name: str, of: StudyRun, measured: Measurement) -> StudyRun:
    """Something more that is measured of a run."""
    kind = name.rsplit("/", 1)[0]
    return study_run(kind, None, of.replication, base=of, measured=measured, small=of.small)


def measure(one: StudyRun) -> Record:
    from benchmarks import lab_judge

    return lab_judge.measure(one)


def lines(found: Record) -> Iterator[str]:
    """What `--run` prints of a record."""
    if "single" in found:
        yield f"single {found['single']:.3f}, held-out pairs {found['single, held-out pairs']:.3f}"
        for where in ("known", "held-out pairs"):
            for probe, rows in found[where].items():
                for row in rows:
                    interval = f"[{row['low']}, {row['high']}]"
                    yield f"{where}: {probe}: {row['name']} {row['score']} {interval} n {row['n']}"
    elif "chosen" in found:
        yield f"alpha {found['chosen']['alpha']} of {found['cure']}"
    else:
        yield from (f"{name} {each['accuracy']:.3f} n {each['n']}" for name, each in found["questions"].items())


def write(chosen: Sequence[StudyRun], small: bool) -> None:
    from benchmarks import lab_report

    lab_report.write(chosen, small=small)


STUDY = Study(about=__doc__ or "", runs=runs, measure=measure, lines=lines, write=write)

if __name__ == "__main__":
    sys.exit(command_line(STUDY))
