"""Shared by /classify and /localize: images and labels in, an entry for each image out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import ClassifyRequest, LocalizeRequest
from model_store.errors import ClipworksError, InputError
from model_store.label_vectors import LabelVectors
from model_store.manifest import Presence
from service.engine.running import RunningModel
from service.http.context import RequestContext, context_of, while_connected
from service.http.errors import located
from service.http.given_labels import distinct_labels
from service.http.ingress import read_request
from service.http.inputs import items_of, param_of
from service.http.options import Options
from service.http.respond import entries, json_response, model_headers
from service.routes.common import budget_for, check_count, check_towers, model_of, until_first_failure
from service.services import Services, services_of
from service.tasks.label_tokens import LabelTokens
from service.tasks.pipeline import FailedItem, ImageItem
from service.tasks.scoring import ClassMatrix
from service.tasks.zero_shot import unknown_labels
from service.timing import Budget

_B = TypeVar("_B", ClassifyRequest, LocalizeRequest)
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledRequest(Generic[_B]):
    """A request whose body, model and inputs are in order. images: those that can change the answer."""

    services: Services
    context: RequestContext
    budget: Budget
    body: _B
    model: RunningModel
    images: Sequence[ImageItem | FailedItem]


@dataclass(frozen=True)
class LabelledAnswer(Generic[_T]):
    """What was found in each image, or why nothing was, and what to know of the labels."""

    outcomes: Sequence[_T | ClipworksError]
    warnings: Sequence[str] = ()


def warnings_of(classes: ClassMatrix | LabelTokens) -> list[str]:
    """The labels of which the model knows nothing, in a sentence; none if there are none."""
    return [unknown_labels(classes.weak_names)] if classes.weak else []


async def read_asked(request: Request, body_type: type[_B], options: Options) -> LabelledRequest[_B]:
    """Raises Refusal, or an error of ingress, for whatever is wrong before any image is decoded."""
    services = services_of(request)
    budget = budget_for(request)
    received = await read_request(request, body_type, services.limits, budget=budget, options=options)
    body = received.body
    if body.labels is not None:
        body = body.model_copy(update={"labels": distinct_labels(body.labels)})
    check_count(services, len(body.inputs))
    model = model_of(services, body.model, body.label_set)
    items = await items_of(request, received, body.inputs, services.limits, budget)
    check_towers(model, items, body.inputs)
    images = [item for item in items if isinstance(item, (ImageItem, FailedItem))]
    return LabelledRequest(
        services=services,
        context=context_of(request.scope),
        budget=budget,
        body=body,
        model=model,
        images=until_first_failure(images, body.on_error),
    )


async def label_vectors(asked: LabelledRequest[_B], classes: ClassMatrix, presence: Presence) -> LabelVectors:
    """The vectors that `presence` compares positions with; labels of a stored set are under the limits of such sets.

    Raises:
        Refusal: 422, their denials cannot be encoded.
        As ZeroShot.label_vectors.
    """
    services, is_stored = asked.services, asked.body.label_set is not None
    try:
        return await services.zero_shot.label_vectors(
            asked.model,
            classes,
            presence,
            limits=services.label_sets.limits if is_stored else services.zero_shot.limits,
            budget=asked.budget,
        )
    except InputError as error:
        raise located(error, "label_set" if is_stored else "labels") from None


async def answer(
    request: Request,
    asked: LabelledRequest[_B],
    work: Coroutine[Any, Any, LabelledAnswer[_T]],
    show: Callable[[_T], Mapping[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> Response:
    """200 with the entries of `work`'s outcomes, and `more` fields beside them.

    Raises:
        Refusal: with on_error "fail", the failure of lowest index.
    """
    judged = await while_connected(request, work)
    body, model = asked.body, asked.model
    data = entries(
        judged.outcomes,
        show,
        on_error=body.on_error,
        place=lambda index: param_of(body.inputs, index),
        telemetry=asked.services.telemetry,
    )
    fingerprint = {"image": model.fingerprint.image, "text": model.fingerprint.text}
    payload = {"model": model.reference, "fingerprint": fingerprint, **(more or {}), "data": data}
    if judged.warnings:
        payload["warnings"] = judged.warnings
    return json_response(payload, headers=model_headers(model))
