"""The first pass: of every raw pair its queries, whether its picture can be used, and what it looks like.

Nothing is decided here but what one pair decides alone. What was found of a unit is a file of JSON lines that appears
when it is complete, so a pass that was cut goes on behind the last whole unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.files import whole_file
from training.building.near_vectors import rounded, vectors_path, write_vector
from training.building.picture_code import Unusable, picture_code, usable
from training.building.queries import QueryIndex, read_queries
from training.building.sources import RawPair, Unit, raw_pairs

_VERSION = 2  # of what is written
_AT_ONCE = 64  # pairs in memory
_SHOWN = 100  # characters of a caption
NO_QUERY = "no query"


class PairScorer(Protocol):
    """Says how well pictures fit their captions."""

    def scores(
        self, pictures: Sequence[bytes], captions: Sequence[str], images: Sequence[NDArray[np.float32]] | None = None
    ) -> Sequence[float | str]:
        """The cosine of each pair; a text where the model cannot say one, with the reason.

        images: vectors of the pictures, of an embedder with the scorer's identity; None: they are not known.
        """
        ...


class PictureEmbedder(Protocol):
    """Says what pictures show."""

    def vectors(self, pictures: Sequence[bytes]) -> Sequence[NDArray[np.float32] | str]:
        """The unit vector of each, whatever the others are; a text where the model cannot say one, with the reason."""
        ...


class EmbedderSource(Protocol):
    """Opens an embedder in the process that asks; hashable, and can be sent to another process."""

    @property
    def identity(self) -> str:
        """What names the vectors: equal identities embed alike."""
        ...

    @property
    def dim(self) -> int: ...

    def open(self) -> PictureEmbedder: ...


class ScorerSource(Protocol):
    """Opens a scorer in the process that asks; hashable, and can be sent to another process."""

    @property
    def identity(self) -> str:
        """What names the scores: equal identities score alike."""
        ...

    def open(self) -> PairScorer: ...


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """What the first pass looks for. least_px: of the shorter side. most_aspect: long side by short side.

    embedder: its vectors of usable pictures are written too.
    """

    queries: Path
    least_px: int = 32
    most_aspect: float = 5.0
    scorer: ScorerSource | None = None
    embedder: EmbedderSource | None = None


class Scanner:
    """A plan whose queries are read and whose model is open. Raises ValueError: of the queries."""

    def __init__(self, plan: ScanPlan) -> None:
        self._plan = plan
        self.queries = QueryIndex(query.text for query in read_queries(plan.queries))
        self._scorer = plan.scorer.open() if plan.scorer is not None else None
        self._embedder = plan.embedder.open() if plan.embedder is not None else None
        asked = (plan.scorer, plan.embedder)
        self._one_model = len({each.identity for each in asked if each is not None}) == 1 and None not in asked

    def facts(self, unit: Unit, keep: Callable[[int, NDArray[np.int16]], None]) -> Iterator[dict[str, Any]]:
        """One mapping for each raw pair of the unit, in order. Raises OSError, ValueError: see `raw_pairs`.

        keep: is given the place and the vector of each usable picture, where there is an embedder.
        """
        pairs, begin = raw_pairs(unit), 0
        while group := list(islice(pairs, _AT_ONCE)):
            found = [self._looked_at(pair) for pair in group]
            vectors = self._embedded([(begin + row, pair, found[row]) for row, pair in enumerate(group)], keep)
            begin += len(group)
            usable_ones = [(pair, fact) for pair, fact in zip(group, found, strict=True) if fact["fault"] is None]
            self._score(usable_ones, vectors if self._one_model else None)
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

    def _score(
        self, group: Sequence[tuple[RawPair, dict[str, Any]]], images: Sequence[NDArray[np.float32]] | None
    ) -> None:
        if self._scorer is None or not group:
            return
        scores = self._scorer.scores([pair.data for pair, _ in group], [pair.caption for pair, _ in group], images)
        for (_, fact), score in zip(group, scores, strict=True):
            if isinstance(score, str):
                fact |= {"fault": "no score", "why": score}
            else:
                fact["score"] = round(score, 6)

    def _embedded(
        self, group: Sequence[tuple[int, RawPair, dict[str, Any]]], keep: Callable[[int, NDArray[np.int16]], None]
    ) -> list[NDArray[np.float32]]:
        """Vectors of the usable pictures: of all whose facts name no fault then."""
        known: list[NDArray[np.float32]] = []
        usable_ones = [each for each in group if each[2]["fault"] is None]
        if self._embedder is None or not usable_ones:
            return known
        vectors = self._embedder.vectors([pair.data for _, pair, _ in usable_ones])
        for (place, _, fact), vector in zip(usable_ones, vectors, strict=True):
            if isinstance(vector, str):
                fact |= {"fault": "no vector", "why": vector}
            else:
                known.append(vector)
                keep(place, rounded(vector))
        return known


def facts_path(folder: Path, plan: ScanPlan, unit: Unit, queries: str) -> Path:
    """Where the facts of a unit lie: a name made of all that they depend on. queries: digest of the query list."""
    scorer = plan.scorer.identity if plan.scorer is not None else None
    said: list[Any] = [_VERSION, queries, plan.least_px, plan.most_aspect, scorer, asdict(unit)]
    if plan.embedder is not None:
        said.append(plan.embedder.identity)
    return folder / f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]}.jsonl"


def scan_unit(plan: ScanPlan, unit: Unit, path: Path, queries: str) -> int:
    """Write the facts of a unit, in any process; how many pairs it has. queries: digest of the query list.

    Vectors, where they are asked for, are there before the facts are.

    Raises:
        OSError, ValueError: of reading and writing; the query list has changed.
    """
    count = 0
    with ExitStack() as files:
        stream = files.enter_context(whole_file(path))
        keep = _nowhere
        if plan.embedder is not None:
            vectors: BinaryIO = files.enter_context(whole_file(vectors_path(path)))
            keep = partial(write_vector, vectors)
        for fact in _opened(plan, queries).facts(unit, keep):
            stream.write(json.dumps(fact, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
            count += 1
    return count


def _nowhere(place: int, vector: NDArray[np.int16]) -> None:
    """Of a scan without an embedder."""


@lru_cache(maxsize=1)
def _opened(plan: ScanPlan, queries: str) -> Scanner:
    """A process's own; it opens the model once."""
    scanner = Scanner(plan)
    if scanner.queries.digest() != queries:
        raise ValueError(f"{plan.queries} has changed meanwhile; run the command again")
    return scanner
