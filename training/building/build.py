"""The whole of a build: look at every pair, decide what stays, write it. See docs/data-building.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_store.files import write_whole
from training.building import balance as balancing
from training.building.balance import Balance
from training.building.duplicates import bands, drop_duplicates, drop_near_duplicates
from training.building.near_vectors import drop_near_vectors
from training.building.pair_table import PairTable
from training.building.queries import QueryIndex, read_queries
from training.building.report import BuildReport, examples, query_figures, write_report
from training.building.scanning import ScanPlan, facts_path, scan_unit
from training.building.sources import Unit
from training.building.workers import each_done
from training.building.writing import ShardPlan, write_shard

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_PLAN, _TABLE, _FACTS = "plan.json", "pairs.sqlite", "facts"


@dataclass(frozen=True, kw_only=True)
class BuildChoice:
    """What stays of the pairs that were looked at.

    near_bits: near duplicates within so many of 256 bits; None: none are looked for. near_vectors: near duplicates are
    those with this cosine too; None: none are looked for. duplicates: keep equal pictures.
    share, least_score: what the filter keeps. most: pairs of a query, for `balance`; None: so many that `total` stay.
    """

    balance: Balance = "wit"
    most: int | None = None
    total: int | None = None
    near_bits: int | None = 3
    near_vectors: float | None = None
    duplicates: bool = False
    share: float | None = None
    least_score: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """work: what the first pass found; builds that share it look at nothing twice. workers: processes.

    plot: draw one beside the report, where matplotlib is installed.
    """

    units: tuple[Unit, ...]
    scan: ScanPlan
    choice: BuildChoice
    out: Path
    work: Path
    shard_pairs: int = 10_000
    workers: int = 1
    plot: bool = True


@contextmanager
def silent(label: str, total: int) -> Generator[Callable[[int], None]]:
    """A Progress that shows nothing."""
    yield lambda count: None


def build(plan: BuildPlan, *, progress: Progress = silent) -> BuildReport:
    """Build, or go on with, the data set in `plan.out`; it is complete when its report is there.

    However often it was cut and with however many processes, the shards have the same bytes. Memory does not grow with
    the pairs, but for a byte for each different picture while near duplicates are looked for.

    Raises:
        ValueError: the queries or options are none, or `plan.out` was begun with others.
        OSError: of sources, work or output.
    """
    _check(plan)
    queries = QueryIndex(query.text for query in read_queries(plan.scan.queries))
    plan.out.mkdir(parents=True, exist_ok=True)
    _claim(plan, queries.digest())
    facts = _scan(plan, queries.digest(), progress)
    table = PairTable(plan.out / _TABLE)
    try:
        report = _decide(plan, table, facts, queries, progress)
    finally:
        table.close()
    shards = ShardPlan(
        table=plan.out / _TABLE,
        units=plan.units,
        queries=queries.texts,
        folder=plan.out,
        size=plan.shard_pairs,
    )
    _write(shards, report.kept, plan.workers, progress)
    write_report(plan.out, report, plot=plan.plot)
    (plan.out / _TABLE).unlink()
    return report


def _check(plan: BuildPlan) -> None:
    choice = plan.choice
    if (choice.share is not None or choice.least_score is not None) and plan.scan.scorer is None:
        raise ValueError("pairs are kept by score, and no model says one")
    if choice.share is not None and choice.least_score is not None:
        raise ValueError("a share of the pairs or a least score, not both")
    if choice.near_bits is not None:
        bands(choice.near_bits)
    if choice.near_vectors is not None:
        if not 0 < choice.near_vectors <= 1:
            raise ValueError(f"near duplicates with a cosine of {choice.near_vectors}: expected more than 0, at most 1")
        if plan.scan.embedder is None:
            raise ValueError("near duplicates are looked for by vectors, and no model says them")
        if choice.duplicates:
            raise ValueError("equal pictures are kept, and near ones are to go by their vectors: one of the two")
    if not plan.units:
        raise ValueError("the sources hold no pairs")


def _claim(plan: BuildPlan, queries: str) -> None:
    """Write down what is built in the folder. Raises ValueError: it was begun as something else."""
    scan = plan.scan
    said = {
        "queries": queries,
        "units": hashlib.sha256(json.dumps([asdict(unit) for unit in plan.units]).encode()).hexdigest(),
        "least_px": scan.least_px,
        "most_aspect": scan.most_aspect,
        "filter": scan.scorer.identity if scan.scorer is not None else None,
        "vectors": scan.embedder.identity if scan.embedder is not None else None,
        **asdict(plan.choice),
        "shard_pairs": plan.shard_pairs,
    }
    path = plan.out / _PLAN
    if path.is_file():
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differs = [name for name in said if before.get(name) != said[name]]
        if differs:
            raise ValueError(
                f"{plan.out} was begun with other {', '.join(differs)}: name another folder"
                " (with the same --work nothing is looked at twice), or remove it"
            )
    elif any(plan.out.glob("*.tar")):
        raise ValueError(f"{plan.out} holds shards that are not of a build: name another folder")
    write_whole(path, json.dumps(said, indent=2).encode() + b"\n")


def _scan(plan: BuildPlan, queries: str, progress: Progress) -> list[Path]:
    """The facts of every unit, written where they are not there yet."""
    folder = plan.work / _FACTS
    folder.mkdir(parents=True, exist_ok=True)
    paths = [facts_path(folder, plan.scan, unit, queries) for unit in plan.units]
    missing = [
        (plan.scan, unit, path, queries) for unit, path in zip(plan.units, paths, strict=True) if not path.is_file()
    ]
    with progress("look at pairs", len(missing)) as advance:
        for _ in each_done(scan_unit, missing, workers=plan.workers):
            advance(1)
    return paths


def _decide(
    plan: BuildPlan, table: PairTable, facts: Sequence[Path], queries: QueryIndex, progress: Progress
) -> BuildReport:
    """What stays, by one rule after the other; after each, how many are left."""
    choice, count = plan.choice, len(queries)
    with progress("decide", len(facts) + 6) as advance:
        for number, path in enumerate(facts):
            table.take_in(number, path, seed=choice.seed)
            advance(1)
        stages = {"pairs": sum(table.counts().values()), "usable, with a query": table.alive()}
        raw = table.matches(count, where="queries IS NOT NULL")
        if not choice.duplicates:
            drop_duplicates(table)
            stages["no copies"] = table.alive()
        advance(1)
        if choice.near_bits is not None:
            drop_near_duplicates(table, distance=choice.near_bits)
            stages["no near copies"] = table.alive()
        advance(1)
        if choice.near_vectors is not None and plan.scan.embedder is not None:
            dim = plan.scan.embedder.dim
            drop_near_vectors(table, facts, plan.out, cosine=choice.near_vectors, dim=dim)
            stages["no near copies by vectors"] = table.alive()
        advance(1)
        least = balancing.drop_low_scores(table, share=choice.share, least=choice.least_score)
        if least is not None:
            stages["pictures that fit"] = table.alive()
        advance(1)
        clean = table.matches(count)
        most = balancing.balance(
            table, choice.balance, queries.texts, most=choice.most, total=choice.total, seed=choice.seed
        )
        if choice.balance != "none":
            stages["balanced"] = table.alive()
        advance(1)
        if choice.total is not None:
            balancing.drop_over_total(table, choice.total)
            stages["of the total"] = table.alive()
        kept = table.keep()
        advance(1)
    left = table.counts()
    left.pop("", None)
    chosen = table.matches(count, column="picked") if choice.balance != "none" else np.zeros(count, np.int64)
    return BuildReport(
        plan=json.loads((plan.out / _PLAN).read_text(encoding="utf-8")),
        stages=stages,
        kept=kept,
        dropped=dict(sorted(left.items(), key=lambda each: -each[1])),
        examples=examples(table.db, facts, left),
        least_score=least,
        most=most,
        queries=query_figures(queries.texts, raw, clean, table.matches(count), chosen),
        counts={"raw": raw, "clean": clean, "kept": table.matches(count)},
    )


def _write(shards: ShardPlan, kept: int, workers: int, progress: Progress) -> None:
    numbers = range(-(-kept // shards.size))
    missing = [(shards, number) for number in numbers if not shards.path(number).is_file()]
    with progress("write shards", len(missing)) as advance:
        for _ in each_done(write_shard, missing, workers=workers):
            advance(1)
