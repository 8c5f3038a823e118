"""/label-sets: labels and templates stored by name and encoded once, and taught by example."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import (
    LABEL_SET_PATTERN,
    AddExamplesRequest,
    ExampleList,
    LabelSetDetail,
    LabelSetInfo,
    LabelSetList,
    LabelSetRequest,
    RemoveExamplesRequest,
    TaughtLabelSet,
)
from service.http.errors import Refusal, located
from service.http.given_labels import distinct_labels
from service.http.ingress import Body, Received, query_options, read_json, read_request
from service.http.limits import IngressLimits
from service.http.openapi import answers, bodies, json_body
from service.http.options import Options
from service.http.respond import model_response
from service.routes.common import budget_for, check_text_tower, model_for
from service.routes.given_examples import new_examples, require_usable, taught_response
from service.routes.given_weighing import named_weighing, weighing_pictures
from service.services import services_of
from service.teaching.examples import ExampleRefused, NewExample
from service.timing import Budget

OPTIONS: Options = {"label": "texts", "on_error": "text"}
PUT_OPTIONS: Options = {
    **OPTIONS,
    "model": "text",
    "labels": "list",
    "templates": "templates",
    "on_unknown": "text",
    "needs_example": "flag",
}
REMOVE_OPTIONS: Options = {"ids": "texts", "labels": "texts"}
router = APIRouter(prefix="/label-sets")
Name = Annotated[str, Path(pattern=LABEL_SET_PATTERN, description="name of the label set")]


@router.get("", summary="List label sets", responses=answers(LabelSetList))
async def list_label_sets(request: Request) -> Response:
    return model_response(LabelSetList(data=services_of(request).label_sets.list()))


@router.put(
    "/{name}",
    status_code=202,
    summary="Store a label set",
    description="Its texts are encoded in the background; other content under the same name replaces the old set. "
    "With `examples` it is taught: a head is fitted to their vectors and mixed with the texts. With `weigh_templates` "
    "pictures without labels decide how much each template counts. The name of a model's "
    "class head is refused.",
    responses=answers(TaughtLabelSet, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=202),
    openapi_extra=bodies(LabelSetRequest, PUT_OPTIONS, files="each is put into the next example that has no content"),
)
async def put_label_set(request: Request, name: Name) -> Response:
    services = services_of(request)
    budget = budget_for(request)
    received = await _read(request, LabelSetRequest, services.label_set_limits, PUT_OPTIONS, budget)
    body = received.body
    model = model_for(services, body.model)
    if body.examples is None:
        check_text_tower(model)
    if body.labels is not None:
        body = body.model_copy(update={"labels": distinct_labels(body.labels)})
    new: list[NewExample] = []
    if body.examples:
        new = await new_examples(request, received, body.examples, model, on_error=body.on_error, budget=budget)
    pictures = await weighing_pictures(request, body, model, budget)
    if body.needs_example:
        require_usable(services, name, new)
    with _named_example(), named_weighing():
        info, outcomes = await services.label_sets.put(
            name, body, new, pictures=pictures, all_or_nothing=body.on_error == "fail"
        )
    if body.examples is None:
        return model_response(info, status=202)
    if new and not any(isinstance(each, str) for each in outcomes):
        unused = f"none of the {len(new)} examples of this request can be used"
        info = info.model_copy(update={"warnings": [unused, *info.warnings]})
    return taught_response(services, info, new, outcomes)


@router.get(
    "/{name}/examples", summary="List the examples of a label set", responses=answers(ExampleList, 404, 409, 422)
)
async def list_examples(request: Request, name: Name) -> Response:
    return model_response(ExampleList(data=services_of(request).label_sets.examples(name)))


@router.post(
    "/{name}/examples",
    status_code=202,
    summary="Teach a label set with more examples",
    description="202 says that they are on disk. The head is fitted in the background; until then /classify goes on "
    "with the one before. A label that the set does not have is added. In multipart/form-data each example without "
    "content takes the next file, and `label` fields stand for examples.",
    responses=answers(TaughtLabelSet, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=202),
    openapi_extra=bodies(AddExamplesRequest, OPTIONS, files="each is put into the next example that has no content"),
)
async def add_examples(request: Request, name: Name) -> Response:
    services = services_of(request)
    budget = budget_for(request)
    received = await _read(request, AddExamplesRequest, services.limits, OPTIONS, budget)
    body = received.body
    model = model_for(services, services.label_sets.model_of(name))
    new = await new_examples(request, received, body.examples, model, on_error=body.on_error, budget=budget)
    with _named_example():
        info, outcomes = await services.label_sets.add_examples(
            name, new, model, all_or_nothing=body.on_error == "fail"
        )
    return taught_response(services, info, new, outcomes)


@router.delete(
    "/{name}/examples",
    status_code=202,
    summary="Take examples away from a label set",
    description="By their ids, or all of some labels, in the query or as JSON. What is not there is no error.",
    responses=answers(LabelSetInfo, 400, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504, 507, status=202),
    openapi_extra=json_body(RemoveExamplesRequest),
)
async def remove_examples(request: Request, name: Name) -> Response:
    services = services_of(request)
    if request.scope["query_string"]:
        if int(request.headers.get("content-length", "0") or 0):
            raise Refusal(422, "invalid_field", "give ids or labels in the query or in the body, not in both")
        body = query_options(request, REMOVE_OPTIONS, RemoveExamplesRequest, services.limits)
    else:
        body = await read_json(request, RemoveExamplesRequest, services.limits, budget=budget_for(request))
    labels = {label.strip() for label in body.labels or ()}
    return model_response(
        await services.label_sets.remove_examples(name, ids=set(body.ids or ()), labels=labels), status=202
    )


async def _read(
    request: Request, model: type[Body], limits: IngressLimits, options: Options, budget: Budget
) -> Received[Body]:
    """A body with examples: each file is put into the next one without content. Raises as `read_request`."""
    return await read_request(
        request, model, limits, budget=budget, options=options, inputs="examples", place="fill", key="label"
    )


@contextmanager
def _named_example() -> Generator[None]:
    """Raises Refusal with the place of an example that the whole request is refused for."""
    try:
        yield
    except ExampleRefused as error:
        raise located(error.error, f"examples[{error.index}]") from None


@router.get("/{name}", summary="Show a label set", responses=answers(LabelSetDetail, 404, 409, 422))
async def get_label_set(request: Request, name: Name) -> Response:
    return model_response(services_of(request).label_sets.get(name))


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete a label set",
    responses=answers(None, 404, 409, 422, 500, 507, status=204),
)
async def delete_label_set(request: Request, name: Name) -> Response:
    await services_of(request).label_sets.delete(name)
    return Response(status_code=204)
