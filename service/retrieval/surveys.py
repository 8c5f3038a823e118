"""Facets, histograms and ranks over all items of a search: the question and the answer, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SurveySpec:
    """What to find out beside the hits.

    facets: metadata fields whose values are counted. facet_values: how many values of each are shown.
    bins: of a histogram of scores; None: no histogram. ids: items whose score and rank are wanted.
    """

    facets: tuple[str, ...] = ()
    facet_values: int = 20
    bins: int | None = None
    ids: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.facets or self.bins or self.ids)


@dataclass(frozen=True, slots=True)
class FacetValue:
    """How many items have this value; an item whose field is a list counts once for each of its values."""

    value: str | int | float | bool | None
    count: int


@dataclass(frozen=True, slots=True)
class Facet:
    """values: the most frequent first. others: how many further values there are. missing: items without the field."""

    values: tuple[FacetValue, ...]
    others: int
    missing: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of scores: counts[i] lie in edges[i] up to edges[i + 1], the last edge included. Without items empty."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one item stands. score: None: the collection has no such item.

    rank: 1 for the best hit; None where it cannot be a hit: the filter, or the query names it.
    """

    id: str
    score: float | None
    rank: int | None


@dataclass(frozen=True, slots=True)
class Survey:
    """Over all items that pass the filter and that the query does not name, hits or not.

    count: of them. passing: of these, how many reach `min_score`; facets count these. histogram: of all.
    """

    count: int
    passing: int
    histogram: Histogram | None = None
    facets: Mapping[str, Facet] = field(default_factory=dict[str, Facet])
    standings: tuple[Standing, ...] = ()
