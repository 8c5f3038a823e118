"""Many inputs -> several requests: reading, filling, splitting what is too large, putting answers in their places."""

from __future__ import annotations

import random
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from clipworks import errors
from clipworks._bodies import bytes_of, is_file, request_of
from clipworks._exchange import Answer, Call, Request, Steps, api_error, exchange, item_error
from clipworks.results import ModelIdentity
from clipworks.retry import RetryPolicy
from clipworks.schemas import ErrorDetail, OnError

R = TypeVar("R", bound=BaseModel)
# Over a limit of the whole request: fewer inputs may fit.
_SPLIT = frozenset({"body_too_large", "too_many_items"})
_POSITION = re.compile(r"^(?:inputs?|items|queries|examples|documents)\[([0-9]{1,9})\]")
_POSITIONS = re.compile(r"\b(inputs|items|queries|examples|documents)\[([0-9]{1,9})\]")


class Loadable(Protocol):
    """One input at its place in the caller's order; `load` reads it when its request is filled, and blocks.

    Raises UnreadableInput from `load`.
    """

    @property
    def index(self) -> int: ...
    def load(self) -> Any: ...


@dataclass(frozen=True)
class BatchPart(Generic[R]):
    """One parsed answer: who gave it (None: a collection, which is bound to one model), and for each position of the
    request an answer or an error."""

    body: R
    identity: ModelIdentity | None
    entries: Sequence[tuple[int, object | ErrorDetail]]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class _Filled:
    """A request and the inputs in it, in its own order; `rest` did not fit."""

    request: Request | None
    sent: Sequence[Loadable]
    rest: Sequence[Loadable]


@dataclass(kw_only=True)
class Batch(Generic[R]):
    """One call with many inputs. Its chunks may run at the same time, in threads or as tasks.

    read: body of a 2xx answer -> BatchPart; keep: (index, answer) -> stored, ValueError if it makes no sense;
    done: told how many inputs are finished, for a progress bar.
    pack: (path, fields, loaded inputs) -> request; weigh: bytes of a loaded input; is_late: it stands behind the
    others of its request.
    """

    path: str
    fields: Mapping[str, Any]
    on_error: OnError
    max_bytes: int
    policy: RetryPolicy
    chance: random.Random
    read: Callable[[bytes], BatchPart[R]]
    keep: Callable[[int, Any], None]
    bodies: list[R] = field(default_factory=list[R])
    warnings: list[str] = field(default_factory=list[str])
    failed: dict[int, errors.ClientError] = field(default_factory=dict[int, errors.ClientError])
    identity: ModelIdentity | None = None
    done: Callable[[int], None] = lambda count: None
    pack: Callable[[str, Mapping[str, Any], Sequence[Any]], Request] = request_of
    weigh: Callable[[Any], int] = bytes_of
    is_late: Callable[[Any], bool] = is_file
    lock: threading.Lock = field(default_factory=threading.Lock)

    def steps(self, chunk: Sequence[Loadable]) -> Steps[None]:
        """Send a chunk in as many requests as it takes.

        Raises:
            ClientError: with on_error "fail" the first that happens, else only what is not about one input.
        """
        rest = chunk
        while rest:
            call = Call(lambda waiting=rest: self._fill(waiting))
            yield call
            filled = call.results[0]
            rest = filled.rest
            if filled.request:
                yield from self._send(filled.request, filled.sent)

    def _fill(self, waiting: Sequence[Loadable]) -> _Filled:
        """Load inputs until `max_bytes` are reached; at least one goes in, however large it is."""
        loaded: list[tuple[Loadable, Any]] = []
        size = 0
        for position, source in enumerate(waiting):
            try:
                value = source.load()
            except errors.UnreadableInput as error:
                self._fail(source.index, error)
                continue
            size += self.weigh(value)
            if loaded and size > self.max_bytes:
                return self._filled(loaded, waiting[position:])
            loaded.append((source, value))
        return self._filled(loaded, ())

    def _filled(self, loaded: Sequence[tuple[Loadable, Any]], rest: Sequence[Loadable]) -> _Filled:
        ordered = sorted(loaded, key=lambda pair: self.is_late(pair[1]))
        request = self.pack(self.path, self.fields, [value for _, value in ordered]) if ordered else None
        return _Filled(request, [source for source, _ in ordered], rest)

    def _send(self, request: Request, sent: Sequence[Loadable]) -> Steps[None]:
        answer = yield from exchange(request, self.policy, self.chance)
        if 200 <= answer.status < 300:
            self._deliver(answer, sent)
            self.done(len(sent))
            return
        error = api_error(answer)
        if isinstance(error, errors.TooLarge) and error.code in _SPLIT and len(sent) > 1:
            middle = len(sent) // 2
            yield from self.steps(sent[:middle])
            yield from self.steps(sent[middle:])
            return
        if isinstance(error, errors.ApiError):
            error.index = sent[0].index if len(sent) == 1 else _index_of(error.param, sent)
            error.args = (_with_indices(str(error), sent),)
            if error.code == "body_too_large":
                self._fail(sent[0].index, error)
                return
        raise error

    def _fail(self, index: int, error: errors.ClientError) -> None:
        if self.on_error == "fail":
            raise error
        self.failed[index] = error
        self.done(1)

    def _deliver(self, answer: Answer, sent: Sequence[Loadable]) -> None:
        try:
            part = self.read(answer.body)
            if sorted(position for position, _ in part.entries) != list(range(len(sent))):
                raise ValueError(f"expected one entry for each of {len(sent)} inputs")
            for position, entry in part.entries:
                index = sent[position].index
                if isinstance(entry, ErrorDetail):
                    self.failed[index] = item_error(entry, index)
                else:
                    self.keep(index, entry)
        except ValidationError as error:
            where = ".".join(str(step) for step in error.errors()[0]["loc"]) or "body"
            raise errors.BadAnswer(f"{self.path}: unexpected answer at {where}: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise errors.BadAnswer(f"{self.path}: unexpected answer: {error}") from error
        self._identify(part)
        with self.lock:
            self.warnings += [_with_indices(each, sent) for each in part.warnings]

    def said(self, prefix: str = "") -> list[str]:
        """Each warning once, in a list, and as a Python warning behind `prefix`."""
        said = list(dict.fromkeys(self.warnings))
        for text in said:
            warnings.warn(f"{prefix}{text}", stacklevel=3)
        return said

    def _identify(self, part: BatchPart[R]) -> None:
        with self.lock:
            self.bodies.append(part.body)
            if self.identity is None:
                self.identity = part.identity
        if part.identity is not None and part.identity != self.identity:
            first = self.identity.model if self.identity else "no model"
            raise errors.ModelChanged(
                f"the server answered as {first} first and as {part.identity.model} later, with other "
                "fingerprints; pin a version (model='name@version') and try again"
            )


def _with_indices(said: str, sent: Sequence[Loadable]) -> str:
    """The places that a text names, such as inputs[3].text, with the caller's indices of those inputs."""

    def indexed(place: re.Match[str]) -> str:
        position = int(place.group(2))
        return f"{place.group(1)}[{sent[position].index}]" if position < len(sent) else place.group()

    return _POSITIONS.sub(indexed, said)


def _index_of(param: str | None, sent: Sequence[Loadable]) -> int | None:
    """The caller's index of the input that `param`, such as inputs[3].image, names."""
    found = _POSITION.match(param or "")
    position = int(found.group(1)) if found else len(sent)
    return sent[position].index if position < len(sent) else None
