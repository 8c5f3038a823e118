"""Examples as a request gives them -> unit image vectors with labels, and the answer that says what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import ExampleItem, LabelSetInfo, OnError
from model_store.errors import ClipworksError
from service.engine.running import RunningModel
from service.http.context import while_connected
from service.http.errors import Refusal, located, status_of
from service.http.given_labels import checked_name
from service.http.ingress import Received, off_loop
from service.http.inputs import encoded_bytes, item_of
from service.http.respond import entries, json_response
from service.routes.common import check_count
from service.services import Services, services_of
from service.tasks import pipeline
from service.tasks.pipeline import ImageItem, Input
from service.teaching.examples import NewExample, item_id, picture_id
from service.timing import Budget

Given = Sequence[Any]
_NAMED = 32  # of the examples that a request is refused for


async def new_examples(
    request: Request,
    received: Received[Any],
    given: Given,
    model: RunningModel,
    *,
    on_error: OnError,
    budget: Budget,
) -> list[NewExample]:
    """Each example with its vector, or why it has none; pictures are encoded in one run.

    Raises:
        Refusal: 422, a label without a name, or a model that takes no images; with on_error "fail" also the first
            example that has no vector.
        TooManyItems: more than a request may bring.
    """
    services = services_of(request)
    check_count(services, len(given))
    if model.image_spec is None:
        raise Refusal(422, "unsupported_input", f"{model.reference} takes no images", param="examples")
    labels = [checked_name(each.label, f"examples[{index}]") for index, each in enumerate(given)]
    sources = await off_loop(
        request,
        lambda: [_source(received, index, each, services) for index, each in enumerate(given)],
        encoded_bytes(given),
        services.limits,
        budget,
    )
    pictures = [index for index, source in enumerate(sources) if not isinstance(source, ExampleItem)]
    vectors = await _item_vectors(services, sources, model, budget)
    if pictures:
        inputs: list[Input] = [source for source in sources if not isinstance(source, ExampleItem)]
        encoded = await while_connected(
            request,
            pipeline.embed(
                model,
                inputs,
                pool=services.pool,
                normalize=True,
                dimensions=None,
                on_unknown="error",
                budget=budget,
            ),
        )
        vectors |= dict(zip(pictures, encoded.outcomes, strict=True))
    new = [
        NewExample(label, _id_of(source, index), vectors[index])
        for index, (label, source) in enumerate(zip(labels, sources, strict=True))
    ]
    if on_error == "fail":
        for index, each in enumerate(new):
            if isinstance(each.vector, ClipworksError):
                services.telemetry.item_error(each.vector.code)
                raise located(each.vector, _param(given[index], index))
    return new


def require_usable(services: Services, name: str, new: Sequence[NewExample]) -> None:
    """Before anything is replaced: one example at least has a vector.

    Raises:
        Refusal: 422, which names each example and why it cannot be used; or the first that the server failed at.
    """
    failed = [each.vector for each in new if isinstance(each.vector, ClipworksError)]
    if len(failed) < len(new):
        return
    for index, error in enumerate(failed):
        services.telemetry.item_error(error.code)
        if status_of(error) >= 500:
            raise located(error, f"examples[{index}]")
    said = [f"examples[{index}]: {error}" for index, error in enumerate(failed[:_NAMED])]
    if len(failed) > _NAMED:
        said.append(f"and {len(failed) - _NAMED} more")
    named = "; ".join(said) or "there are none"
    message = f"no example can be used, and label set {name} is as it was: {named}"
    raise Refusal(422, "no_usable_example", message, param="examples")


def taught_response(
    services: Services,
    info: LabelSetInfo,
    new: Sequence[NewExample],
    outcomes: Sequence[str | ClipworksError],
) -> Response:
    """202 with the set and an entry for each example."""
    data = entries(
        [
            outcome if isinstance(outcome, ClipworksError) else {"label": each.label, "id": outcome}
            for each, outcome in zip(new, outcomes, strict=True)
        ],
        lambda stored: stored,
        on_error="item",
        place=lambda index: f"examples[{index}]",
        telemetry=services.telemetry,
    )
    answer = json_response({**info.model_dump(mode="json"), "data": data})
    answer.status_code = 202
    return answer


def _source(received: Received[Any], index: int, given: Any, services: Services) -> Input | ExampleItem:
    if index in received.files:
        return ImageItem(received.files[index])
    return given if isinstance(given, ExampleItem) else item_of(given, services.limits)


def _id_of(source: Input | ExampleItem, index: int) -> str:
    match source:
        case ExampleItem():
            return item_id(source.item.collection, source.item.id)
        case ImageItem():
            return picture_id(source.data)
        case _:
            return f"failed-{index}"  # it has no vector, and is not kept


async def _item_vectors(
    services: Services, sources: Sequence[Input | ExampleItem], model: RunningModel, budget: Budget
) -> dict[int, np.ndarray | ClipworksError]:
    """Vectors of the items among the sources, by index: those of the model's own image encoder."""
    wanted: dict[str, list[tuple[int, str]]] = {}
    for index, source in enumerate(sources):
        if isinstance(source, ExampleItem):
            wanted.setdefault(source.item.collection, []).append((index, source.item.id))
    found: dict[int, np.ndarray | ClipworksError] = {}
    for name, places in wanted.items():
        indices = [index for index, _ in places]
        try:
            vectors = await services.require_collections().image_vectors(
                name, [id for _, id in places], model, budget=budget
            )
        except ClipworksError as error:
            vectors = [error] * len(indices)
        found |= dict(zip(indices, vectors, strict=True))
    return found


def _param(given: Any, index: int) -> str:
    return f"examples[{index}]" + (".item" if isinstance(given, ExampleItem) else ".image")
