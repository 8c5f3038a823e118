"""The first pass: of every raw pair its queries, whether its picture can be used, and what it looks like.

Nothing is decided here but what one pair decides alone. What was found of a unit is a file of JSON lines that appears
when it is complete, so a pass that was cut goes on behind the last whole unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from model_store.files import whole_file
from training.building.picture_code import Unusable, picture_code, usable
from training.building.queries import QueryIndex, read_queries
from training.building.sources import RawPair, Unit, raw_pairs

_VERSION = 2  # of what is written
_AT_ONCE = 64  # pairs in memory
_SHOWN = 100  # characters of a caption
NO_QUERY = "no query"


class PairScorer(Protocol):
    """Says how well pictures fit their captions."""

    def scores(self, pictures: Sequence[bytes], captions: Sequence[str]) -> Sequence[float | str]:
        """The cosine of each pair; a text where the model cannot say one, with the reason."""
        ...


class ScorerSource(Protocol):
    """Opens a scorer in the process that asks; hashable, and can be sent to another process."""

    @property
    def identity(self) -> str:
        """What names the scores: equal identities score alike."""
        ...

    def open(self) -> PairScorer: ...


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """What the first pass looks for. least_px: of the shorter side. most_aspect: long side by short side."""

    queries: Path
    least_px: int = 32
    most_aspect: float = 5.0
    scorer: ScorerSource | None = None


class Scanner:
    """A plan whose queries are read and whose model is open. Raises ValueError: of the queries."""

    def __init__(self, plan: ScanPlan) -> None:
        self._plan = plan
        self.queries = QueryIndex(query.text for query in read_queries(plan.queries))
        self._scorer = plan.scorer.open() if plan.scorer is not None else None

    def facts(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """One mapping for each raw pair of the unit, in order. Raises OSError, ValueError: see `raw_pairs`."""
        pairs = raw_pairs(unit)
        while group := list(islice(pairs, _AT_ONCE)):
            found = [self._looked_at(pair) for pair in group]
            self._score([(pair, fact) for pair, fact in zip(group, found, strict=True) if fact["fault"] is None])
            yield from found

    def _looked_at(self, pair: RawPair) -> dict[str, Any]:
        fact: dict[str, Any] = {"i": pair.index, "at": pair.at, "name": pair.name, "fault": pair.fault}
        fact["said"] = pair.caption[:_SHOWN]
        if pair.fault is not None:
            return fact | {"why": pair.why}
        try:
            image, kind = usable(pair.data, least_px=self._plan.least_px, most_aspect=self._plan.most_aspect)
        except Unusable as error:
            return fact | {"fault": error.fault, "why": str(error)}
        fact["queries"] = self.queries.found_in(pair.caption)
        if not fact["queries"]:
            return fact | {"fault": NO_QUERY, "why": pair.caption[:_SHOWN]}
        fact |= {"size": image.size, "kind": kind, "code": picture_code(image).hex()}
        picture = hashlib.sha256(pair.data)
        fact["picture"] = picture.hexdigest()[:32]
        picture.update(b"\0" + pair.caption.encode())
        fact["pair"] = picture.hexdigest()[:32]
        return fact

    def _score(self, group: Sequence[tuple[RawPair, dict[str, Any]]]) -> None:
        if self._scorer is None or not group:
            return
        scores = self._scorer.scores([pair.data for pair, _ in group], [pair.caption for pair, _ in group])
        for (_, fact), score in zip(group, scores, strict=True):
            if isinstance(score, str):
                fact |= {"fault": "no score", "why": score}
            else:
                fact["score"] = round(score, 6)


def facts_path(folder: Path, plan: ScanPlan, unit: Unit, queries: str) -> Path:
    """Where the facts of a unit lie: a name made of all that they depend on. queries: digest of the query list."""
    scorer = plan.scorer.identity if plan.scorer is not None else None
    said = [_VERSION, queries, plan.least_px, plan.most_aspect, scorer, asdict(unit)]
    return folder / f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]}.jsonl"


def scan_unit(plan: ScanPlan, unit: Unit, path: Path, queries: str) -> int:
    """Write the facts of a unit, in any process; how many pairs it has. queries: digest of the query list.

    Raises:
        OSError, ValueError: of reading and writing; the query list has changed.
    """
    count = 0
    with whole_file(path) as stream:
        for fact in _opened(plan, queries).facts(unit):
            stream.write(json.dumps(fact, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
            count += 1
    return count


@lru_cache(maxsize=1)
def _opened(plan: ScanPlan, queries: str) -> Scanner:
    """A process's own; it opens the model once."""
    scanner = Scanner(plan)
    if scanner.queries.digest() != queries:
        raise ValueError(f"{plan.queries} has changed meanwhile; run the command again")
    return scanner
