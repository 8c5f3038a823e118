"""A peer record as tables: ratios, targets met or missed, and where a missed one's time goes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import column, ratio_of_runs, read_record
from benchmarks.marked import markdown_table, publish

RECORD = "peers.json"


@dataclass(frozen=True)
class Target:
    """A promise: the median of `over` / `under` of one figure, at least or at most `limit`."""

    what: str
    figure: str
    over: str
    under: str
    limit: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def _image_targets(dialect: str) -> list[Target]:
    rate, alone = "items_per_s", "p50_ms"
    return [
        Target(f"images, 8 clients, fp32 ({dialect})", rate, f"images_8/fp32/{dialect}", "images_8/infinity/same", 1.3),
        Target(f"images, 8 clients, int8 ({dialect})", rate, f"images_8/int8/{dialect}", "images_8/infinity/same", 2.5),
        Target(
            f"latency of one image alone, fp32 ({dialect})",
            alone,
            f"image_alone/fp32/{dialect}",
            "image_alone/infinity/same",
            0.7,
            at_least=False,
        ),
        Target(
            f"latency of one image alone, int8 ({dialect})",
            alone,
            f"image_alone/int8/{dialect}",
            "image_alone/infinity/same",
            0.4,
            at_least=False,
        ),
    ]


def _text_targets(dialect: str) -> list[Target]:
    rate = "items_per_s"
    return [
        Target(
            f"texts, 8 clients, one short text each ({dialect})",
            rate,
            f"texts_8/fp32/{dialect}",
            "texts_8/infinity/same",
            3.0,
        ),
        Target(
            f"texts, 8 clients, batches of 16 ({dialect})",
            rate,
            f"texts_16/fp32/{dialect}",
            "texts_16/infinity/same",
            1.2,
        ),
    ]


TARGETS = [target for dialect in ("same", "lean") for target in (*_image_targets(dialect), *_text_targets(dialect))] + [
    Target(
        "images, 8 clients, int8 over its int8 (lean)",
        "items_per_s",
        "images_8/int8/lean",
        "images_8/infinity-int8/same",
        1.0,
    ),
    Target("server efficiency, fp32 (lean)", "rate", "images_8/fp32/lean", "raw/fp32", 0.9),
    Target("server efficiency, int8 (lean)", "rate", "images_8/int8/lean", "raw/int8", 0.9),
]


def verdicts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with the spread of its ratio; those whose runs are not in the record are left out."""
    found = []
    for target in TARGETS:
        pairs = [_pair(runs, target) for runs in record["repetitions"]]
        if any(pair is None for pair in pairs):
            continue
        over, under = zip(*[pair for pair in pairs if pair], strict=True)
        found.append(_verdict(target, ratio_of_runs(over, under)))
    for precision in ("fp32", "int8"):
        if precision in record["memory_mib"]:
            found += _once(record, precision)
    return found


def _pair(runs: dict[str, Any], target: Target) -> tuple[float, float] | None:
    if target.over not in runs or target.under not in runs:
        return None
    return _figure(runs[target.over], target.figure), _figure(runs[target.under], target.figure)


def _figure(run: dict[str, Any], figure: str) -> float:
    """The raw session calls its rate `rate`, a load `items_per_s`."""
    return run["items_per_s"] if figure == "rate" and "items_per_s" in run else run[figure]


def _once(record: dict[str, Any], precision: str) -> list[dict[str, Any]]:
    memory, ready = record["memory_mib"], record["ready_s"]
    found = []
    for what, kind in (("resident memory after load", "resident_mib"), ("peak memory", "peak_mib")):
        ratio = memory[precision][kind] / memory["infinity"][kind]
        found.append(
            _verdict(Target(f"{what}, {precision}", kind, "", "", 0.5, at_least=False), ratio_of_runs([ratio], [1.0]))
        )
    ratios = ratio_of_runs(ready[precision], ready["infinity"])
    found.append(
        _verdict(Target(f"time to the first answer, {precision}", "ready_s", "", "", 0.25, at_least=False), ratios)
    )
    return found


def _verdict(target: Target, ratio: dict[str, float]) -> dict[str, Any]:
    met = target.met(ratio["median"])
    return {"what": target.what, "limit": target.limit, "at_least": target.at_least, "met": met, **ratio}


def where_time_goes(record: dict[str, Any]) -> list[list[str]]:
    """For each server and image scenario: CPU an item, of which the engine alone, and what the batches were like."""
    rows = []
    first = record["repetitions"][0]
    for key, run in first.items():
        if key.startswith("raw/"):
            continue
        runs = [runs[key] for runs in record["repetitions"]]
        scenario, contender, dialect = key.split("/")
        engine = ""
        if scenario == "images_8" and f"raw/{contender}" in first:
            engine = (
                f"{statistics.median(column([r[f'raw/{contender}'] for r in record['repetitions']], 'cpu_ms')):.1f}"
            )
        batches = next(iter(run["batches"].values()), None)
        rows.append(
            [
                _SCENARIOS[scenario],
                contender,
                dialect,
                f"{statistics.median(column(runs, 'server_cpu_ms')):.1f}",
                f"{statistics.median(column(runs, 'loop_cpu_ms')):.2f}",
                engine,
                f"{batches['mean']:.1f}" if batches else "",
                f"{100 * statistics.median(column(runs, 'own_cpu_share')):.1f} %",
                f"{statistics.median(column(runs, 'foreign_cores')):.2f}",
            ]
        )
    return rows


