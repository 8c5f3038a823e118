"""Collections that keep two vectors of each item: rows that hold both, and queries that read one of them.

A row is [cross, intra] / sqrt(2), of unit vectors, and so a unit vector itself; the query for one view has zeros in the
place of the other and the length sqrt(2). Their inner product is the cosine in that view, so whatever a collection does
with rows and queries it does with either view.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from model_store.errors import InputError
from model_store.manifest import ADAPTERS, ENCODERS, Fingerprint
from service.collections.plans import GivenVector, Source
from service.collections.vectors import (
    InvalidVector,
    Vector,
    given_size,
    given_vector,
    unit,
    weighted_sum,
)
from service.engine.running import RunningModel
from service.faults import NoDirection
from service.retrieval import CollectionSpec
from service.retrieval.records import VIEW_NAMES, ViewName, ViewSpec, ViewsSpec
from service.tasks.pipeline import TextItem

_ROOT = math.sqrt(2)


class OneVector(InputError):
    """The model gives an item one vector, and two were asked for."""

    code = "unsupported_input"


def views_of(model: RunningModel) -> ViewsSpec:
    """What a collection keeps by a model with adapters: the vectors of its base, and its own.

    Raises:
        OneVector: it is not made so; says what is wanted.
    """
    artifact, base = model.artifact, model.artifact.base
    adapters = [role for role in ADAPTERS if artifact.owner(role) is not None]
    if base is None or not adapters or artifact.manifest.owns(ENCODERS) or any(map(base.owner, ADAPTERS)):
        raise OneVector(
            f"{model.reference} gives an item one vector: two views take a model that is another one with adapters "
            "behind its encoders, such as `clipworks train intra-modal` makes"
        )
    return ViewsSpec(
        cross=ViewSpec(
            model=base.reference,
            space=base.manifest.space,
            fingerprints=prints_of(base.manifest.fingerprint),
            dim=base.manifest.dim,
        ),
        intra=ViewSpec(
            model=model.reference, space=model.space, fingerprints=prints_of(model.fingerprint), dim=model.dim
        ),
    )


def prints_of(fingerprint: Fingerprint) -> dict[str, str]:
    """By modality, of the encoders that there are."""
    both = {"image": fingerprint.image, "text": fingerprint.text}
    return {modality: value for modality, value in both.items() if value is not None}


def space_of_views(views: ViewsSpec) -> str:
    """The space of rows that hold both: no model's."""
    return hashlib.sha256(f"views\0{views.cross.space}\0{views.intra.space}".encode()).hexdigest()


def view_in(spec: CollectionSpec, space: str) -> ViewName | None:
    """The view whose vectors are of a space; None: neither, or the collection keeps one vector of an item."""
    if spec.views is None:
        return None
    return next((name for name in VIEW_NAMES if spec.views.of(name).space == space), None)


def row_of(cross: Vector, intra: Vector) -> Vector:
    """One row of two unit vectors; zeros where either says nothing."""
    if not (cross.any() and intra.any()):
        return np.zeros(len(cross) + len(intra), dtype=np.float32)
    return unit(np.concatenate([cross, intra]).astype(np.float64))


def vector_in(row: Vector, views: ViewsSpec, name: ViewName) -> Vector:
    """The unit vector of one view of a row."""
    return unit(row[views.place(name)].astype(np.float64))


def given_row(value: Sequence[float] | str, views: ViewsSpec) -> Vector:
    """A row from the numbers of both vectors, one behind the other; each is normalised by itself.

    Raises:
        InvalidVector, NoDirection
    """
    whole = given_vector(value, views.dim)
    try:
        return row_of(vector_in(whole, views, "cross"), vector_in(whole, views, "intra"))
    except NoDirection:
        raise NoDirection("one of the two vectors is zero: it points nowhere") from None


def view_for(part: Source, views: ViewsSpec, asked: ViewName | None) -> ViewName:
    """What a part of a query reads: a text the vectors in which texts find pictures, others those of its own kind.

    Raises:
        InvalidVector: a given vector whose size does not tell.
    """
    if asked is not None:
        return asked
    if isinstance(part, TextItem):
        return "cross"
    if not isinstance(part, GivenVector) or (size := given_size(part.value)) == views.dim:
        return "intra"
    fitting: list[ViewName] = [name for name in VIEW_NAMES if views.of(name).dim == size]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InvalidVector(f'both views have vectors of {size} numbers: say "views": "cross" or "views": "intra"')
    raise InvalidVector(
        f"the vector has {size} numbers; here one has {views.cross.dim} (cross), {views.intra.dim} (intra) or "
        f"{views.dim} (both, one behind the other)"
    )


def given_part(value: Sequence[float] | str, views: ViewsSpec, name: ViewName) -> Vector:
    """A given vector of one view, or the row of both, as `part_of` has it. Raises InvalidVector, NoDirection."""
    size, wanted = given_size(value), views.of(name).dim
    if size == views.dim:
        return part_of(given_vector(value, views.dim), views, name)
    if size != wanted:
        raise InvalidVector(
            f"the vector has {size} numbers; here one has {wanted} ({name}) or {views.dim} (both, one behind the other)"
        )
    part = np.zeros(views.dim, dtype=np.float32)
    part[views.place(name)] = given_vector(value, wanted)
    return part


def part_of(row: Vector, views: ViewsSpec, name: ViewName) -> Vector:
    """The unit vector of one view in its place, zeros elsewhere; a row of zeros stays one."""
    part = np.zeros_like(row)
    if row.any():
        part[views.place(name)] = vector_in(row, views, name)
    return part


def combine_parts(parts: Sequence[Vector], weights: Sequence[float], views: ViewsSpec) -> Vector:
    """The query of a weighted sum of parts, of which some may read one view and some the other.

    Its score of a row is the mean of the cosines in both, weighted by the lengths that the sum has there.

    Raises:
        NoDirection: nothing is left of them.
    """
    total = weighted_sum(parts, weights)
    lengths = [float(np.linalg.norm(total[views.place(name)])) for name in VIEW_NAMES]
    return (total * (_ROOT / sum(lengths))).astype(np.float32)
