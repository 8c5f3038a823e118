"""The collections by which a request wants templates weighed -> vectors of their pictures."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from clipworks.schemas import LabelSetRequest
from model_store.errors import SpaceMismatch
from service.engine.running import RunningModel
from service.http.errors import Refusal, located
from service.retrieval.errors import CollectionNotFound
from service.routes.common import caller_of
from service.services import services_of
from service.tasks.weighed_sets import NotWeighable, kept_pictures
from service.teaching.examples import ExampleVectors
from service.threads import in_thread
from service.timing import Budget

_FIELD = "weigh_templates"


async def weighing_pictures(
    request: Request, body: LabelSetRequest, model: RunningModel, budget: Budget
) -> ExampleVectors | None:
    """The pictures that `body.weigh_templates` means; None: it means none.

    Raises:
        Refusal: 422, a model whose templates cannot be weighed, or nothing to weigh; 404 and 409, the collections.
        TooManyItems, ServiceNotReady, ServiceOverloaded, DeadlinePassed
    """
    wanted = body.weigh_templates
    if wanted is None:
        return None
    _refuse_model(model, wanted.how)
    collections, caller = services_of(request).require_collections(), caller_of(request)

    async def some(field: str, name: str) -> dict[str, Any]:
        try:
            return await collections.some_vectors(name, wanted.limit, model, caller=caller, budget=budget)
        except (CollectionNotFound, SpaceMismatch) as error:
            raise located(error, f"{_FIELD}.{field}") from None

    pictures = await some("collection", wanted.collection)
    reference = {} if wanted.reference is None else await some("reference", wanted.reference)
    with named_weighing():
        return await in_thread(lambda: kept_pictures(wanted, pictures, reference))


@contextmanager
def named_weighing() -> Generator[None]:
    """Raises Refusal with the place of what cannot be weighed."""
    try:
        yield
    except NotWeighable as error:
        raise located(error, _FIELD) from None


def _refuse_model(model: RunningModel, how: str) -> None:
    """Raises Refusal: 422, a model without images or texts, with a conditional head, or without a logit scale."""
    if model.image_spec is None or model.text_spec is None:
        raise Refusal(422, "unsupported_input", f"{model.reference} does not take images and texts", param=_FIELD)
    if model.has_conditional_head:
        message = f"{model.reference} reads labels by a head that takes all templates alike: none can be weighed"
        raise Refusal(422, "unsupported_input", message, param=_FIELD)
    if model.manifest.logit_scale is None and how == "softmax":
        message = f'{model.reference} has no logit scale, which softmax needs: weigh with "how": "select"'
        raise Refusal(422, "scale_unknown", message, param=f"{_FIELD}.how")
