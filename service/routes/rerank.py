"""POST /rerank: a text with pictures, or a picture with texts, best match first; the dialect of Jina's and Cohere's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import ImageInput, RerankRequest, RerankResponse, StoredPicture, TextInput
from model_store.errors import ClipworksError
from service.engine.running import RunningModel
from service.engine.vectors import unknown_inputs
from service.http.context import while_connected
from service.http.errors import Refusal, located
from service.http.ingress import Received, off_loop, read_request
from service.http.inputs import encoded_bytes, item_of, param_of
from service.http.openapi import answers, bodies
from service.http.options import Options
from service.http.respond import entries, json_response, model_headers
from service.routes.common import budget_for, check_count, reranker_for
from service.routes.direct import DirectRoute
from service.services import Services, services_of
from service.tasks.pipeline import FailedItem, ImageItem, Input
from service.tasks.reranking import Document, KeptPicture, RerankOutcome, rerank, score_of
from service.timing import Budget

if TYPE_CHECKING:
    from service.collections.facade import PositionsReader

OPTIONS: Options = {
    "model": "text",
    "query": "text",
    "documents": "texts",
    "top_n": "whole",
    "return_documents": "flag",
    "on_error": "text",
    "on_unknown": "text",
}
router = APIRouter(route_class=DirectRoute)


@router.post(
    "/rerank",
    summary="Order pictures by how well a text fits them, or texts by how well they fit a picture",
    description=(
        "By a model with a reranker, which reads all positions of a picture and all tokens of a text. `query` is a "
        "text and `documents` are pictures, or the other way round."
    ),
    responses=answers(RerankResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=bodies(RerankRequest, OPTIONS, files="the first is its query if it has none, others are documents"),
)
async def post_rerank(request: Request) -> Response:
    services = services_of(request)
    budget = budget_for(request)
    received = await read_request(
        request,
        RerankRequest,
        services.limits,
        budget=budget,
        options=OPTIONS,
        inputs="documents",
        head="query",
    )
    body = received.body
    check_count(services, 1 + len(body.documents))
    model = reranker_for(services, body.model, "model")
    _check_pairs(body)
    query, given = await off_loop(
        request,
        lambda: _items(received, services),
        encoded_bytes([body.query, *body.documents]),
        services.limits,
        budget,
    )
    if isinstance(query, FailedItem):
        services.telemetry.item_error(query.error.code)
        raise located(query.error, _query_param(body))
    documents = await _with_stored(services, body, given, model, budget)
    outcome = await while_connected(
        request,
        rerank(
            model,
            query,
            _until_first_failure(documents) if body.on_error == "fail" else documents,
            pool=services.pool,
            on_unknown=body.on_unknown,
            budget=budget,
        ),
    )
    if outcome.query is not None:
        services.telemetry.item_error(outcome.query.code)
        raise located(outcome.query, _query_param(body))
    return json_response(_payload(services, received, model, outcome), headers=model_headers(model))


def _check_pairs(body: RerankRequest) -> None:
    """Raises Refusal (422): a document is of the query's own kind, and there is no model for such a pair."""
    is_text = _is_text(body.query)
    for index, document in enumerate(body.documents):
        if _is_text(document) == is_text:
            kind, other = ("texts", "pictures") if is_text else ("pictures", "texts")
            message = f"query and document are both {kind}; a reranker matches the query with {other} only"
            raise Refusal(422, "unsupported_input", message, param=_document_param(body, index))


def _is_text(given: Any) -> bool:
    return isinstance(given, (str, TextInput))


def _items(received: Received[RerankRequest], services: Services) -> tuple[Input, list[Input | StoredPicture]]:
    body, files, limits = received.body, received.files, services.limits
    query = item_of(body.query, limits) if received.head is None else ImageItem(received.head)
    documents: list[Input | StoredPicture] = []
    for index, each in enumerate(body.documents):
        if index in files:
            documents.append(ImageItem(files[index]))
        else:
            documents.append(each if isinstance(each, StoredPicture) else item_of(each, limits))
    return query, documents


async def _with_stored(
    services: Services, body: RerankRequest, given: Sequence[Input | StoredPicture], model: RunningModel, budget: Budget
) -> list[Document]:
    """Documents with a way to the position vectors of those that collections hold.

    Raises:
        Refusal: 404, no such collection; 409, it keeps none that this model reads.
    """
    readers: dict[str, PositionsReader] = {}
    documents: list[Document] = []
    for index, each in enumerate(given):
        if not isinstance(each, StoredPicture):
            documents.append(each)
            continue
        name = each.item.collection
        if name not in readers:
            try:
                readers[name] = await services.require_collections().positions_reader(name, model, budget=budget)
            except ClipworksError as error:
                raise located(error, _document_param(body, index)) from None
        documents.append(KeptPicture(partial(readers[name], each.item.id)))
    return documents


def _payload(
    services: Services, received: Received[RerankRequest], model: RunningModel, outcome: RerankOutcome
) -> dict[str, Any]:
    body, files = received.body, received.files

    def show(logit: float) -> dict[str, Any]:
        return {"relevance_score": score_of(logit)}

    made = entries(
        outcome.logits,
        show,
        on_error=body.on_error,
        place=lambda index: _document_param(body, index),
        telemetry=services.telemetry,
        weak=frozenset(outcome.weak),
    )
    if body.return_documents:
        for entry in made:
            if "error" not in entry and entry["index"] not in files:
                entry["document"] = _returned(body.documents[entry["index"]])
    best = sorted(
        (index for index, logit in enumerate(outcome.logits) if not isinstance(logit, ClipworksError)),
        key=lambda index: (-outcome.logits[index], index),  # pyright: ignore[reportOperatorIssue, reportUnknownLambdaType]
    )
    payload: dict[str, Any] = {
        "model": model.reference,
        "fingerprint": {"image": model.fingerprint.image, "text": model.fingerprint.text},
        "results": [*(made[index] for index in best[: body.top_n]), *(each for each in made if "error" in each)],
        "usage": {
            "texts": outcome.texts,
            "images": outcome.images,
            "tokens": outcome.tokens,
            "total_tokens": outcome.tokens,
        },
    }
    weak = [_query_param(body)] if outcome.is_query_weak else []
    if warnings := unknown_inputs([*weak, *(_document_param(body, index) for index in outcome.weak)], so="the score"):
        payload["warnings"] = warnings
    return payload


def _returned(document: Any) -> dict[str, Any]:
    match document:
        case StoredPicture():
            return {"item": document.item.model_dump()}
        case ImageInput():
            return {"image": document.image}
        case _:
            return {"text": document.text if isinstance(document, TextInput) else document}


def _document_param(body: RerankRequest, index: int) -> str:
    if isinstance(body.documents[index], StoredPicture):
        return f"documents[{index}].item"
    return param_of(body.documents, index, name="documents")


def _query_param(body: RerankRequest) -> str:
    return param_of([body.query], 0, name="query").replace("[0]", "")


def _until_first_failure(documents: Sequence[Document]) -> Sequence[Document]:
    """With on_error "fail" nothing behind a document that was refused already can change the answer."""
    first = next((index for index, each in enumerate(documents) if isinstance(each, FailedItem)), None)
    return documents if first is None else documents[: first + 1]
