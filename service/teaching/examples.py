"""The examples of a taught label set: ids, labels and unit image vectors, and their bytes on disk. No pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from model_store.errors import ClipworksError, InputError

_MAGIC = b"clipworks examples 1\n"
_LENGTH_BYTES = 8
F32 = NDArray[np.float32]


class ExampleTaken(InputError):
    """The same picture is an example of another label."""

    code = "example_taken"


class ExampleRefused(Exception):
    """The example that a request is refused for as a whole: its index, and why."""

    def __init__(self, index: int, error: ClipworksError) -> None:
        super().__init__(str(error))
        self.index = index
        self.error = error


class UnreadableExamples(Exception):
    """Bytes that are no examples; the message says why."""


@dataclass(frozen=True)
class NewExample:
    """id: of the picture, whatever its label. vector: float32 [D] of unit length, or why there is none."""

    label: str
    id: str
    vector: F32 | ClipworksError


@dataclass(frozen=True, eq=False)
class ExampleVectors:
    """ids are unique; vectors float32 [n, D], rows of unit length, in the order in which they came."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    vectors: F32

    @classmethod
    def none(cls, dim: int) -> ExampleVectors:
        return cls((), (), np.zeros((0, dim), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """sha256 of `to_bytes`, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def with_new(self, new: Sequence[NewExample]) -> tuple[ExampleVectors, list[str | ClipworksError]]:
        """These and the new ones, and for each of those its id or why it is not among them.

        A picture that is there under its label already is not added again.
        """
        label_of = dict(zip(self.ids, self.labels, strict=True))
        outcomes: list[str | ClipworksError] = []
        added: list[NewExample] = []
        for each in new:
            known = label_of.get(each.id)
            if isinstance(each.vector, ClipworksError):
                outcomes.append(each.vector)
            elif known is not None and known != each.label:
                outcomes.append(ExampleTaken(f"this picture is an example of {known!r} already: remove that first"))
            else:
                outcomes.append(each.id)
                if known is None:
                    label_of[each.id] = each.label
                    added.append(each)
        vectors = [each.vector for each in added if not isinstance(each.vector, ClipworksError)]
        if not vectors:
            return self, outcomes
        ids, labels = (each.id for each in added), (each.label for each in added)
        grown = np.concatenate([self.vectors, np.stack(vectors)])
        return ExampleVectors((*self.ids, *ids), (*self.labels, *labels), grown), outcomes

    def without(self, *, ids: Collection[str] = (), labels: Collection[str] = ()) -> ExampleVectors:
        """All but these."""
        kept = [
            index
            for index, (id, label) in enumerate(zip(self.ids, self.labels, strict=True))
            if id not in ids and label not in labels
        ]
        return ExampleVectors(
            tuple(self.ids[index] for index in kept), tuple(self.labels[index] for index in kept), self.vectors[kept]
        )

    def to_bytes(self) -> bytes:
        """A line, the length of a JSON object, the object, and the vectors as little-endian float32."""
        names = orjson.dumps({"ids": self.ids, "labels": self.labels, "dim": self.vectors.shape[1]})
        rows = self.vectors.astype("<f4", copy=False).tobytes()
        return _MAGIC + len(names).to_bytes(_LENGTH_BYTES, "little") + names + rows

    @classmethod
    def of_bytes(cls, data: bytes) -> ExampleVectors:
        """Raises UnreadableExamples."""
        start = len(_MAGIC) + _LENGTH_BYTES
        if not data.startswith(_MAGIC) or len(data) < start:
            raise UnreadableExamples("they are not of format 1, the one that this version reads")
        length = int.from_bytes(data[len(_MAGIC) : start], "little")
        try:
            names = _Names.model_validate_json(data[start : start + length])
        except ValidationError:
            raise UnreadableExamples("their ids and labels cannot be read") from None
        rows = data[start + length :]
        if not len(names.ids) == len(names.labels) == len(set(names.ids)) or len(rows) != 4 * names.dim * len(
            names.ids
        ):
            raise UnreadableExamples("ids, labels and vectors are not equally many")
        vectors = np.frombuffer(rows, dtype="<f4").reshape(len(names.ids), names.dim).astype(np.float32)
        return cls(tuple(names.ids), tuple(names.labels), vectors)


class _Names(BaseModel):
    """What stands before the vectors."""

    ids: list[str]
    labels: list[str]
    dim: int = Field(ge=1, le=2**20)


def picture_id(data: bytes) -> str:
    """The id of a picture that comes as bytes: 32 hexadecimal digits of its sha256."""
    return hashlib.sha256(data).hexdigest()[:32]


def item_id(collection: str, id: str) -> str:
    """The id of an item of a collection."""
    return f"{collection}/{id}"
