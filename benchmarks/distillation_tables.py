"""Tables and the picture of docs/distillation.md, from the records of the study."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.distillation import NONE, SERVED
from benchmarks.figures import ratio_of_runs
from benchmarks.lab_runs import RECORDS, ROOT, TOY, StudyRun
from benchmarks.lab_tables import Group, groups, mean_and_range, number
from benchmarks.marked import markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

PAGE, PICTURE = ROOT / "docs" / "distillation.md", ROOT / "docs" / "pictures" / "lab" / "distillation.png"
SPEED = RECORDS / "distillation"
ASKED, DRAWN = "t2i_r@10", "naming"
COLUMNS = {
    "naming": "naming",
    "naming, held-out pairs": "of pairs never trained",
    "t2i_r@1": "R@1",
    ASKED: "R@10",
    "overlap_10": "top 10 shared",
    "images apart": "pictures apart",
    "found across": "found across",
}
ACROSS = ("images apart", "found across")
RATES = ("image, HTTP", "image, graph", "text, HTTP", "text, graph")
Found = Mapping[str, Group]  # by kind
Rates = Mapping[str, Mapping[str, Mapping[str, float]]]  # by model and precision, then by what


def write(runs: Sequence[StudyRun], *, small: bool) -> None:
    """Fill the page's blocks; a toy's page and picture go to .runs/lab/toy."""
    page, picture = (TOY / "distillation.md", TOY / "distillation.png") if small else (PAGE, PICTURE)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks(runs)), encoding="utf-8")
    found, rates = by_kind(runs), read_rates()
    if rates and "teacher" in found:
        draw(found, rates, picture)
    print(f"written: {page}")


def blocks(runs: Sequence[StudyRun]) -> dict[str, str]:
    """Every table of the page, by the name of its block."""
    found, rates = by_kind(runs), read_rates()
    return {
        "distillation-students": students(found),
        "distillation-validation": validation(found),
        "distillation-cost": costs(found, rates),
        "distillation-mistakes": mistakes(found),
    }


def by_kind(runs: Sequence[StudyRun]) -> Found:
    """The records of students and of the teacher."""
    return {group.kind: group for group in groups([one for one in runs if one.measured == "student"])}


def students(found: Found) -> str:
    """One line a kind: the mean over seeds, with the smallest and the largest."""
    lines: list[list[str]] = []
    for kind, group in found.items():
        if kind.startswith("knobs/"):
            continue
        shown = [key for key in COLUMNS if key not in ACROSS or drawn_together(kind)]
        cells = [
            spread([record["scores"].get(key) for record in group.records]) if key in shown else "" for key in COLUMNS
        ]
        lines.append([f"`{kind}`", *cells, closed(found, kind, "naming"), closed(found, kind, ASKED), seconds(group)])
    return markdown_table(["run", *COLUMNS.values(), "naming's gap closed", "R@10's", "core-s"], lines)


def drawn_together(kind: str) -> bool:
    """Whether a term of the run compares its vectors with the teacher's one by one."""
    return kind.split("/")[1:] == [] or kind.split("/")[1] in ("fd", "mfd", "icl", "unified")


def validation(found: Found) -> str:
    keys = ("naming", ASKED, "overlap_10")
    lines = [
        [f"`{kind}`", *(spread([record["validation"].get(key) for record in group.records]) for key in keys)]
        for kind, group in found.items()
    ]
    return markdown_table(["run", *(COLUMNS[key] for key in keys)], lines)


def closed(found: Found, kind: str, key: str) -> str:
    """What share of the way from the control to the teacher, over the seeds that both the student and its control have:
    they share initialisation and batches."""
    control, teacher = found.get(f"{kind.split('/')[0]}/{NONE}"), found.get("teacher")
    if control is None or teacher is None or kind.endswith(NONE):
        return ""
    of_control, of_student = (
        {one.seed: record["scores"][key] for one, record in each.members} for each in (control, found[kind])
    )
    pairs = [(of_control[seed], of_student[seed]) for seed in of_control.keys() & of_student.keys()]
    low, own = (statistics.mean(each) for each in zip(*pairs, strict=True))
    high = mean(teacher, key)
    return f"{(own - low) / (high - low):.0%}" if high > low else ""


