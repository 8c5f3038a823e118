"""Shared by the routes of items and of search: where vectors come from, and which model may make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipworks.schemas import CollectionVectorItem, IdQuery, ImageInput, ImageUrlInput, TextInput, VectorQuery
from model_store.errors import SpaceMismatch
from service.collections.plans import Source
from service.engine.running import RunningModel
from service.faults import TooManyItems
from service.http.errors import Refusal, located
from service.routes.common import model_for
from service.services import Services
from service.tasks.pipeline import ImageItem, TextItem
from service.timing import Budget

if TYPE_CHECKING:
    from service.retrieval import CollectionSpec

_VECTOR_COST = 10


def source_param(given: Any, where: str) -> str:
    """The field of an item, a query or a part that stands at `where`, such as items[3].vector."""
    match given:
        case TextInput():
            return f"{where}.text"
        case ImageInput():
            return f"{where}.image"
        case ImageUrlInput():
            return f"{where}.image_url"
        case CollectionVectorItem() | VectorQuery():
            return f"{where}.vector"
        case IdQuery():
            return f"{where}.id"
        case _:
            return where


def to_encode(sources: Sequence[Source]) -> list[TextItem | ImageItem]:
    """What needs a model."""
    return [each for each in sources if isinstance(each, (TextItem, ImageItem))]


def check_source(model: RunningModel, source: Source, param: str) -> None:
    """Raises Refusal (422) for a text when the model takes images only, and the other way round."""
    if isinstance(source, ImageItem) and model.image_spec is None:
        raise Refusal(422, "unsupported_input", f"{model.reference} takes no images", param=param)
    if isinstance(source, TextItem) and model.text_spec is None:
        raise Refusal(422, "unsupported_input", f"{model.reference} takes no texts", param=param)


def check_space(spec: CollectionSpec, space: str | None) -> None:
    """Raises Refusal (409) when the request says that its vectors are of another space."""
    if space is not None:
        try:
            spec.require_space(space, of="a vector of the request")
        except SpaceMismatch as error:
            raise located(error, "space") from None


def check_page(
    services: Services, count: int, *, param: str, with_vectors: bool, offset: int = 0, queries: int = 1
) -> None:
    """Raises Refusal (422) when a page reaches too deep, TooManyItems (413) when the answer would be too large."""
    deepest = services.settings.max_offset
    if offset + count > deepest:
        what = f"offset + {param}" if offset else param
        message = f"{what} is {offset + count}, the most is {deepest} (CLIPWORKS_MAX_OFFSET)"
        raise Refusal(422, "invalid_field", message, param=param)
    most = services.settings.max_hits // (_VECTOR_COST if with_vectors else 1)
    if queries * count > most:
        what = "with vectors " if with_vectors else ""
        raise TooManyItems(f"the answer may have {queries * count} hits, {what}the most is {most} (CLIPWORKS_MAX_HITS)")


async def row_model(
    services: Services,
    spec: CollectionSpec,
    name: str | None,
    inputs: Sequence[TextItem | ImageItem],
    budget: Budget,
) -> RunningModel:
    """The model that makes these rows: the one that is named, else the collection's own.

    Raises:
        Refusal: 404 or 409, no such model, or another one than the collection takes rows of.
    """
    modalities = sorted({"image" if isinstance(each, ImageItem) else "text" for each in inputs})
    try:
        return await services.require_collections().models.for_rows(
            spec, _named(services, spec, name), modalities, budget
        )
    except SpaceMismatch as error:
        raise located(error, "model") from None


async def query_model(services: Services, spec: CollectionSpec, name: str | None, budget: Budget) -> RunningModel:
    """The model that encodes queries: the one that is named, if it is of the space, else the collection's own."""
    try:
        return await services.require_collections().models.for_queries(spec, _named(services, spec, name), budget)
    except SpaceMismatch as error:
        raise located(error, "model") from None


def _named(services: Services, spec: CollectionSpec, name: str | None) -> RunningModel | None:
    return None if name is None or name == spec.model else model_for(services, name)
