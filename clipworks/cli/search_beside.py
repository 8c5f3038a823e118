"""Facets, histogram and ranks of `clipworks search`, as tables and as JSON."""

from __future__ import annotations

import json
from typing import Any

from clipworks.cli import output
from clipworks.results import Hits
from clipworks.schemas import FacetCounts, ItemStanding, ScoreHistogram

_BAR = 40


def survey_json(found: Hits) -> dict[str, Any]:
    """Fields of --json: those that were asked for."""
    shown: dict[str, Any] = {}
    if found.pool is not None:
        shown["pool"] = found.pool
    if found.reranked is not None:
        shown["reranked"] = found.reranked
    if found.match is not None:
        shown["match"] = found.match.model_dump()
    if found.facets:
        shown["facets"] = {name: facet.model_dump() for name, facet in found.facets.items()}
    if found.histogram is not None:
        shown["histogram"] = found.histogram.model_dump()
    if found.scores:
        shown["scores"] = [each.model_dump() for each in found.scores]
    return shown


def print_survey(found: Hits) -> None:
    if found.scores:
        output.print_table(["rank", "score", "id"], [_standing(each) for each in found.scores])
    for name, facet in found.facets.items():
        output.print_table([name, "items"], _counts(facet))
    if found.histogram is not None and found.histogram.counts:
        output.print_table(["score", "items", ""], _bars(found.histogram))


def print_match(found: Hits) -> None:
    """On standard error, so that a pipe reads the table alone."""
    if (match := found.match) is not None:
        said = f"that anything shows it has the probability {match.probability:.2f}"
        output.say(said if match.good else f"no good match: {said}, below {match.threshold:.2f}")


def _standing(item: ItemStanding) -> list[str]:
    if item.score is None:
        return ["no such item", "", item.id]
    return ["left out" if item.rank is None else str(item.rank), f"{item.score:.4f}", item.id]


def _counts(facet: FacetCounts) -> list[list[str]]:
    values = [
        [each.value if isinstance(each.value, str) else json.dumps(each.value), str(each.count)]
        for each in facet.values
    ]
    values += [[f"({facet.others} more values)", ""]] if facet.others else []
    return values + ([["(without it)", str(facet.missing)]] if facet.missing else [])


def _bars(histogram: ScoreHistogram) -> list[list[str]]:
    """The best on top. A bin with one item still has a bar."""
    most = max(histogram.counts)
    return [
        [f"{low:.3f} to {high:.3f}", str(count), "█" * (max(1, round(_BAR * count / most)) if count else 0)]
        for low, high, count in zip(
            reversed(histogram.edges[:-1]), reversed(histogram.edges[1:]), reversed(histogram.counts), strict=True
        )
    ]
