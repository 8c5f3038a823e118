"""Records of benchmarks/retrieval.py as tables: on the terminal, and between the markers of docs/retrieval.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import read_record
from benchmarks.marked import RECORDS, ROOT, markdown_table, replace_blocks

PAGE, KEPT = ROOT / "docs" / "retrieval.md", RECORDS / "retrieval"
BLOCK = "retrieval"
Row = tuple[str, Callable[[dict[str, Any]], str]]


def show(paths: Sequence[Path], *, publish: bool = True) -> None:
    """Print records; publish: write them all, in that order, into the page, and copy them to `KEPT`."""
    text = text_of(paths)
    print(text)
    if not publish:
        return
    KEPT.mkdir(exist_ok=True, parents=True)
    for path in paths:
        (KEPT / path.name).write_bytes(path.read_bytes())
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_blocks(page, {BLOCK: text}), encoding="utf-8")


def text_of(paths: Sequence[Path]) -> str:
    records = [read_record(path) for path in paths]
    return "\n\n".join(f"{heading(record)}\n\n{tables(record)}" for record in records)


def heading(record: dict[str, Any]) -> str:
    before, after = record["before"], record["after"]
    return (
        f"**{record['rows']:,} x {record['dim']}, {record['source']}.** {before['at_utc'][:10]}, {before['cpu']},"
        f" {record['threads'] or 'all'} thread(s) on both sides, load average {before['load_average'][0]} to"
        f" {after['load_average'][0]} on {before['cores']} cores."
    )


def tables(record: dict[str, Any]) -> str:
    kinds: dict[str, dict[str, Any]] = record["kinds"]
    first = [name for kind in kinds.values() for name in kind["qps"]]
    ratios = [name for kind in kinds.values() for name in kind["ratios"]]
    rows: list[Row] = [
        *((f"recall@10, {name}", recalled(name)) for name in ("store", "raw", "refined")),
        *((f"{name}: queries/s", speed(name)) for name in dict.fromkeys(first)),
        *((f"**{name}**", ratio(name)) for name in dict.fromkeys(ratios)),
        ("filter never asked before, indexed / not indexed, ms", first_filter),
        ("upserts/s, once the index is built", lambda kind: both(kind["upserts_per_s"])),
        ("reopen with a snapshot, s", lambda kind: reopened(kind, "with")),
        ("reopen without, s", lambda kind: reopened(kind, "without")),
        ("memory of the process per vector, bytes", memory),
        ("disk per vector, bytes", lambda kind: f"{kind['disk_bytes']:.0f}"),
    ]
    cells = [[label, *(cell(kind) for kind in kinds.values())] for label, cell in rows]
    loaded = f"Bulk load into a flat index: {both(record['loaded_per_s'])} rows/s, in requests of 1,000."
    parts = [markdown_table(["", *kinds], cells), loaded]
    for kind in kinds.values():
        if probed := kind.get("probing"):
            lines = [[p["share"], f"{p['lists']}", f"{p['recall']:.4f}", f"{p['cpu_qps']:.0f}"] for p in probed]
            parts.append(markdown_table(["share of lists", "lists", "recall@10", "queries/s in batches (cpu)"], lines))
    return "\n\n".join(parts)


def both(rates: dict[str, float]) -> str:
    """Per second of wall time and of processor time."""
    return f"{rates['wall']:,.0f} ({rates['cpu']:,.0f})"


def recalled(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda kind: f"{kind['recall'][name]:.4f}" if name in kind["recall"] else "-"


def speed(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(kind: dict[str, Any]) -> str:
        found = kind["qps"].get(name)
        return f"{found['wall']['median']:,.1f} ({found['cpu']['median']:,.1f})" if found else "-"

    return cell


def ratio(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(kind: dict[str, Any]) -> str:
        found = kind["ratios"].get(name)
        return f"**{found['wall']['median']:.2f}** ({found['cpu']['median']:.2f})" if found else "-"

    return cell


def first_filter(kind: dict[str, Any]) -> str:
    took = kind["first_filtered_ms"]
    return f"{took['percent']:.1f} / {took['plain']:.1f}"


def reopened(kind: dict[str, Any], how: str) -> str:
    took = kind["reopen"][how]
    return f"{took['wall_s']:.1f} ({took['cpu_s']:.1f})"


def memory(kind: dict[str, Any]) -> str:
    return f"{kind['reopen']['with']['anonymous_bytes']:.0f}"
