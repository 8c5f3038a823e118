"""Tables and the picture of docs/unmix.md, from the records of the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from marked import markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "unmix.md", ROOT / "docs" / "pictures" / "lab" / "unmix.png"
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
Record = Mapping[str, Any]
Found = dict[str, list[Record]]  # the records of all seeds, by kind


def write_page(names: Sequence[str], folder: Path, *, free: str) -> None:
    """Fill the blocks of the page; names: of all runs, `<side>px/<kind>/seed<n>`. What was not judged is left out."""
    found: Found = {}
    for name in names:
        path = folder / f"{name.replace('/', '-')}.json"
        if path.exists():
            found.setdefault(name.rsplit("/", 1)[0], []).append(read(path))
    sides = list(dict.fromkeys(name.split("/")[0] for name in found))
    bare = {side: read(folder / f"{side}-{free}.json") for side in sides}
    blocks = {f"unmix-{side}": table(bare[side], of_side(found, side)) for side in sides}
    blocks["unmix-knobs"] = knobs(bare, found)
    draw(found, bare, PICTURE)
    PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")


def read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8"))


def of_side(found: Found, side: str) -> Found:
    return {kind.split("/")[1]: records for kind, records in found.items() if kind.startswith(f"{side}/")}


def table(bare: Record, trained: Found) -> str:
    """One line for each training-free score and each kind of run; the last line is the grid's bound."""
    lines = [
        [f"training-free: {name}", "-", *(once(record, key) for key in COLUMNS.values())]
        for name, record in bare.items()
    ]
    lines += [
        [f"`{kind}`", str(len(records)), *(spread([each[key] for each in records]) for key in COLUMNS.values())]
        for kind, records in trained.items()
    ]
    first = next(iter(bare.values()))
    lines.append(
        [
            "best set of whole cells",
            "",
            *(number(first[f"{key.split(',')[0]} bound{key.removeprefix(key.split(',')[0])}"])
              if key.startswith(("pointing", "mIoU")) else ""
              for key in COLUMNS.values()),
        ]
    )  # fmt: skip
    return markdown_table(["score", "seeds", *COLUMNS], lines)


def knobs(bare: Mapping[str, Record], found: Found) -> str:
    """What validation said: seed 0 of every kind."""
    columns = ("mAP", "pointing", "mIoU", "F1", "text cosine")
    lines = [
        [side, f"training-free: {name}", *(number(record["validation"][key]) for key in columns)]
        for side, records in bare.items()
        for name, record in records.items()
    ]
    lines += [
        [kind.split("/")[0], f"`{kind.split('/')[1]}`", *(number(records[0]["validation"][key]) for key in columns)]
        for kind, records in found.items()
    ]
    return markdown_table(["pictures", "score, seed 0", *columns], lines)


def once(record: Record, key: str) -> str:
    """One base, no seeds: mAPs with the bootstrap's interval over pictures."""
    interval = record["95 %"].get(key)
    return number(record[key]) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def spread(values: Sequence[float]) -> str:
    """Mean of the seeds, the smallest and the largest."""
    mean = sum(values) / len(values)
    return number(mean) + (f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else "")


def number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def draw(found: Found, bare: Mapping[str, Record], path: Path) -> None:
    """mAP over the texts' cosine as MFI's weight grows: trained labels and labels never trained, a panel a size."""
    sides = [side for side in bare if sum(kind.startswith("mfi-") for kind in of_side(found, side)) > 1]
    figure, axes = pyplot.subplots(1, len(sides), figsize=(4.8 * len(sides), 3.6), squeeze=False, layout="constrained")
    for axis, side in zip(axes[0], sides, strict=True):
        curve = {
            float(kind.removeprefix("mfi-")): records
            for kind, records in of_side(found, side).items()
            if kind.startswith("mfi-")
        }
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
            best = bare[side]["cosine, denials"][key]
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


def mean(records: Sequence[Record], key: str) -> float:
    return sum(each[key] for each in records) / len(records)
