"""Facets, histogram and ranks of a search: their limits, and their fields in an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clipworks.schemas import SearchRequest
from service.faults import TooManyItems
from service.retrieval.surveys import Facet, Survey

_QUERIES = 16  # with facets of what reaches a least score, which are counted for each query


def check_surveys(body: SearchRequest) -> None:
    """Raises TooManyItems (413)."""
    if body.facets and body.min_score is not None and len(body.queries) > _QUERIES:
        raise TooManyItems(
            f"{len(body.queries)} queries: facets with min_score are counted for each query, of {_QUERIES} at most; "
            "send several requests, or leave min_score out"
        )


def unknown_facets(surveys: Iterable[Survey]) -> list[str]:
    """Fields that no item has which was counted."""
    found = list(surveys)
    names = [name for name in (found[0].facets if found else ()) if any(each.passing for each in found)]
    return [name for name in names if all(each.facets[name].missing == each.passing for each in found)]


def survey_fields(survey: Survey | None, body: SearchRequest) -> dict[str, Any]:
    """Fields of one query's result: those that were asked for, none for a query that was not searched."""
    if survey is None:
        return {}
    shown: dict[str, Any] = {}
    if body.facets:
        shown["facets"] = {name: _counts(facet) for name, facet in survey.facets.items()}
    if (found := survey.histogram) is not None:
        shown["histogram"] = {
            "edges": found.edges,
            "counts": found.counts,
            "mean": found.mean,
            "deviation": found.deviation,
        }
    if body.score_of:
        shown["scores"] = [{"id": each.id, "score": each.score, "rank": each.rank} for each in survey.standings]
    return shown


def _counts(facet: Facet) -> dict[str, Any]:
    values = [{"value": each.value, "count": each.count} for each in facet.values]
    return {"values": values, "others": facet.others, "missing": facet.missing}
