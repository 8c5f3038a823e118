"""The vectors of rows and queries: given ones checked, texts and images encoded in one run, stored ones looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model_store.errors import ClipworksError
from service.collections.plans import GivenVector, NewRow, QueryPlan, Source, StoredId
from service.collections.vectors import Vector, combine, given_vector
from service.decoding.pool import DecodePool
from service.engine.running import RunningModel
from service.faults import StateConflict
from service.retrieval import CollectionSpec, StoreItem
from service.retrieval.errors import ItemNotFound
from service.retrieval.truth.items import ItemChecks, check_id
from service.tasks import pipeline
from service.tasks.pipeline import FailedItem, Input
from service.timing import Budget

# Reading more of given vectors takes long enough to leave the event loop.
_INLINE_NUMBERS = 2**14
Found = Vector | ClipworksError
Lookup = Callable[[Sequence[str]], Awaitable[list[Vector | None]]]


@dataclass(frozen=True)
class QueryVectors:
    """For each plan its unit vector, or why there is none; `failed_part` says which part of a plan is to blame."""

    vectors: list[Found]
    failed_part: Mapping[int, int]


@dataclass(frozen=True)
class ItemEncoder:
    """One model under one deadline; `model` None: the request brought nothing to encode."""

    model: RunningModel | None
    pool: DecodePool
    budget: Budget

    async def encode(self, inputs: Sequence[Input]) -> list[Found]:
        """Unit vectors [D] in the order of the inputs, all in one run."""
        if self.model is None:
            return [each.error if isinstance(each, FailedItem) else _nothing_to_encode_with() for each in inputs]
        result = await pipeline.embed(
            self.model,
            inputs,
            pool=self.pool,
            normalize=True,
            dimensions=None,
            budget=self.budget,
        )
        return list(result.outcomes)


async def row_vectors(
    rows: Sequence[NewRow], spec: CollectionSpec, encoder: ItemEncoder, *, all_or_nothing: bool, max_metadata_bytes: int
) -> list[Found]:
    """The vector of each row, or why it cannot be stored; with all_or_nothing up to the first failure only.

    Given vectors, and ids and metadata of rows to encode, are looked at before anything is encoded.
    """
    known = await asyncio.to_thread(_check_rows, rows, spec, max_metadata_bytes)
    if all_or_nothing:
        known = known[: _first_failure(known) + 1]
    inputs = [row.source for row, each in zip(rows, known, strict=False) if each is None]
    encoded = iter(await encoder.encode([each for each in inputs if not isinstance(each, GivenVector)]))
    found = [next(encoded) if each is None else each for each in known]
    return found[: _first_failure(found) + 1] if all_or_nothing else found


async def query_vectors(
    plans: Sequence[QueryPlan], spec: CollectionSpec, encoder: ItemEncoder, *, lookup: Lookup
) -> QueryVectors:
    """The vector of each query; `lookup` gives the stored vectors of ids."""
    parts = [part for plan in plans for part in plan.parts]
    known = await _known_parts(parts, spec)
    open_parts = [part for part, each in zip(parts, known, strict=True) if each is None]
    ids = list(dict.fromkeys(part.id for part in open_parts if isinstance(part, StoredId)))
    stored = dict(zip(ids, await lookup(ids), strict=True)) if ids else {}
    inputs = [part for part in open_parts if not isinstance(part, (StoredId, GivenVector))]
    encoded = iter(await encoder.encode(inputs) if inputs else [])

    def resolved(part: Source, each: Found | None) -> Found:
        if each is not None:
            return each
        if isinstance(part, StoredId):
            vector = stored[part.id]
            return ItemNotFound("the collection has no item with this id") if vector is None else vector
        return next(encoded)

    vectors = iter([resolved(part, each) for part, each in zip(parts, known, strict=True)])
    made: list[Found] = []
    failed_part: dict[int, int] = {}
    for index, plan in enumerate(plans):
        found = [next(vectors) for _ in plan.parts]
        if (place := _first_failure(found)) < len(found):
            failed_part[index] = place
            made.append(found[place])
        else:
            made.append(_joined(plan, [each for each in found if not isinstance(each, ClipworksError)]))
    return QueryVectors(made, failed_part)


def _check_rows(rows: Sequence[NewRow], spec: CollectionSpec, max_metadata_bytes: int) -> list[Found | None]:
    """None stands for what is to be encoded. Ids and metadata of other rows are the store's to check, unless a row
    has failed already: then the first failure must not depend on who finds it."""
    found = [_known(row.source, spec) for row in rows]
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


async def _known_parts(parts: Sequence[Source], spec: CollectionSpec) -> list[Found | None]:
    """Of each part what `_known` says; in a thread when many numbers are to be read for that."""
    given = sum(isinstance(part, GivenVector) for part in parts)
    if given * spec.dim <= _INLINE_NUMBERS:
        return [_known(part, spec) for part in parts]
    return await asyncio.to_thread(lambda: [_known(part, spec) for part in parts])


def _known(source: Source, spec: CollectionSpec) -> Found | None:
    """What needs neither model nor store: a given vector, or a refusal."""
    try:
        match source:
            case GivenVector():
                return given_vector(source.value, spec.dim)
            case StoredId():
                check_id(source.id)
                return None
            case FailedItem():
                return source.error
            case _:
                return None
    except ClipworksError as error:
        return error


def _joined(plan: QueryPlan, vectors: Sequence[Vector]) -> Found:
    if plan.is_single:
        return vectors[0]
    try:
        return combine(vectors, plan.weights)
    except ClipworksError as error:
        return error


def _first_failure(found: Sequence[Found | None]) -> int:
    """Its index, or the length."""
    return next((index for index, each in enumerate(found) if isinstance(each, ClipworksError)), len(found))


def _nothing_to_encode_with() -> ClipworksError:
    return StateConflict("there is a text or an image, and no model to encode it with")
