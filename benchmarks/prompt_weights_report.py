"""Tables and the plot of docs/prompts.md, from the record of the study of prompt weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np

from benchmarks.marked import ROOT, markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

PAGE, PICTURE = ROOT / "docs" / "prompts.md", ROOT / "docs" / "pictures" / "lab" / "prompt-weights.png"
Found = Mapping[str, Any]


def write(found: Found) -> None:
    blocks = {
        "prompt-sets": sets(found),
        "prompt-held-out": held_out(found),
        "prompt-validation": validation(found),
        "prompt-knobs": knobs(found),
        "prompt-spread": spread(found),
        "prompt-amounts": amounts(found),
    }
    PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(found)
    print(f"written: {PAGE}, {PICTURE}")


def sets(found: Found) -> str:
    rows = [
        [name, str(task["labels"]), *map(str, task["pictures"]), percent(task["majority"])]
        for name, task in found["tasks"].items()
    ]
    return markdown_table(["set", "labels", "unlabelled", "validation", "held out", "most frequent label"], rows)


def held_out(found: Found) -> str:
    """Accuracy, and the paired difference to the mean of 80, in points."""
    tasks = list(found["held_out"])
    names = list(found["held_out"][tasks[0]])
    rows = []
    for name in names:
        cells = [found["held_out"][task][name] for task in tasks]
        shown = [percent(each["accuracy"]) + ("" if name == "mean of 80" else f" ({points(each)})") for each in cells]
        rows.append([name, *shown, percent(np.mean([each["accuracy"] for each in cells]))])
    control = [found["tasks"][task]["control"] for task in tasks]
    rows.append(
        [
            "control: those weights of the pool, shuffled",
            *map(ranged, control),
            percent(np.mean([each["mean"] for each in control])),
        ]
    )
    return markdown_table(["accuracy held out, %", *tasks, "mean"], rows)


def validation(found: Found) -> str:
    """What single templates reach, and what scores know of that."""
    rows = []
    for name, task in found["tasks"].items():
        single, of = task["singles"], found["held_out"][name]
        rows.append(
            [
                name,
                *(percent(single[f"{which}_validation"]) for which in ("worst", "median", "best")),
                f"`{single['best']}`",
                percent(of["mean of 80"]["validation"]),
                percent(of["ZPE weights of the pool, chosen"]["validation"]),
                *(f"{single['rank_correlation'][kind]:.2f}" for kind in ("raw", "own", "reference")),
            ]
        )
    head = ["validation, %", "worst template", "median", "best (a bound)", "which", "mean of 80", "weighed pool"]
    return markdown_table([*head, "rank correlation: raw", "own", "reference"], rows)


def knobs(found: Found) -> str:
    rows = []
    for name, row in found["knobs"]["best"].items():
        knob = "sharpness" if "sharpness" in row else "threshold"
        values = [each["validation"] for each in found["knobs"]["tried"] if _family(each) == _family(row)]
        rows.append([name, row["kind"], f"{knob} {row[knob]:g}", percent(row["validation"]), percent(min(values))])
    return markdown_table(["weighing", "expectation over", "chosen", "validation, %", "the worst that was tried"], rows)


def _family(row: Found) -> tuple[str, str]:
    return row["how"], row["of"]


def spread(found: Found) -> str:
    rows = [
        [
            name,
            *map(ranged, of.values()),
        ]
        for name, of in ((name, task["spread"]) for name, task in found["tasks"].items())
    ]
    first = next(iter(found["tasks"].values()))["spread"]
    return markdown_table(["held out, %", *first], rows)


def amounts(found: Found) -> str:
    rows = [
        [
            name,
            *map(ranged, of.values()),
        ]
        for name, of in ((name, task["amounts"]) for name, task in found["tasks"].items())
    ]
    shown = [*list(next(iter(found["tasks"].values()))["amounts"])[:-1], "all"]
    return markdown_table(["validation, % by pictures", *shown], rows)


def draw(found: Found) -> None:
    """Above: accuracy of single templates against their score. Below: held-out accuracy beside the mean of 80."""
    tasks = found["tasks"]
    figure, axes = pyplot.subplots(2, len(tasks), figsize=(3.6 * len(tasks), 6.6), layout="constrained")
    shown = {
        "mean of 7": "mean of 7",
        "mean of the pool": "mean of the pool",
        "ZPE weights of 80, chosen": "weighed 80",
        "ZPE weights of the pool, chosen": "weighed pool",
        "ZPE selection of 80, chosen": "selected of 80",
        "ZPE selection of the pool, chosen": "selected of the pool",
        "raw scores, weights of the pool": "raw scores",
    }
    for (name, task), above, below in zip(tasks.items(), axes[0], axes[1], strict=True):
        scores, accuracy = np.array(task["singles"]["points"]).T
        above.scatter(scores, 100 * accuracy, s=8, color="tab:blue", alpha=0.6)
        above.set(title=f"{name}, rank correlation {task['singles']['rank_correlation']['reference']:.2f}")
        above.set(xlabel="score of the template, without labels")
        of = [found["held_out"][name][each] for each in shown]
        places = np.arange(len(of))[::-1]
        below.axvline(0, color="grey", linewidth=0.8)
        below.errorbar(
            [100 * each["to_80"] for each in of], places, xerr=[100 * each["to_80_reach"] for each in of],
            fmt="o", color="tab:blue", markersize=4, linewidth=1,
        )  # fmt: skip
        below.set_yticks(places, list(shown.values()) if below is axes[1][0] else [""] * len(of))
        below.set(xlabel="held out, points to the mean of 80")
    axes[0][0].set_ylabel("its accuracy on validation, %")
    figure.savefig(PICTURE, dpi=100)
    pyplot.close(figure)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def ranged(row: Found) -> str:
    return f"{percent(row['mean'])} ({percent(row['low'])} to {percent(row['high'])})"


def points(row: Found) -> str:
    return f"{100 * row['to_80']:+.1f} ± {100 * row['to_80_reach']:.1f}"