_SCENARIOS = {
    "images_8": "images, 8 clients",
    "image_alone": "one image alone",
    "texts_8": "texts, 8 clients",
    "texts_16": "texts by 16, 8 clients",
}
_RATE_HEAD = ["scenario", "server", "dialect", "items/s", "min - max", "p50 ms", "p95 ms", "p99 ms"]
_TIME_HEAD = [
    "scenario",
    "server",
    "dialect",
    "CPU ms/item",
    "event loop",
    "engine alone",
    "batch",
    "load's CPU",
    "foreign cores",
]
_TARGET_HEAD = ["figure", "ratio to infinity_emb", "min - max", "target", ""]


def rate_rows(record: dict[str, Any]) -> list[list[str]]:
    rows = []
    for key in record["repetitions"][0]:
        runs = [runs[key] for runs in record["repetitions"]]
        rates = [_figure(run, "rate") for run in runs]
        middle = [f"{statistics.median(rates):.1f}", f"{min(rates):.1f} - {max(rates):.1f}"]
        if key.startswith("raw/"):
            rows.append(
                ["session alone", key.removeprefix("raw/"), f"batch {runs[0]['batch']:.0f}", *middle, "", "", ""]
            )
            continue
        scenario, contender, dialect = key.split("/")
        tail = [f"{statistics.median(column(runs, f'p{p}_ms')):.1f}" for p in (50, 95, 99)]
        rows.append([_SCENARIOS[scenario], contender, dialect, *middle, *tail])
    return rows


def target_rows(record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            v["what"],
            f"{v['median']:.2f}",
            f"{v['min']:.2f} - {v['max']:.2f}",
            f"{'>=' if v['at_least'] else '<='} {v['limit']:g}",
            "met" if v["met"] else "missed",
        ]
        for v in verdicts(record)
    ]


def footprint_rows(record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{statistics.median(seconds):.1f}",
            f"{record['memory_mib'][name]['resident_mib']:.0f}",
            f"{record['memory_mib'][name]['peak_mib']:.0f}",
        ]
        for name, seconds in record["ready_s"].items()
    ]


_FOOTPRINT_HEAD = ["server", "ready, s", "resident, MiB", "peak, MiB"]


def report(record: dict[str, Any], console: Console) -> None:
    for title, head, rows in (
        ("rates and latencies (medians of the repetitions)", _RATE_HEAD, rate_rows(record)),
        ("start and memory", _FOOTPRINT_HEAD, footprint_rows(record)),
        ("where the time goes", _TIME_HEAD, where_time_goes(record)),
        ("targets", _TARGET_HEAD, target_rows(record)),
    ):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown(record: dict[str, Any]) -> str:
    """The block of docs/performance.md."""
    before, after, settings = record["before"], record["after"], record["settings"]
    ours, peer = before["versions"], record["peer_versions"]
    facts = (
        f"{before['at_utc']} to {after['at_utc']}, {before['cores']} cores of {before['cpu']} "
        f"({', '.join(before['cpu_flags'])}), load average {before['load_average']} before and {after['load_average']} "
        f"after. clipworks {before['git']} with onnxruntime {ours.get('onnxruntime')}, Python {ours['python']}; "
        f"infinity_emb {peer['infinity-emb']} with torch {peer['torch']}, transformers {peer['transformers']}, "
        f"Python {peer['python']}. "
        f"{settings['repetitions']} repetitions, {settings['seconds']:g} s a run."
    )
    lowest = {what: min(values) for what, values in record["cosines"].items()}
    agreement = "Lowest cosine between the two servers' vectors: " + ", ".join(
        f"{what} {value:.6f}" for what, value in lowest.items()
    )
    parts = [
        facts,
        agreement + ".",
        markdown_table(_TARGET_HEAD, target_rows(record)),
        markdown_table(_RATE_HEAD, rate_rows(record)),
        markdown_table(_FOOTPRINT_HEAD, footprint_rows(record)),
        markdown_table(_TIME_HEAD, where_time_goes(record)),
    ]
    return "\n\n".join(parts)


def short_markdown(record: dict[str, Any]) -> str:
    """The block of the README: rates, ratios and the machine in a few lines."""
    before = record["before"]
    rows = []
    for scenario, contender, dialect in (
        ("images_8", "fp32", "lean"),
        ("images_8", "int8", "lean"),
        ("texts_8", "fp32", "same"),
        ("texts_16", "fp32", "same"),
    ):
        key, peer = f"{scenario}/{contender}/{dialect}", f"{scenario}/infinity/same"
        if any(key not in runs for runs in record["repetitions"]):
            continue
        ours = [runs[key]["items_per_s"] for runs in record["repetitions"]]
        theirs = [runs[peer]["items_per_s"] for runs in record["repetitions"]]
        ratio = ratio_of_runs(ours, theirs)["median"]
        rows.append(
            [
                f"{_SCENARIOS[scenario]}, {contender}",
                f"{statistics.median(ours):.1f}/s",
                f"{statistics.median(theirs):.1f}/s",
                f"{ratio:.2f}",
            ]
        )
    head = ["ViT-B-32", "clipworks", f"infinity_emb {record['peer_versions']['infinity-emb']} (fp32)", "ratio"]
    return f"{before['cores']} cores of {before['cpu']}, {before['at_utc'][:10]}:\n\n" + markdown_table(head, rows)


def write_docs(source: Path) -> list[Path]:
    """Keep the record and write its tables into the docs."""
    record = read_record(source)
    return publish(source, RECORD, {"peers": markdown(record), "peers-short": short_markdown(record)})
