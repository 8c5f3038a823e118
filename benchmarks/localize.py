"""The cost of a place: /localize with boxes beside /embed of the same picture, over HTTP, in turn.

    python benchmarks/localize.py                                              # the embedded model
    python benchmarks/localize.py --store .runs/bench-store --model vit-b-32-random --short-px 224 --short-px 448

One client sends one request at a time. A round asks every case once, every second round goes backwards; a case's figure
is the median, over the rounds, of its time divided by that of /embed in the same round, so that what else the machine
does falls on both alike. "few present" (threshold 1) is what a calibrated model sees, "all present" (threshold 0) the
worst case: every label's regions are looked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2

from benchmarks.contenders import clipworks_server
from benchmarks.marked import markdown_table
from benchmarks.payloads import photographs
from benchmarks.servers import Server

ADJECTIVES = ("red", "blue", "green", "old", "small", "wet", "shiny", "broken", "wooden", "round")
NOUNS = ("bicycle", "dog", "house", "chair", "boat", "tree", "cup", "bridge", "lamp", "horse") * 2
JPEG = {"Content-Type": "image/jpeg"}


@dataclass(frozen=True)
class Case:
    name: str
    path: str


def cases(model: str | None, sizes: Sequence[int | None]) -> list[Case]:
    """/embed first, then /localize for each size, number of labels, and share of them that is present."""
    common = {"model": model} if model else {}
    found = [Case("/embed", f"/embed?{urlencode(common)}")]
    for short_px in sizes:
        for count in (20, 200):
            for threshold, present in ((1, "few present"), (0, "all present")):
                query: dict[str, Any] = {**common, "labels": ",".join(labels(count)), "threshold": threshold}
                query |= {} if short_px is None else {"short_px": short_px}
                size = "default size" if short_px is None else f"short side {short_px}"
                found.append(Case(f"/localize {count} labels, {present}, {size}", f"/localize?{urlencode(query)}"))
    return found


def labels(count: int) -> list[str]:
    nouns = list(dict.fromkeys(NOUNS))
    return [f"{ADJECTIVES[n // len(nouns) % len(ADJECTIVES)]} {nouns[n % len(nouns)]} {n // 100}" for n in range(count)]


def ask(client: httpx2.Client, case: Case, picture: bytes) -> tuple[float, dict[str, Any]]:
    """(milliseconds, answer).

    Raises:
        RuntimeError: anything but a 200.
    """
    started = time.perf_counter()
    answer = client.post(case.path, content=picture, headers=JPEG)
    spent = 1000 * (time.perf_counter() - started)
    if answer.status_code != 200:
        raise RuntimeError(f"{case.name}: {answer.status_code} {answer.text[:300]}")
    stages = answer.headers.get("server-timing", "")
    return spent, {"body": answer.json(), "stages": stages}


def measure(client: httpx2.Client, asked: Sequence[Case], *, rounds: int) -> list[dict[str, Any]]:
    """Figures of each case: median milliseconds, ratio to /embed of the same round with quartiles, labels present."""
    pictures = photographs(8)
    first = {case.name: ask(client, case, pictures[0])[1] for case in asked}  # opens sessions, encodes labels
    for case in asked:
        ask(client, case, pictures[1])
    times: dict[str, list[float]] = {case.name: [] for case in asked}
    for turn in range(rounds):
        for case in asked if turn % 2 == 0 else list(reversed(asked)):
            times[case.name].append(ask(client, case, pictures[turn % len(pictures)])[0])
    figures: list[dict[str, Any]] = []
    for case in asked:
        ratios = [a / b for a, b in zip(times[case.name], times["/embed"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else (ratios[0],) * 3
        figures.append(
            {
                "case": case.name,
                "median_ms": round(statistics.median(times[case.name]), 2),
                "ratio": round(middle, 3),
                "ratio_quartiles": [round(low, 3), round(high, 3)],
                "present": present_in(first[case.name]["body"]),
                "stages": first[case.name]["stages"],
            }
        )
    return figures


def present_in(body: dict[str, Any]) -> int | None:
    entry = body["data"][0]
    return sum(each["present"] for each in entry["labels"]) if "labels" in entry else None


def table(figures: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            each["case"],
            f"{each['median_ms']:.1f}",
            f"{each['ratio']:.2f} ({each['ratio_quartiles'][0]:.2f} to {each['ratio_quartiles'][1]:.2f})",
            "" if each["present"] is None else str(each["present"]),
        ]
        for each in figures
    ]
    return markdown_table(["request", "ms", "times /embed (quartiles)", "labels present"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--short-px", type=int, action="append", default=[], help="beside the model's own size")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    chosen = parser.parse_args()
    spec = clipworks_server("clipworks", model=chosen.model, store=chosen.store, precision=None)
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(spec, Path(folder) / "server.log"),
        httpx2.Client(base_url=spec.url, timeout=120) as client,
    ):
        before = os.getloadavg()[0]
        figures = measure(client, cases(chosen.model, [None, *chosen.short_px]), rounds=chosen.rounds)
    print(table(figures))
    print(f"\n{chosen.rounds} rounds, {os.cpu_count()} cores, load average {before:.1f} to {os.getloadavg()[0]:.1f}")
    if chosen.out:
        chosen.out.write_text(json.dumps({"rounds": chosen.rounds, "figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
