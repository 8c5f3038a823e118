"""Tables and picture of docs/rerank.md, from benchmarks/lab/rerank.json."""

from __future__ import annotations

from typing import Any

import matplotlib

from benchmarks.lab_runs import ROOT
from benchmarks.marked import markdown_table, replace_blocks

matplotlib.use("Agg")
from matplotlib import pyplot

PAGE, PICTURE = ROOT / "docs" / "rerank.md", ROOT / "docs" / "pictures" / "lab" / "rerank.png"
MAIN = "longer"
SAYS = {
    "longer": "reranker",
    "longer-s1": "reranker, seed 1",
    "longer-s2": "reranker, seed 2",
    "places": "half the steps",
    "places-s1": "half the steps, seed 1",
    "places-s2": "half the steps, seed 2",
    "hard-s0": "no captions of places, two layers",
    "hard-s1": "the same, seed 1",
    "hard-s2": "the same, seed 2",
    "pooled": "the same, the mean position in place of positions",
    "random": "the same, random negatives",
    "in-batch": "the same, hard negatives of the batch alone",
    "no-words": "the same, no learnt words",
    "distill": "the same, with momentum distillation",
}
PROBES = {
    "binding": "binding: colours swapped",
    "exchanged": "relation: things exchanged",
    "opposite": "relation: opposite relation",
    "four": "relation: four relations",
}
_DEPTHS = (8, 32, 100)
Record = dict[str, Any]


def write_docs(record: Record) -> None:
    """Tables of the page, as far as they were measured, and its picture."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_blocks(page, blocks(record)), encoding="utf-8")
    draw(record)


def blocks(record: Record) -> dict[str, str]:
    runs = {name: record["runs"][name] for name in SAYS if name in record["runs"]}
    found = {"rerank-probes": _probes(runs), "rerank-galleries": _galleries(runs), "rerank-stages": _stages(runs)}
    return found | ({"rerank-speed": _speed(record["speed"])} if "speed" in record else {})


def _probes(runs: Record) -> str:
    """Each run's rows on pairs that training had, then on those it never had."""
    head = ["", *PROBES, "binding, pairs never trained", "four, pairs never trained", "naming"]
    first = runs[MAIN]["held out"]

    def line(name: str, held: Record, reader: str, naming: str) -> list[str]:
        known, unseen = held["probes"], held["probes, pairs never trained"]
        cells = [_cell(known[f"{reader}/{row}"]) for row in PROBES.values()]
        cells += [_cell(unseen[f"{reader}/{PROBES[row]}"]) for row in ("binding", "four")]
        return [name, *cells, _cell(held["naming"][naming]) if naming else ""]

    lines = [line("dual encoder (`b0`)", first, "dual encoder", "dual encoder")]
    lines += [line(SAYS[name], run["held out"], "reranker", "reranked 8") for name, run in runs.items()]
    lines += [line("reranker, blind (mean picture)", first, "blind", "")]
    return markdown_table(head, lines)


def _galleries(runs: Record) -> str:
    first = runs[MAIN]["held out"]["galleries"]
    lines = [["dual encoder (`b0`)", *(_cell(first[f"dual encoder/{each}"]) for each in ("swaps", "layouts"))]]
    for name, run in runs.items():
        found = run["held out"]["galleries"]
        lines.append([SAYS[name], *(_cell(found[f"reranker/{each}"]) for each in ("swaps", "layouts"))])
    for reader, says in (("blind", "reranker, blind (mean picture)"), ("another text", "reranker, another text")):
        lines.append([says, *(_cell(first[f"{reader}/{each}"]) for each in ("swaps", "layouts"))])
    return markdown_table(["R@1 of 8", "swaps", "layouts"], lines)


def _stages(runs: Record) -> str:
    found = runs[MAIN]["held out"]["two stages"]
    lines: list[list[str]] = []
    for kind in ("things", "layouts"):
        lines.append([f"{kind}, stage one alone", "", _cell(found[f"{kind}: stage one/R@1"])])
        for depth in _DEPTHS:
            reach, right = found[f"{kind}: stage one/R@{depth}"], found[f"{kind}: reranked {depth}/R@1"]
            lines.append([f"{kind}, k = {depth}", _cell(reach), _cell(right)])
    return markdown_table(["query", "right picture in the first k (R@k of stage one)", "R@1"], lines)


def _speed(speed: Record) -> str:
    found = speed["milliseconds"]
    lines = [[name, f"{value:.3f}"] for name, value in found.items() if "/" not in name]
    lines.append(["a pair, of an embedded picture", f"{found['pair / embedded picture']:.2f} times"])
    return markdown_table(["one thread", "ms, median"], lines)


def _cell(row: Record) -> str:
    return f"{_number(row['score'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def draw(record: Record) -> None:
    """Four probes and two galleries as bars: the dual encoder, the reranker, and its controls."""
    runs = record["runs"]
    first, names = runs[MAIN]["held out"], [*PROBES, "swaps", "layouts"]
    series = {"dual encoder": _scores(first, "dual encoder"), "reranker": _scores(first, "reranker")}
    others = {
        "longer-s1": "seed 1",
        "longer-s2": "seed 2",
        "places": "half the steps",
        "hard-s0": "no places",
        "pooled": "no places, mean position",
        "random": "no places, random negatives",
    }
    series |= {says: _scores(runs[each]["held out"], "reranker") for each, says in others.items() if each in runs}
    series["blind (mean picture)"] = _scores(first, "blind")
    figure, axis = pyplot.subplots(figsize=(9, 3.8), layout="constrained")
    width = 0.8 / len(series)
    for at, (label, rows) in enumerate(series.items()):
        places = [place + at * width for place in range(len(names))]
        values = [row["score"] for row in rows]
        reach = [
            [max(0.0, row["score"] - row["low"]) for row in rows],
            [max(0.0, row["high"] - row["score"]) for row in rows],
        ]
        axis.bar(places, values, width=width, label=label, yerr=reach, error_kw={"linewidth": 0.8})
    chances = [row["chance"] for row in _scores(first, "reranker")]
    for place, chance in enumerate(chances):
        axis.hlines(chance, place - width / 2, place + 0.8 - width / 2, color="black", linewidth=1, linestyle=":")
    axis.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], names)
    axis.set(ylabel="share right", ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=min(4, len(series)), frameon=False, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    pyplot.close(figure)


def _scores(held: Record, reader: str) -> list[Record]:
    found = [held["probes"][f"{reader}/{row}"] for row in PROBES.values()]
    return [*found, *(held["galleries"][f"{reader}/{each}"] for each in ("swaps", "layouts"))]
