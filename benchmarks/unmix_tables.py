"""Tables and the picture of docs/unmix.md, from the records of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.lab_records import record_of
from benchmarks.lab_runs import ROOT, TOY, StudyRun
from benchmarks.lab_tables import Group, Replicated, groups, headline_table, mean_and_range, number
from benchmarks.marked import markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

PAGE, PICTURE = ROOT / "docs" / "unmix.md", ROOT / "docs" / "pictures" / "lab" / "unmix.png"
FREE, WAY = "training-free", "projection, denials"
COLUMNS = {
    "mAP, trained labels": "mAP",
    "mAP, trained labels, any pairs in the picture": "mAP, trained labels among all pairs",
    "mAP, labels never trained": "mAP, labels never trained",
    "text cosine": "text cosine",
    "F1": "F1",
    "pointing": "pointing",
    "mIoU": "mIoU",
    "mIoU, never trained": "mIoU, never trained",
}
HEADLINES = (  # which runs, what of them, and what the line is called
    ("64px/mfi-0", "mAP", "`mfi-0`: mAP, trained labels"),
    ("64px/mfi-0", "mAP, trained labels among all pairs", "`mfi-0`: mAP, trained labels, any pairs in the picture"),
    ("64px/mfi-0", "mAP, labels never trained", "`mfi-0`: mAP, labels never trained"),
    ("64px/mfi-0", "text cosine", "`mfi-0`: text cosine"),
    ("64px/mfi-30", "text cosine", "`mfi-30`: text cosine"),
    ("64px/mfi-0", "mIoU", "`mfi-0`: mIoU"),
    (f"64px/{FREE}", "mIoU", f"training-free, {WAY}: mIoU"),
    ("64px/mfi-0", "mIoU, never trained", "`mfi-0`: mIoU, never trained"),
    (f"64px/{FREE}", "mIoU, never trained", f"training-free, {WAY}: mIoU, never trained"),
)
Record = Mapping[str, Any]
Found = dict[str, Group]  # by kind, without the side


def write(runs: Sequence[StudyRun], *, small: bool) -> None:
    """Fill the page's blocks; a toy's page and picture go to .runs/lab/toy."""
    page, picture = (TOY / "unmix.md", TOY / "unmix.png") if small else (PAGE, PICTURE)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks(runs)), encoding="utf-8")
    draw(sides_of(runs), picture)
    print(f"written: {page}")


def blocks(runs: Sequence[StudyRun]) -> dict[str, str]:
    """Every table of the page, by the name of its block."""
    sides = sides_of(runs)
    found = {f"unmix-{side}": table(of_side) for side, of_side in sides.items()}
    return {**found, "unmix-knobs": knobs(sides), "unmix-headlines": headline_table(headlines(runs))}


def sides_of(runs: Sequence[StudyRun]) -> dict[str, Found]:
    """The records by the side of the pictures; a side whose base was not judged is left out."""
    found: dict[str, Found] = {}
    for group in groups([one for one in runs if one.measured in ("heads", "training-free")]):
        side, kind = group.kind.split("/")
        found.setdefault(side, {})[kind] = group
    return {side: kinds for side, kinds in found.items() if FREE in kinds}


def headlines(runs: Sequence[StudyRun]) -> list[Replicated]:
    """The numbers that claims of the page rest on, over replications."""
    out: list[Replicated] = []
    for kind, key, says in HEADLINES:
        records = [(one, record) for one in runs if one.kind == kind and (record := record_of(one)) is not None]
        numbers = [(one, record["scores"][WAY] if "scores" in record else record) for one, record in records]
        if not numbers:
            continue
        items = next((each["95 %"][key] for _, each in numbers if key in each.get("95 %", {})), (None, None))
        values = {f"r{one.replication}": float(each[key]) for one, each in numbers if one.seed == one.replication}
        out.append(
            Replicated(says, values, (items[0], items[1]), [each[key] for one, each in numbers if not one.replication])
        )
    return out


def table(found: Found) -> str:
    """One line for each training-free score, of replication 0, and each kind of run; the last is the grid's bound."""
    bare = free_of(found)
    lines = [
        [f"training-free: {name}", "1", *(once(record, key) for key in COLUMNS.values())]
        for name, record in bare.items()
    ]
    for kind, group in trained(found).items():
        values = [[float(record[key]) for record in group.records] for key in COLUMNS.values()]
        lines.append([f"`{kind}`", group.says, *(spread(each) for each in values)])
    first = next(iter(bare.values()))
    bounds = [
        number(first[f"{key.split(',')[0]} bound{key.removeprefix(key.split(',')[0])}"])
        if key.startswith(("pointing", "mIoU"))
        else ""
        for key in COLUMNS.values()
    ]
    return markdown_table(["score", "repeats", *COLUMNS], [*lines, ["best set of whole cells", "", *bounds]])


