"""docs/lab.md's tables and pictures, from the records of the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.lab_figures import draw_curves, draw_learning
from benchmarks.lab_records import Record, record_of
from benchmarks.lab_runs import ROOT, TOY, StudyRun
from benchmarks.lab_tables import (
    Cell,
    Group,
    Replicated,
    groups,
    headline_table,
    number,
    replicated,
    table,
    wise_ft_table,
)
from benchmarks.marked import markdown_table, replace_blocks

PAGE, PICTURES = ROOT / "docs" / "lab.md", ROOT / "docs" / "pictures" / "lab"
KINDS = ("affirmative", "negative", "hybrid")
BINDING: dict[str, Cell] = {
    "binding": ("binding", "colours swapped"),
    "things exchanged": ("relation", "things exchanged"),
    "opposite relation": ("relation", "opposite relation"),
}
RELATION: dict[str, Cell] = {
    **BINDING,
    "four relations": ("relation", "four relations"),
    **{name: ("relation", f"four relations, {name}") for name in ("pair", "set")},
    "four places": ("place", "four places"),
}
NEGATION: dict[str, Cell] = {
    **{
        f"{kind}, {words}": ("negation", f"four options, {kind}, {words} words")
        for words in ("train", "recombined")
        for kind in KINDS
    },
    **{f"{words} words": ("negation", f"four options, {words} words") for words in ("train", "recombined", "unseen")},
    "is or is no": ("negation", "is or is no"),
}


def write(runs: Sequence[StudyRun], *, small: bool) -> None:
    """Fill the page's blocks; a toy's page and pictures go to .runs/lab/toy."""
    page, pictures = (TOY / "lab.md", TOY / "pictures") if small else (PAGE, PICTURES)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks(runs)), encoding="utf-8")
    draw(runs, pictures)
    print(f"written: {page}")


def blocks(runs: Sequence[StudyRun]) -> dict[str, str]:
    """Every table of the page, by the name of its block."""
    asked = groups([one for one in runs if one.measured == "questions"])
    grid = [group for group in asked if group.kind.startswith("grid/")]
    bases = [group for group in asked if group.kind in ("b0", "b1")]
    tunes = [group for group in asked if group not in grid and group not in bases and group.kind != "one-topic"]
    negated = [group for group in tunes if group.kind in ("negclip", "negation", "negation-reader")]
    first = [group for group in bases if group.kind == "b0"]
    return {
        "lab-headlines": headline_table(headlines(runs)),
        "lab-bases": table(bases, RELATION),
        "lab-grid": table(grid, RELATION),
        "lab-cures-binding": table([*first, *tunes], BINDING),
        "lab-cures-negation": table([*bases, *negated], NEGATION),
        "lab-composed": table([*bases, *grid, *tunes], BINDING, composed=True),
        "lab-wise-ft": wise_ft_table(groups([one for one in runs if one.measured == "wise-ft"])),
        "lab-probe": _right(runs, "probe/b0/r0"),
        "lab-bounds": _right(runs, "bounds/b0/r0"),
    }


def headlines(runs: Sequence[StudyRun]) -> list[Replicated]:
    """The numbers that claims of the page rest on."""
    binding, is_no = BINDING["binding"], NEGATION["is or is no"]
    found = [
        replicated(runs, "b0", "`b0`: naming single things"),
        replicated(runs, "b0", "`b0`: binding", binding),
        replicated(runs, "b0", "`b0`: binding, held-out pairs", binding, composed=True),
        replicated(runs, "b0", "`b0`: is or is no", is_no),
        replicated(runs, "control", "`control`: binding", binding),
    ]
    for kind in ("negclip", "negclip-neighbours"):
        found.append(replicated(runs, kind, f"`{kind}`: binding", binding))
        found.append(replicated(runs, kind, f"`{kind}`: binding, held-out pairs", binding, composed=True))
    found.append(replicated(runs, "labclip", "`labclip`: binding", binding))
    return [each for each in found if each is not None]


def draw(runs: Sequence[StudyRun], folder: Path) -> None:
    """The pictures; one whose records hold no curve (those from before curves were kept) stays as it is."""
    curves = {one.name.removeprefix("wise-ft/"): record for one, record in _recorded(runs, "wise-ft")}
    if curves:
        draw_curves(curves, folder / "wise-ft.png")
    asked = groups([one for one in runs if one.measured == "questions"])
    built = [group for group in asked if group.kind in ("b0", "b1") or group.kind.startswith("grid/")]
    tuned = [group for group in asked if group not in built]
    for chosen, name, series, label in (
        (built, "relation.png", "relation/opposite relation", "opposite relation"),
        (tuned, "binding.png", "binding/colours swapped", "binding"),
    ):
        points = {group.kind: _validated(group, series) for group in chosen}
        if points and all(points.values()):
            draw_learning(points, folder / name, label=label, chance=0.5)


def _validated(group: Group, series: str) -> list[tuple[int, float]]:
    return group.records[0].get("validation", {}).get(series, [])


def _recorded(runs: Sequence[StudyRun], measured: str) -> list[tuple[StudyRun, Record]]:
    found = [(one, record_of(one)) for one in runs if one.measured == measured]
    return [(one, record) for one, record in found if record is not None]


def _right(runs: Sequence[StudyRun], name: str) -> str:
    record = next((record_of(one) for one in runs if one.name == name), None)
    found = {} if record is None else record["questions"]
    rows = [[name, f"{each['n']:,}", number(each["accuracy"])] for name, each in found.items()]
    return markdown_table(["questions", "n", "right"], rows)
