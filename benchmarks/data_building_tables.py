"""Tables and the plot of docs/data-building.md, from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.data_building_costs import DISTANCES
from benchmarks.marked import ROOT, markdown_table, replace_blocks

PAGE = ROOT / "docs" / "data-building.md"
PLOT = ROOT / "docs" / "pictures" / "data-building.png"
BANDS = ("frequent", "middle", "rare")
CONTROL = "no balance"
_DRAWS = 2000


def bands(values: Sequence[float]) -> list[float]:
    """Means of the frequent, the middle and the rare third."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(values, dtype=np.float64), len(BANDS))]


def publish(record: Mapping[str, Any]) -> None:
    blocks = {
        name: make(record)
        for name, make in _BLOCKS.items()
        if name.rpartition("-")[2].replace("stages", "runs") in record
    }
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_blocks(page, blocks), encoding="utf-8")
    if "runs" in record:
        draw(record)


def _named(record: Mapping[str, Any], key: str, *, of: str | None = None) -> dict[str, NDArray[np.float64]]:
    """arm -> [seeds, concepts]; `of`: only seeds that this arm has too."""
    runs = sorted(record["runs"], key=lambda run: run["seed"])
    seeds = {run["seed"] for run in runs if of in (None, run["arm"])}
    return {
        arm: np.array([run[key] for run in runs if run["arm"] == arm and run["seed"] in seeds], dtype=float)
        for arm in dict.fromkeys(run["arm"] for run in record["runs"])
    }


def _thirds(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """[seeds, concepts] -> the concepts of each band, and all of them."""
    return [*np.array_split(values, len(BANDS), axis=1), values]


def _gain(differences: NDArray[np.float64]) -> str:
    """Mean over seeds; t interval of the seeds' means; bootstrap over concepts, of all seeds together."""
    each = differences.mean(axis=1)
    if len(each) < 2:
        return f"{each.mean():+.3f}"
    half = float(stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each)))
    flat, rng = differences.reshape(-1), np.random.default_rng(0)
    drawn = flat[rng.integers(len(flat), size=(_DRAWS, len(flat)))].mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{each.mean():+.3f} ({each.mean() - half:+.3f} to {each.mean() + half:+.3f}) [{low:+.3f}, {high:+.3f}]"


def runs_table(record: Mapping[str, Any]) -> str:
    named, pairs = _named(record, "named"), _named(record, "pairs")
    rows: list[list[str]] = []
    for arm, values in named.items():
        for band, part, control, counts in zip(
            (*BANDS, "all"),
            _thirds(values),
            _thirds(_named(record, "named", of=arm)[CONTROL]),
            _thirds(pairs[arm]),
            strict=True,
        ):
            each = part.mean(axis=1)
            seeds = ", ".join(f"{value:.3f}" for value in each)
            gain = _gain(part - control) if arm != CONTROL else ""
            rows.append([arm, band, f"{counts.mean():.0f}", f"{each.mean():.3f}", seeds, gain])
    head = ["set", "concepts", "pairs of each", "named right", "each seed", "more than without balance"]
    return markdown_table(head, rows)


def stages_table(record: Mapping[str, Any]) -> str:
    """What became of the raw pairs of the first seed."""
    runs = {run["arm"]: run for run in record["runs"] if run["seed"] == record["runs"][0]["seed"]}
    reasons = dict.fromkeys(reason for run in runs.values() for reason in run["dropped"])
    rows = [[reason, *(f"{run['dropped'].get(reason, 0):,}" for run in runs.values())] for reason in reasons]
    rows.append(["**kept**", *(f"**{run['kept']:,}**" for run in runs.values())])
    rows.append(["pairs that a query chooses", *(str(run["most"] or "") for run in runs.values())])
    rows.append(
        ["queries as even as so many", *(f"{run['queries']['kept']['effective']:.0f}" for run in runs.values())]
    )
    return markdown_table(["left out as", *runs], rows)


def memory_table(record: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['pairs']:,}",
            f"{row['peak_mb']:.0f} MB",
            f"{row['cpu_s']:.0f} s",
            f"{1000 * row['cpu_s'] / row['pairs']:.2f} ms",
            f"{row['work_mb']:.0f} MB",
        ]
        for row in record["memory"]
    ]
    return markdown_table(["pairs", "peak memory", "CPU time", "of a pair", "what was found, on disk"], rows)


def near_table(record: Mapping[str, Any]) -> str:
    rows = [
        [data, what, *(f"{share:.3f}" for share in shares)]
        for data, found in record["near"].items()
        for what, shares in found.items()
    ]
    return markdown_table(["pictures", "within so many bits", *(str(distance) for distance in DISTANCES)], rows)


def vectors_table(record: Mapping[str, Any]) -> str:
    measured = record["vectors"]
    rows = [
        [data, f"{each['cosine']:g}", what, *(f"{shares[by]:.3f}" for by in ("hash", "usual", "vectors", "both"))]
        for data, each in measured["sets"].items()
        for what, shares in each["found"].items()
    ]
    head = [
        "pictures",
        "chosen cosine",
        "copies, or others",
        "hash",
        "vectors, .95",
        "vectors, chosen",
        "hash or chosen",
    ]
    return markdown_table(head, rows)


def draw(record: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, axes, label in (("pairs", left, "pairs of the set"), ("named", right, "named right")):
        for arm, values in _named(record, key).items():
            mean = values.mean(axis=0)
            if key == "named":  # of five neighbours, for the eye
                mean = np.convolve(np.pad(mean, 2, mode="edge"), np.full(5, 0.2), mode="valid")
            axes.plot(np.arange(1, len(mean) + 1), mean, label=arm)
        axes.set(xlabel="concepts, most frequent first", ylabel=label)
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    left.legend()
    figure.savefig(PLOT, dpi=100, metadata={"Software": None})


_BLOCKS = {
    "data-building-runs": runs_table,
    "data-building-stages": stages_table,
    "data-building-memory": memory_table,
    "data-building-near": near_table,
    "data-building-vectors": vectors_table,
}