def knobs(sides: Mapping[str, Found]) -> str:
    """What validation said: replication 0 of every kind, the seed of training its own."""
    columns = ("mAP", "pointing", "mIoU", "F1", "text cosine")
    lines: list[list[str]] = []
    for side, found in sides.items():
        scores = {f"training-free: {name}": record for name, record in free_of(found).items()}
        scores |= {f"`{kind}`": group.records[0] for kind, group in trained(found).items()}
        lines += [
            [side, name, *(number(record["validation"][key]) for key in columns)] for name, record in scores.items()
        ]
    return markdown_table(["pictures", "score, r0", *columns], lines)


def free_of(found: Found) -> Mapping[str, Record]:
    """The training-free scores of replication 0, by name."""
    return found[FREE].records[0]["scores"]


def trained(found: Found) -> Found:
    return {kind: group for kind, group in found.items() if kind != FREE}


def once(record: Record, key: str) -> str:
    """Of one base: mAPs with the bootstrap's interval over pictures."""
    interval = record["95 %"].get(key)
    return number(record[key]) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def spread(values: Sequence[float]) -> str:
    """Mean of the runs, the smallest and the largest."""
    return mean_and_range(values) if len(values) > 1 else number(values[0])


def draw(sides: Mapping[str, Found], path: Path) -> None:
    """mAP over the texts' cosine as MFI's weight grows: trained labels and labels never trained, a panel a size."""
    weighed = {side: _by_weight(found) for side, found in sides.items()}
    weighed = {side: curve for side, curve in weighed.items() if len(curve) > 1}
    if not weighed:
        return
    figure, axes = pyplot.subplots(
        1, len(weighed), figsize=(4.8 * len(weighed), 3.6), squeeze=False, layout="constrained"
    )
    for axis, (side, curve) in zip(axes[0], weighed.items(), strict=True):
        for key, style, colour, label in (
            ("mAP", "o-", "#0072b2", "trained labels"),
            ("mAP, labels never trained", "s--", "#d55e00", "labels never trained"),
        ):
            points = [
                (mean(records, "text cosine"), mean(records, key), records) for _, records in sorted(curve.items())
            ]
            axis.plot([x for x, _, _ in points], [y for _, y, _ in points], style, color=colour, label=label)
            for _, _, records in points:
                axis.plot(
                    [each["text cosine"] for each in records],
                    [each[key] for each in records],
                    ".",
                    color=colour,
                    alpha=0.4,
                )
            best = free_of(sides[side])["cosine, denials"][key]
            axis.axhline(best, color=colour, linewidth=1, linestyle=":")
        for weight, records in sorted(curve.items()):
            axis.annotate(
                f"{weight:g}",
                (mean(records, "text cosine"), mean(records, "mAP")),
                xytext=(0, 5),
                textcoords="offset points",
                fontsize=8,
                ha="center",
            )
        axis.set(
            title=f"{side}; numbers: weight of MFI", xlabel="mean |cosine| of different labels' texts", ylabel="mAP"
        )
        axis.legend(fontsize=8, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _by_weight(found: Found) -> dict[float, Sequence[Record]]:
    return {float(kind.removeprefix("mfi-")): group.records for kind, group in found.items() if kind.startswith("mfi-")}


def mean(records: Sequence[Record], key: str) -> float:
    return sum(each[key] for each in records) / len(records)