def costs(found: Found, rates: Rates) -> str:
    """Of what was published: size, and rates divided by the teacher's in fp32, the median of runs in turn."""
    lines: list[list[str]] = []
    for kind in SERVED:
        group = found.get(kind)
        if group is None or "artifact" not in group.records[0]:
            continue
        record = group.records[0]
        weighed = record["artifact"]
        for precision in ("fp32", "int8"):
            scores = record["scores"] if precision == "fp32" else record["int8"]
            size = [f"{weighed['MB'][f'{tower}_encoder {precision}']:.2f}" for tower in ("image", "text")]
            of_fp32 = precision == "fp32"
            lines.append(
                [
                    f"`{kind}`" if of_fp32 else "int8",
                    *(
                        f"{weighed['parameters'][f'{tower}_encoder'] / 1e6:.2f}" if of_fp32 else ""
                        for tower in ("image", "text")
                    ),
                    *(f"{record['MFLOPs'][tower]:.1f}" if of_fp32 else "" for tower in ("image", "text")),
                    *size,
                    number(scores["naming"]),
                    number(scores[ASKED]),
                    *(ratio(rates, f"{weighed['reference']} {precision}", what) for what in RATES),
                ]
            )
    head = ["run", "M parameters: image", "text", "MFLOPs: image", "text", "MB: image", "text", "naming", "R@10"]
    return markdown_table([*head, "images/s: HTTP", "graph", "texts/s: HTTP", "graph"], lines)


def mistakes(found: Found) -> str:
    """The probes' scores of teacher, control and students side by side: means over seeds."""
    kinds = [
        kind
        for kind in ("teacher", f"conv/{NONE}", "conv/unified", f"vit/{NONE}", "vit/unified", "image/fd")
        if kind in found
    ]
    if not kinds:
        return ""
    rows = [
        (probe, row["name"])
        for probe, each in found[kinds[0]].records[0]["probes"].items()
        for row in each
        if row["score"] is not None and not row["name"].endswith((" words", ", absent half"))
    ]
    lines = [
        [f"{probe}: {name}", *(number(statistics.mean(probed(found[kind], probe, name))) for kind in kinds)]
        for probe, name in rows
    ]
    return markdown_table(["question", *(f"`{kind}`" for kind in kinds)], lines)


def probed(group: Group, probe: str, name: str) -> list[float]:
    return [row["score"] for record in group.records for row in record["probes"][probe] if row["name"] == name]


def read_rates() -> Rates:
    """Ratios to the teacher in fp32, over repetitions of benchmarks/distillation_speed.py; empty without a record.

    Each record has a teacher of its own to compare with: models that came later were measured with it again.
    """
    return {label: each for path in sorted(SPEED.glob("speed*.json")) for label, each in _rates_of(path).items()}


def _rates_of(path: Path) -> Rates:
    repetitions: list[dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))["repetitions"]
    first = next(iter(repetitions[0]))  # the teacher in fp32
    return {
        label: {
            what: ratio_of_runs(
                [each[label][what] for each in repetitions], [each[first][what] for each in repetitions]
            )
            for what in RATES
        }
        for label in repetitions[0]
        if label != first or path.name == "speed.json"
    }


def ratio(rates: Rates, label: str, what: str) -> str:
    found = rates.get(label, {}).get(what)
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})" if found else ""


def draw(found: Found, rates: Rates, path: Any) -> None:
    """Naming over images/s of the graph alone, both relative to the teacher; a line joins fp32 and int8 of a model."""
    best = mean(found["teacher"], DRAWN)
    figure, axis = pyplot.subplots(figsize=(6.8, 4.2), layout="constrained")
    for number_, kind in enumerate(kind for kind in SERVED if kind in found and "int8" in found[kind].records[0]):
        record, reference = found[kind].records[0], found[kind].records[0]["artifact"]["reference"]
        points = [
            (rates[f"{reference} {precision}"]["image, graph"]["median"], 100 * scores[DRAWN] / best)
            for precision, scores in (("fp32", record["scores"]), ("int8", record["int8"]))
            if f"{reference} {precision}" in rates
        ]
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), "-", color=f"C{number_}", linewidth=1)
        axis.plot(*points[0], "o", color=f"C{number_}", label=kind)
        axis.plot(*points[-1], "s", color=f"C{number_}", markerfacecolor="white")
    axis.axhline(95, color="#888888", linewidth=1, linestyle=":")
    axis.axvline(4, color="#888888", linewidth=1, linestyle=":")
    axis.set(
        xlabel="images/s of the graph, teacher in fp32 = 1 (filled: fp32, open: int8)",
        ylabel="naming, % of the teacher's",
        xscale="log",
    )
    axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axis.legend(fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def mean(group: Group, key: str) -> float:
    return statistics.mean(record["scores"][key] for record in group.records)


def spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return "" if not known else number(known[0]) if len(known) == 1 else mean_and_range(known)


def seconds(group: Group) -> str:
    known = [record["cpu_s"] for record in group.records if record["cpu_s"] is not None]
    return f"{statistics.mean(known):.0f}" if known else ""
