"""POST /collections/{name}/search: many queries by text, image, vector, stored id, or weighted mixtures of them."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import MAX_POOL, CombineQuery, IdQuery, Part, SearchRequest, SearchResponse, VectorQuery
from model_store.errors import ClipworksError
from service.collections.arranging import Arranged, Arrangement
from service.collections.plans import GivenVector, QueryPlan, SearchParameters, Source, StoredId
from service.collections.rescoring import Rescoring
from service.engine.vectors import unknown_inputs
from service.faults import TooManyItems
from service.http.context import while_connected
from service.http.errors import Refusal
from service.http.ingress import Received, off_loop, read_request
from service.http.inputs import encoded_bytes, item_of
from service.http.limits import IngressLimits
from service.http.openapi import answers, bodies
from service.http.options import Options
from service.http.respond import encoded, entries, json_response, model_headers
from service.retrieval.surveys import SurveySpec
from service.routes.collection_presence import evidence_for
from service.routes.collection_reranked import check_reranked, reranker_of
from service.routes.collection_sources import (
    check_page,
    check_source,
    check_space,
    query_model,
    source_param,
    to_encode,
)
from service.routes.collection_surveys import check_surveys, survey_fields, unknown_facets
from service.routes.collections import Name
from service.routes.common import budget_for, caller_of, check_count
from service.services import Services, services_of
from service.tasks.pipeline import ImageItem

if TYPE_CHECKING:
    from service.retrieval import SearchOutcome, StoredHit

OPTIONS: Options = {
    "model": "text",
    "space": "text",
    "top_k": "whole",
    "offset": "whole",
    "min_score": "number",
    "views": "text",
    "diversity": "number",
    "group_near": "number",
    "pool": "whole",
    "facets": "list",
    "facet_values": "whole",
    "histogram": "whole",
    "score_of": "list",
    "include": "list",
    "encoding_format": "text",
    "on_error": "text",
    "on_unknown": "text",
}
router = APIRouter(prefix="/collections/{name}")


@router.post(
    "/search",
    summary="Search a collection",
    description=(
        "All queries are encoded in one run and searched at once. Best first; equal scores by id. `exact` says whether "
        "a better item may have been missed. A stored item that a query names is no hit of it. `diversity` and "
        "`group_near` arrange the best items anew; `facets`, `histogram` and `score_of` look at all items. "
        "`presence` tells how likely hits show what a text says, and whether anything does."
    ),
    responses=answers(SearchResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=bodies(SearchRequest, OPTIONS, files="images are appended to its queries"),
)
async def search(request: Request, name: Name) -> Response:
    services = services_of(request)
    collections = services.require_collections()
    budget = budget_for(request)
    received = await read_request(
        request, SearchRequest, services.limits, budget=budget, options=OPTIONS, inputs="queries"
    )
    body = received.body
    collection = await collections.get(name, budget=budget)
    spec = collection.spec
    check_space(spec, body.space)
    check_page(
        services,
        body.top_k,
        param="top_k",
        offset=body.offset,
        queries=len(body.queries),
        with_vectors="vector" in body.include,
    )
    arrangement = _arrangement(services, body)
    check_surveys(body)
    check_reranked(services, body)
    if body.views is not None and spec.views is None:
        message = 'this collection keeps one vector of each item; one that is made with "views" keeps two'
        raise Refusal(422, "invalid_field", message, param="views")
    plans = await off_loop(
        request,
        lambda: [_plan(received, index, services.limits) for index in range(len(body.queries))],
        encoded_bytes(body.queries),
        services.limits,
        budget,
    )
    inputs = to_encode([part for plan in plans for part in plan.parts])
    check_count(services, len(inputs))
    model = await query_model(services, spec, body.model, budget) if inputs or body.model else None
    if model is not None:
        for index, plan in enumerate(plans):
            for place, part in enumerate(plan.parts):
                check_source(model, part, _param(body, index, place))
    reranker = await reranker_of(services, spec, body, budget)
    parameters = SearchParameters(
        top_k=body.top_k,
        offset=body.offset,
        filter=body.filter,
        min_score=body.min_score,
        with_metadata="metadata" in body.include,
        with_vectors="vector" in body.include,
        arrangement=arrangement,
        survey=SurveySpec(tuple(body.facets), body.facet_values, body.histogram, tuple(body.score_of)),
        rescoring=reranker and body.rerank and Rescoring(reranker, body.rerank.top, services.pool),
        evidence=await evidence_for(services, spec, model, body, budget),
        view=body.views,
    )
    searched = await while_connected(
        request,
        collections.search(
            collection,
            plans,
            parameters,
            model=model,
            all_or_nothing=body.on_error == "fail",
            on_unknown=body.on_unknown,
            caller=caller_of(request),
            budget=budget,
        ),
    )

    def show(found: tuple[int, SearchOutcome]) -> dict[str, Any]:
        index, result = found
        arranged = searched.arranged.get(index)
        shown: dict[str, Any] = {"exact": result.exact, "hits": [_shown(hit, body, arranged) for hit in result.hits]}
        if arranged is not None:
            shown["pool"] = arranged.pool
        if body.rerank is not None:
            shown["reranked"] = searched.reranked.get(index, 0)
        if body.presence is not None:
            match = searched.matches.get(index)
            shown["match"] = match and {
                "probability": match.probability,
                "threshold": match.threshold,
                "good": match.is_good,
            }
        return shown | survey_fields(searched.surveys.get(index), body)

    results = entries(
        [each if isinstance(each, ClipworksError) else (index, each) for index, each in enumerate(searched.outcomes)],
        show,
        on_error=body.on_error,
        place=lambda index: _param(body, index, searched.failed_part.get(index)),
        telemetry=services.telemetry,
        weak=searched.weak,
    )
    payload: dict[str, Any] = {"model": model.reference if model else None, "space": spec.space, "results": results}
    warnings = [unknown_field(name, spec.metadata_schema) for name in searched.unknown_fields]
    warnings += [
        unknown_field(name, spec.metadata_schema, "facets") for name in unknown_facets(searched.surveys.values())
    ]
    warnings += unknown_inputs([_param(body, index, part) for index, part in searched.unknown_parts])
    if warnings:
        payload["warnings"] = warnings
    return json_response(payload, headers=model_headers(model) if model else None)


def unknown_field(name: str, schema: Mapping[str, str], where: str = "filter") -> str:
    """What to say of a field that no item has."""
    near = get_close_matches(name, schema, n=1)
    hint = f"; is {near[0]!r} meant?" if near else ""
    return f"{where}: no item of the collection has a field {name!r}{hint}"


def _plan(received: Received[SearchRequest], index: int, limits: IngressLimits) -> QueryPlan:
    query = received.body.queries[index]
    if index in received.files:
        return QueryPlan((ImageItem(received.files[index]),))
    if isinstance(query, CombineQuery):
        parts = tuple(_source(part, limits) for part in query.combine)
        return QueryPlan(parts, tuple(part.weight for part in query.combine), is_single=False)
    return QueryPlan((_source(query, limits),))


def _source(given: Any, limits: IngressLimits) -> Source:
    match given:
        case VectorQuery():
            return GivenVector(given.vector)
        case IdQuery():
            return StoredId(given.id)
        case _:
            return item_of(given, limits)


def _param(body: SearchRequest, index: int, place: int | None) -> str:
    """The part of a query that is to blame; None: the combination as a whole."""
    query = body.queries[index]
    if not isinstance(query, CombineQuery):
        return source_param(query, f"queries[{index}]")
    if place is None:
        return f"queries[{index}].combine"
    part: Part = query.combine[place]
    return source_param(part, f"queries[{index}].combine[{place}]")


def _arrangement(services: Services, body: SearchRequest) -> Arrangement:
    """Raises Refusal (422): a page that ends behind the pool; TooManyItems (413): too many items to arrange."""
    asked = Arrangement(body.diversity, body.group_near, body.pool)
    if asked.is_plain:
        return asked
    end, most = body.offset + body.top_k, min(MAX_POOL, services.settings.max_offset)
    if end > most:
        message = f"offset + top_k is {end}; diversity and group_near look at {most} items at most"
        raise Refusal(422, "invalid_field", message, param="offset" if body.top_k <= most else "top_k")
    pool = asked.least_pool(body.top_k) if asked.diversity else asked.pool
    if pool is not None and end > pool:
        message = (
            f"offset + top_k is {end}, and {pool} items are looked at; ask for the same larger pool with each page"
        )
        raise Refusal(422, "invalid_field", message, param="pool")
    looked_at, most = len(body.queries) * asked.largest_pool, services.settings.max_hits
    if looked_at > max(most, MAX_POOL):
        message = f"{looked_at} items may have to be arranged, the most is {most} (CLIPWORKS_MAX_HITS)"
        raise TooManyItems(f"{message}: fewer queries, or a smaller pool")
    return asked


def _shown(hit: StoredHit, body: SearchRequest, arranged: Arranged | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": hit.id, "score": hit.score}
    if body.rerank is not None:
        shown["rerank_score"] = hit.rerank_score
    if body.presence is not None:
        shown["presence"] = hit.presence
    if arranged is not None and body.group_near is not None:
        shown["near"] = [
            {"id": each.id, "score": each.score, "similarity": each.cosine} for each in arranged.folded[hit.id]
        ]
    if "metadata" in body.include:
        shown["metadata"] = hit.metadata
    if hit.vector is not None:
        shown["vector"] = encoded(hit.vector, body.encoding_format)
    return shown
