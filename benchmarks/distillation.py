"""The study of distillation on scenes: trains what is missing, judges it on held-out scenes, writes the page.

    python benchmarks/distillation.py --list             what was run here, and what there are records of
    python benchmarks/distillation.py --run 'conv/*'     train and judge the runs of a pattern, teachers first
    python benchmarks/distillation.py --write-docs       tables and picture of docs/distillation.md from the records
    python benchmarks/distillation_speed.py --out FILE   images/s and texts/s of the served students, in turn

The teacher is trained as b0 of benchmarks/lab.py is. Students differ from it in the image tower (`conv`, `vit`), or
in the text tower too (`half-text`); each has a control of the same steps and data without a teacher. `image` are image
towers in the teacher's own space, `tinyclip` are cut out of the distilled ViT. Seeds are of training and of captions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from benchmarks.lab_records import Record
from benchmarks.lab_runs import StudyRun, shuffles, study_run
from benchmarks.lab_study import Study, command_line

NONE = "control"
TERMS = {
    NONE: (),
    "fd": ("method_options.fd=2000",),
    "mfd": ("method_options.mfd=2000",),
    "icl": ("method_options.icl=1",),
    "crd": ("method_options.crd=1",),
    "gd": ("method_options.gd=1",),
    "afd": ("method_options.afd=1",),
    "unified": ('method_options.preset="unified"',),
}
STUDENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # overrides, and which terms are tried
    "conv": ((), tuple(TERMS)),
    "vit": (('model.image.trunk="clipworks_vit_t"',), (NONE, "unified")),
    "half-text": (("model.text.layers=1",), (NONE, "unified")),
    "conv-long": (("optim.steps=3000",), (NONE, "unified")),
    "vit-long": (('model.image.trunk="clipworks_vit_t"', "optim.steps=3000"), (NONE, "unified")),
}
ONCE = ("conv-long", "vit-long")  # with one seed
WHOLE = "vit-long/unified"  # what TinyCLIP cuts
KNOBS = {  # other weights, once: validation decides
    "fd-500": ("method_options.fd=500",),
    "gd-1000": ("method_options.gd=1000",),
    "unified-fd-500": ('method_options.preset="unified"', "method_options.fd=500"),
    "unified-fd-8000": ('method_options.preset="unified"', "method_options.fd=8000"),
}
CUTS = {
    "by-hand-50": ("method_options.image={layers = 3}", "method_options.text={layers = 1}"),
    "by-hand-25": (
        "method_options.image={layers = 3, heads = 2, mlp = 256}",
        "method_options.text={layers = 1, heads = 2, mlp = 256}",
    ),
    "by-masks-50": ("method_options.masks={image = 0.5, text = 0.5, rate_share = 80}",),
    "by-masks-25": ("method_options.masks={image = 0.75, text = 0.75, rate_share = 80}",),
    "random-50": (
        "method_options.image={layers = 3}",
        "method_options.text={layers = 1}",
        'method_options.start="random"',
    ),
}
SERVED = (
    "teacher",
    "conv/unified",
    "half-text/unified",
    WHOLE,
    "image/fd",
    *(f"tinyclip/{kind}" for kind in CUTS if kind != "random-50"),
)
"""Published, judged in int8 too, and measured through the server: seed 0 of these."""


def runs(replications: int, small: bool) -> list[StudyRun]:
    """Everything that the study trains and measures, teachers first; `replications` are those of other studies."""
    teacher = _run("teacher", "b0", small=small)
    seeds = (0, *shuffles(small=small))
    out = [teacher]
    for student, (shape, terms) in STUDENTS.items():
        for term in terms:
            chosen = (*shape, *TERMS[term])
            out += [
                _run(f"{student}/{term}", "kd", seed, chosen, base=teacher, taught=True, small=small)
                for seed in (seeds[:1] if student in ONCE else seeds)
            ]
    out += [
        _run(f"knobs/{knob}", "kd", 0, chosen, base=teacher, taught=True, small=small) for knob, chosen in KNOBS.items()
    ]
    out += [_run("image/fd", "kd-image", seed, base=teacher, small=small) for seed in seeds]
    whole = next(one for one in out if one.kind == WHOLE)
    for kind, chosen in CUTS.items():
        out += [_run(f"tinyclip/{kind}", "tinyclip", seed, chosen, base=whole, small=small) for seed in seeds]
    return out


def teacher_of(one: StudyRun) -> StudyRun:
    """Whom a run is compared with, also if it was cut out of a student."""
    return one if one.base is None else teacher_of(one.base)


def _run(
    kind: str,
    recipe: str,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    *,
    base: StudyRun | None = None,
    taught: bool = False,
    small: bool,
) -> StudyRun:
    return study_run(
        kind,
        recipe,
        study="distillation",
        seed=seed,
        overrides=overrides,
        base=base,
        taught=taught,
        measured="student",
        small=small,
    )


def measure(one: StudyRun) -> Record:
    from benchmarks import distillation_judge

    return distillation_judge.measure(one, teacher=teacher_of(one), served=one.seed == 0 and one.kind in SERVED)


def lines(found: Record) -> Iterator[str]:
    """What `--run` prints of a record."""
    short = {key: round(value, 3) for key, value in found["scores"].items()}
    yield json.dumps(short)


def write(chosen: Sequence[StudyRun], small: bool) -> None:
    from benchmarks import distillation_tables

    distillation_tables.write(chosen, small=small)


STUDY = Study(about=__doc__ or "", runs=runs, measure=measure, lines=lines, write=write)

if __name__ == "__main__":
    sys.exit(command_line(STUDY))
