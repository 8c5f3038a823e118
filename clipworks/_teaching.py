"""Label sets taught by example, as plans and steps that both clients carry out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from clipworks._batches import Batch, BatchPart
from clipworks._bodies import post
from clipworks._calls import BatchLimits, CallPlan
from clipworks._collections_inputs import Entry, content_of, weight_of
from clipworks._exchange import Request, Steps
from clipworks._inputs import chunks, several_images
from clipworks.errors import ApiError, ClientError
from clipworks.retry import RetryPolicy
from clipworks.schemas import ItemError, OnError, TaughtLabelSet

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource

    Picture = ImageSource | Mapping[str, Any]
    Examples = Mapping[str, Iterable[Picture]]

_NO_USABLE = "no_usable_example"


@dataclass(frozen=True)
class ExampleSource:
    """place: which picture of its label it is, from 0."""

    index: int
    label: str
    place: int
    picture: Any

    def load(self) -> Entry:
        """Raises UnreadableInput: a file that cannot be read."""
        if isinstance(self.picture, Mapping):
            reference: Any = self.picture["item"]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            return Entry({"label": self.label, "item": reference}, None, 0)
        content, file = content_of({"image": self.picture}, self.index)
        return Entry({"label": self.label} | content, file, len(file or b""))


@dataclass(frozen=True)
class TaughtParts:
    """ids: by label and place; errors: of the pictures that are not among them."""

    ids: Mapping[tuple[str, int], str]
    errors: Mapping[tuple[str, int], ClientError]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Makes plans; holds what is the same for all calls of one client."""

    limits: BatchLimits
    policy: RetryPolicy
    chance: random.Random = field(default_factory=random.Random)

    def begin(
        self, name: str, fields: Mapping[str, Any], examples: list[ExampleSource], *, on_error: OnError
    ) -> Steps[None]:
        """Put a set with the first of its examples that can be used; `add` sends them all, that one again.

        The first is tried by itself, then all in the requests that `add` would make, until the server takes one.

        Raises:
            ApiError: no_usable_example; with on_error "fail" the first example is bad. What had this name is as it was.
            UnreadableInput: as that, and no file can be read.
        """
        given = {**fields, "on_error": on_error, "needs_example": True}
        batch = self._batch(_place(name), given, on_error, lambda index, each: None, method="PUT")
        refused: list[ApiError] = []
        for chunk in [examples[:1], *chunks(examples, self.limits.items)]:
            try:
                yield from batch.steps(chunk)
            except ApiError as error:
                if error.code != _NO_USABLE or on_error == "fail":
                    raise
                refused.append(error)
            if batch.bodies:
                return
        raise refused[:2][-1] if refused else batch.failed[min(batch.failed)]

    def add(self, name: str, examples: list[ExampleSource], *, on_error: OnError) -> CallPlan[TaughtParts]:
        kept: dict[int, str] = {}
        batch = self._batch(
            f"{_place(name)}/examples",
            {"on_error": on_error},
            on_error,
            lambda index, each: kept.__setitem__(index, each.id),
            method="POST",
        )

        def finish() -> TaughtParts:
            where = {each.index: (each.label, each.place) for each in examples}
            return TaughtParts(
                {where[index]: id for index, id in sorted(kept.items())},
                {where[index]: error for index, error in sorted(batch.failed.items())},
            )

        return CallPlan(
            label="teach",
            total=len(examples),
            batch=batch,
            chunks=chunks(examples, self.limits.items),
            finish=finish,
        )

    def _batch(
        self,
        path: str,
        fields: Mapping[str, Any],
        on_error: OnError,
        keep: Callable[[int, Any], None],
        *,
        method: Literal["PUT", "POST"],
    ) -> Batch[TaughtLabelSet]:
        return Batch[TaughtLabelSet](
            path=path,
            fields=fields,
            on_error=on_error,
            max_bytes=self.limits.image_bytes,
            policy=self.policy,
            chance=self.chance,
            read=_read_taught,
            keep=keep,
            pack=_PACKED[method],
            weigh=weight_of,
            is_late=lambda _: False,
        )


def example_sources(examples: Examples) -> list[ExampleSource]:
    """Examples in the caller's order.

    Raises:
        TypeError: one picture where several are expected.
        ValueError: no examples, or a mapping that is not {"item": {"collection": ..., "id": ...}}.
    """
    found: list[ExampleSource] = []
    for label, pictures in examples.items():
        for place, picture in enumerate(several_images(pictures)):  # pyright: ignore[reportArgumentType]
            if isinstance(picture, Mapping) and set(picture) != {"item"}:  # pyright: ignore[reportUnknownArgumentType]
                raise ValueError(f'examples of {label!r}: a mapping is {{"item": {{"collection": ..., "id": ...}}}}')
            found.append(ExampleSource(len(found), label, place, picture))
    if not found:
        raise ValueError("examples: there are none")
    return found


def removed(**given: Iterable[str]) -> dict[str, list[str]]:
    """Lists by their name. Raises TypeError: one string where several are expected."""
    for name, each in given.items():
        if isinstance(each, str):
            raise TypeError(f"{name}: expected several strings, got one; write {name}=[{each!r}]")
    return {name: list(each) for name, each in given.items()}


def _place(name: str) -> str:
    return f"/label-sets/{quote(name, safe='')}"


def _posted(path: str, fields: Mapping[str, Any], entries: Sequence[Entry], *, method: str = "POST") -> Request:
    files = [entry.file for entry in entries if entry.file is not None]
    return post(path, {**fields, "examples": [entry.body for entry in entries]}, files, method=method)


_PACKED = MappingProxyType({"POST": _posted, "PUT": partial(_posted, method="PUT")})


def _read_taught(body: bytes) -> BatchPart[TaughtLabelSet]:
    answer = TaughtLabelSet.model_validate_json(body, extra="ignore")
    entries = [(each.index, each.error if isinstance(each, ItemError) else each) for each in answer.data]
    return BatchPart(answer, None, entries)
