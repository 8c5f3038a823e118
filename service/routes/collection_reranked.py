"""Reranking of a search: what it takes, and which model does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipworks.schemas import SearchRequest, TextInput
from model_store.errors import ClipworksError
from service.engine.running import RunningModel
from service.faults import TooManyItems
from service.http.errors import Refusal, located
from service.routes.collection_sources import source_param
from service.routes.common import reranker_for
from service.services import Services
from service.timing import Budget

if TYPE_CHECKING:
    from service.retrieval import CollectionSpec


def check_reranked(services: Services, body: SearchRequest) -> None:
    """Raises Refusal (422): a query is no text; TooManyItems (413): too many pairs."""
    if body.rerank is None:
        return
    for index, query in enumerate(body.queries):
        if not isinstance(query, (str, TextInput)):
            message = "rerank matches pictures with a text, and this query is none: leave rerank out, or send a text"
            raise Refusal(422, "unsupported_input", message, param=source_param(query, f"queries[{index}]"))
    pairs, most = len(body.queries) * body.rerank.top, services.settings.max_rerank_pairs
    if pairs > most:
        error = TooManyItems(
            f"{len(body.queries)} queries x top {body.rerank.top} are {pairs} pairs to match, the limit is {most} "
            "(CLIPWORKS_MAX_RERANK_PAIRS): fewer queries, or a smaller top"
        )
        raise located(error, "rerank.top")


async def reranker_of(
    services: Services, spec: CollectionSpec, body: SearchRequest, budget: Budget
) -> RunningModel | None:
    """The model that reranks this search; None: it is not reranked.

    Raises:
        Refusal: 404, no such model; 422, it has no reranker, or the collection keeps nothing for one; 409, it reads
            other position vectors than the collection keeps.
    """
    if body.rerank is None:
        return None
    name = body.rerank.model
    own = spec.rerank.model if spec.rerank else None  # which is loaded if need be; its bare name means this version
    is_pinned = name is None or (own is not None and name in (own, own.partition("@")[0]))
    named = None if is_pinned else reranker_for(services, name, "rerank.model")
    try:
        return await services.require_collections().models.reranker(spec, named, budget)
    except ClipworksError as error:
        raise located(error, "rerank") from None
