"""The vectors of rows and queries: given ones checked, texts and images encoded in one run, stored ones looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clipworks.schemas import OnUnknown
from model_store.errors import ClipworksError
from service.collections.plans import GivenVector, NewRow, QueryPlan, Source, StoredId
from service.collections.vectors import Vector, combine, given_vector
from service.collections.views import combine_parts, given_part, given_row, part_of, row_of, view_for
from service.decoding.pool import DecodePool
from service.engine.running import RunningModel
from service.faults import NoDirection, StateConflict
from service.retrieval import CollectionSpec, StoreItem
from service.retrieval.errors import ItemNotFound
from service.retrieval.records import ViewName, ViewsSpec
from service.retrieval.truth.items import ItemChecks, check_id
from service.retrieval.truth.positions import pack_positions
from service.tasks import pipeline
from service.tasks.pipeline import FailedItem, ImageItem, Input
from service.tasks.reranking import positions_of
from service.timing import Budget

# Reading more of given vectors takes long enough to leave the event loop.
_INLINE_NUMBERS = 2**14
Found = Vector | ClipworksError
Lookup = Callable[[Sequence[str]], Awaitable[list[Vector | None]]]


class Encoded(NamedTuple):
    """A vector or why there is none; weak: the model knows nothing of the input, whose vector may be zero.

    thumbnail: of an image, where it was asked for.
    """

    found: Found
    weak: bool = False
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class RowVectors:
    """For each row its unit vector, or why it cannot be stored. weak: rows of which the model knows nothing.

    beside: of rows that are images, the thumbnail and the packed position vectors, where the collection keeps them.
    """

    vectors: list[Found]
    weak: list[int]
    beside: list[tuple[bytes | None, bytes | None]]


@dataclass(frozen=True)
class QueryVectors:
    """For each plan its unit vector, None where the model knows nothing of any part of it, or why there is none.

    failed_part: which part of a plan is to blame. unknown_parts: (plan, part) of which the model knows nothing.
    weak: plans that have no other parts.
    """

    vectors: list[Found | None]
    failed_part: Mapping[int, int]
    unknown_parts: list[tuple[int, int]]
    weak: frozenset[int]


@dataclass(frozen=True)
class ItemEncoder:
    """One model under one deadline; `model` None: the request brought nothing to encode.

    reranker: whose position vectors pictures have, where they are wanted. views: of a collection that keeps both
    vectors of an item, that before the adapter and that behind it: what is encoded are rows then.
    """

    model: RunningModel | None
    pool: DecodePool
    budget: Budget
    reranker: RunningModel | None = None
    views: ViewsSpec | None = None

    async def encode(
        self, inputs: Sequence[Input], on_unknown: OnUnknown, *, with_thumbnails: bool = False
    ) -> list[Encoded]:
        """Unit vectors [D] in the order of the inputs, all in one run; D of the collection."""
        if self.model is None:
            missing = [each.error if isinstance(each, FailedItem) else _nothing_to_encode_with() for each in inputs]
            return [Encoded(error) for error in missing]
        result = await pipeline.embed(
            self.model,
            inputs,
            pool=self.pool,
            normalize=True,
            dimensions=None,
            on_unknown=on_unknown,
            budget=self.budget,
            with_thumbnails=with_thumbnails,
            with_unadapted=self.views is not None,
        )
        weak = frozenset(result.weak)
        return [
            Encoded(self._row(outcome, result.unadapted.get(index)), index in weak, result.thumbnails.get(index))
            for index, outcome in enumerate(result.outcomes)
        ]

    def _row(self, vector: Found, unadapted: Vector | None) -> Found:
        return vector if unadapted is None or isinstance(vector, ClipworksError) else row_of(unadapted, vector)

    async def positions(self, pictures: Sequence[ImageItem]) -> list[bytes | ClipworksError]:
        """Packed position vectors in the order of the pictures."""
        if self.reranker is None:
            return [_nothing_to_encode_with() for _ in pictures]
        return await positions_of(self.reranker, pictures, keep=pack_positions, pool=self.pool, budget=self.budget)


async def row_vectors(
    rows: Sequence[NewRow], spec: CollectionSpec, encoder: ItemEncoder, *, all_or_nothing: bool, max_metadata_bytes: int
) -> RowVectors:
    """The vector of each row, or why it cannot be stored; with all_or_nothing up to the first failure only.

    A row whose vector is zero cannot: no search would ever find it. Given vectors, and ids and metadata of rows to
    encode, are looked at before anything is encoded.
    """
    known = await asyncio.to_thread(_check_rows, rows, spec, max_metadata_bytes)
    if all_or_nothing:
        known = known[: _first_failure(known) + 1]
    inputs = [row.source for row, each in zip(rows, known, strict=False) if each is None]
    to_encode = [each for each in inputs if not isinstance(each, GivenVector)]
    encoded = iter(await encoder.encode(to_encode, "warn", with_thumbnails=spec.thumbnails))
    rows_found = [_storable(next(encoded)) if each is None else Encoded(each) for each in known]
    found = [each.found for each in rows_found]
    if all_or_nothing:
        found = found[: _first_failure(found) + 1]
    packed = await _positions(rows, found, encoder) if spec.rerank is not None else {}
    for index, each in packed.items():
        if isinstance(each, ClipworksError):
            found[index] = each
    if all_or_nothing:
        found = found[: _first_failure(found) + 1]
    weak = [index for index, _ in enumerate(found) if rows_found[index].weak]
    grids = {index: each for index, each in packed.items() if isinstance(each, bytes)}
    beside = [(rows_found[index].thumbnail, grids.get(index)) for index in range(len(found))]
    return RowVectors(found, weak, beside)


async def _positions(
    rows: Sequence[NewRow], found: Sequence[Found], encoder: ItemEncoder
) -> dict[int, bytes | ClipworksError]:
    """Of rows that are pictures and have a vector, by index."""
    pictures = [
        (index, row.source)
        for index, (row, each) in enumerate(zip(rows, found, strict=False))
        if isinstance(row.source, ImageItem) and not isinstance(each, ClipworksError)
    ]
    packed = await encoder.positions([picture for _, picture in pictures])
    return {index: each for (index, _), each in zip(pictures, packed, strict=True)}


async def query_vectors(
    plans: Sequence[QueryPlan],
    spec: CollectionSpec,
    encoder: ItemEncoder,
    *,
    lookup: Lookup,
    on_unknown: OnUnknown,
    view: ViewName | None = None,
) -> QueryVectors:
    """The vector of each query; `lookup` gives the stored vectors of ids.

    view: that all parts read, of a collection that keeps two; None: each the one that suits it.
    A part whose vector is zero says nothing, and the others of its plan are taken without it.
    """
    parts = [part for plan in plans for part in plan.parts]
    known = await _known_parts(parts, spec, view)
    open_parts = [part for part, each in zip(parts, known, strict=True) if each is None]
    ids = list(dict.fromkeys(part.id for part in open_parts if isinstance(part, StoredId)))
    stored = dict(zip(ids, await lookup(ids), strict=True)) if ids else {}
    inputs = [part for part in open_parts if not isinstance(part, (StoredId, GivenVector))]
    encoded = iter(await encoder.encode(inputs, on_unknown) if inputs else [])

    def resolved(part: Source, each: Found | None) -> Encoded:
        if each is not None:
            return Encoded(each)
        if isinstance(part, StoredId):
            vector = stored[part.id]
            found = ItemNotFound("the collection has no item with this id") if vector is None else vector
            return _read(Encoded(found), part, spec.views, view)
        return _read(next(encoded), part, spec.views, view)

    vectors = iter([resolved(part, each) for part, each in zip(parts, known, strict=True)])
    made: list[Found | None] = []
    failed_part: dict[int, int] = {}
    unknown_parts: list[tuple[int, int]] = []
    weak: set[int] = set()
    for index, plan in enumerate(plans):
        found = [next(vectors) for _ in plan.parts]
        if (place := _first_failure([each.found for each in found])) < len(found):
            failed_part[index] = place
            made.append(found[place].found)
            continue
        unknown_parts += [(index, place) for place, each in enumerate(found) if each.weak]
        if all(each.weak for each in found):
            weak.add(index)
        vectors_found = [each.found for each in found if not isinstance(each.found, ClipworksError)]
        made.append(_joined(plan, vectors_found, spec.views))
    return QueryVectors(made, failed_part, unknown_parts, frozenset(weak))


def _check_rows(rows: Sequence[NewRow], spec: CollectionSpec, max_metadata_bytes: int) -> list[Found | None]:
    """None stands for what is to be encoded. Ids and metadata of other rows are the store's to check, unless a row
    has failed already: then the first failure must not depend on who finds it."""
    found = [_known(row.source, spec.dim, spec.views) for row in rows]
    if not any(each is None or isinstance(each, ClipworksError) for each in found):
        return found
    some_unit = np.zeros(spec.dim, dtype=np.float32)
    some_unit[0] = 1.0
    checks = ItemChecks(spec, max_metadata_bytes=max_metadata_bytes)
    for index, (row, each) in enumerate(zip(rows, found, strict=True)):
        if not isinstance(each, ClipworksError):
            try:
                checks.prepare(StoreItem(row.id, some_unit, row.metadata))
            except ClipworksError as error:
                found[index] = error
    return found


async def _known_parts(
    parts: Sequence[Source], spec: CollectionSpec, view: ViewName | None = None
) -> list[Found | None]:
    """Of each part what needs neither model nor store; in a thread when many numbers are to be read for that."""

    def known() -> list[Found | None]:
        return [_known_part(part, spec, view) for part in parts]

    given = sum(isinstance(part, GivenVector) for part in parts)
    return known() if given * spec.dim <= _INLINE_NUMBERS else await asyncio.to_thread(known)


def _known_part(part: Source, spec: CollectionSpec, view: ViewName | None) -> Found | None:
    if spec.views is None or not isinstance(part, GivenVector):
        return _known(part, spec.dim, spec.views)
    try:
        return given_part(part.value, spec.views, view_for(part, spec.views, view))
    except ClipworksError as error:
        return error


def _read(row: Encoded, part: Source, views: ViewsSpec | None, view: ViewName | None) -> Encoded:
    """What a part of a query reads of a row; without views all of it."""
    if views is None or isinstance(row.found, ClipworksError):
        return row
    return row._replace(found=part_of(row.found, views, view_for(part, views, view)))


def _known(source: Source, dim: int, views: ViewsSpec | None) -> Found | None:
    """Of a row: a given vector, or a refusal."""
    try:
        match source:
            case GivenVector():
                return given_vector(source.value, dim) if views is None else given_row(source.value, views)
            case StoredId():
                check_id(source.id)
                return None
            case FailedItem():
                return source.error
            case _:
                return None
    except ClipworksError as error:
        return error


def _storable(row: Encoded) -> Encoded:
    if isinstance(row.found, ClipworksError) or row.found.any():
        return row
    message = (
        "this model knows nothing of this item: its vector is zero, and no search would find it; "
        "try other words, or another model"
    )
    return Encoded(NoDirection(message))


def _joined(plan: QueryPlan, vectors: Sequence[Vector], views: ViewsSpec | None) -> Found | None:
    """None: all of them are zero."""
    kept = [(vector, weight) for vector, weight in zip(vectors, plan.weights, strict=True) if vector.any()]
    if not kept:
        return None
    weights = [1.0 if plan.is_single else weight for _, weight in kept]
    try:
        if views is not None:
            return combine_parts([vector for vector, _ in kept], weights, views)
        return vectors[0] if plan.is_single else combine([vector for vector, _ in kept], weights)
    except ClipworksError as error:
        return error


def _first_failure(found: Sequence[Found | None]) -> int:
    """Its index, or the length."""
    return next((index for index, each in enumerate(found) if isinstance(each, ClipworksError)), len(found))


def _nothing_to_encode_with() -> ClipworksError:
    return StateConflict("there is a text or an image, and no model to encode it with")
