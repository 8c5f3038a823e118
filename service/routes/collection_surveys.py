"""What a search tells beside its hits, as the wire has it."""

from __future__ import annotations

from typing import Any

from clipworks.schemas import SearchRequest
from service.retrieval.surveys import Facet, Survey


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
