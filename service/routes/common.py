"""Shared by all routes: the request's model, its budget, and checks before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from clipworks.schemas import Labelled, OnError, Templates
from model_store.errors import ArtifactNotFound, InputError
from model_store.towers import OpenedHead
from service.engine.running import RunningModel
from service.faults import LabelSetFailed, NoDirection, StateConflict, TooManyItems, UnknownName
from service.http.context import budget_of, context_of
from service.http.errors import Refusal, located
from service.http.inputs import param_of
from service.services import Services, services_of
from service.tasks.pipeline import FailedItem, ImageItem, Input
from service.tasks.scoring import ClassMatrix
from service.tasks.zero_shot import unknown_labels
from service.teaching.head import TaughtHead
from service.timing import Budget

_I = TypeVar("_I", bound=Input)


def budget_for(request: Request) -> Budget:
    settings = services_of(request).settings
    return budget_of(request.scope, default_s=settings.request_timeout_s, cap_s=settings.max_request_timeout_s)


def caller_of(request: Request) -> str:
    """Who asks, to share what is scarce: by key where keys are asked for, else by address."""
    return context_of(request.scope).caller


def model_for(services: Services, name: str | None) -> RunningModel:
    """The running model of a request.

    Raises:
        Refusal: 404, no such model.
        ServiceNotReady: it is not loaded, or the server is starting.
    """
    try:
        return services.registry.resolve(name)
    except ArtifactNotFound as error:
        raise located(error, "model") from None


def reranker_for(services: Services, name: str | None, param: str) -> RunningModel:
    """The running model of a request that wants a text matched with a picture; `param` is where it is named.

    Raises:
        Refusal: 404, no such model; 422, it has no reranker, and which have one.
        ServiceNotReady: it is not loaded, or the server is starting.
    """
    try:
        model = services.registry.resolve(name)
    except ArtifactNotFound as error:
        raise located(error, param) from None
    if model.has_reranker:
        return model
    able = sorted(each.reference for each in services.registry.running() if each.has_reranker)
    remedy = f"those that are loaded and have one: {', '.join(able)}" if able else "no model that is loaded has one"
    message = f"{model.reference} has no reranker; {remedy} (`roles` in GET /models; docs/rerank.md)"
    raise Refusal(422, "unsupported_input", message, param=param)


def model_of(services: Services, name: str | None, label_set: str | None) -> RunningModel:
    """The named model, or that of the label set. Raises as `model_for`; Refusal also for the label set's name."""
    if label_set is None or name is not None:
        return model_for(services, name)
    try:
        return model_for(services, services.label_sets.model_of(label_set))
    except (UnknownName, StateConflict, LabelSetFailed) as error:
        raise located(error, "label_set") from None


async def classes_of(
    services: Services,
    model: RunningModel,
    body: Labelled,
    templates: Templates | None,
    budget: Budget,
) -> ClassMatrix | OpenedHead | TaughtHead:
    """The classes of a request: its label set, or its labels in `templates`.

    Raises:
        Refusal: 404, no such label set; 422, labels cannot be encoded.
        As LabelSets.classes and ZeroShot.class_matrix.
    """
    if body.label_set is not None:
        try:
            found = services.label_sets.classes(body.label_set, model)
        except (UnknownName, LabelSetFailed) as error:
            raise located(error, "label_set") from None
        if body.on_unknown == "error" and isinstance(found, ClassMatrix) and found.weak:
            raise located(NoDirection(unknown_labels(found.weak_names)), "label_set")
        return found
    check_text_tower(model)
    try:
        return await services.zero_shot.class_matrix(
            model,
            body.labels or (),
            templates,
            on_unknown=body.on_unknown,
            limits=services.zero_shot.limits,
            budget=budget,
        )
    except (InputError, NoDirection) as error:
        raise located(error, "labels") from None


def check_count(services: Services, count: int) -> None:
    """Raises TooManyItems over the limit of one request."""
    limit = services.limits.max_items
    if count > limit:
        raise TooManyItems(f"the request has {count} inputs, the limit is {limit} (CLIPWORKS_MAX_ITEMS)")


def check_towers(model: RunningModel, items: Sequence[Input], inputs: Sequence[Any], *, name: str = "inputs") -> None:
    """Raises Refusal (422) for a text when the model takes images only, and the other way round."""
    for index, item in enumerate(items):
        if isinstance(item, FailedItem):
            continue
        kind, tower = ("images", model.image_spec) if isinstance(item, ImageItem) else ("texts", model.text_spec)
        if tower is None:
            message = f"{model.reference} takes no {kind}"
            raise Refusal(422, "unsupported_input", message, param=param_of(inputs, index, name=name))


def check_text_tower(model: RunningModel) -> None:
    """Raises Refusal (422) when labels cannot be encoded."""
    if model.text_spec is None:
        message = f"{model.reference} takes no texts, so it cannot encode labels"
        raise Refusal(422, "unsupported_input", message, param="model")


def until_first_failure(items: Sequence[_I], on_error: OnError) -> Sequence[_I]:
    """With on_error "fail" nothing behind an input that was refused already can change the answer."""
    if on_error == "item":
        return items
    first = next((index for index, item in enumerate(items) if isinstance(item, FailedItem)), None)
    return items if first is None else items[: first + 1]
