"""Class vectors of labels in templates, encoded once for equal requests and cached within a bound of bytes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipworks.schemas import Label, OnUnknown, Templates
from model_store.errors import RoleNotFound
from model_store.label_vectors import LabelVectors, compared_texts, label_means_of_sums
from model_store.manifest import Manifest, Presence
from model_store.modality.text import Tokenizer
from model_store.templates import named_templates
from service.engine.admission import Ticket
from service.engine.running import RunningModel
from service.faults import DeadlinePassed, NoDirection
from service.tasks.label_places import CHUNK_TEXTS, admit_labels
from service.tasks.pipeline import encode_texts
from service.tasks.prompts import Limits, Prompts
from service.tasks.scoring import ClassMatrix
from service.timing import Budget, Deadline

_PART_LABELS = 1024  # of the double-precision sums that are in memory at one time
_AT_ONCE = 10_000  # labels; more take long enough to count to leave the event loop
_BARE = "{}"
_ENTRY_BYTES = 512  # what an entry costs beside its vectors: digest, build, containers
_WEAK_BYTES = 64  # an index in a set
_SHOWN_NAMES, _SHOWN_CHARS = 20, 80
_Key = tuple[str, bytes]


class CacheEntry(Protocol):
    """What a cache may hold."""

    @property
    def size_bytes(self) -> int: ...


_Entry = TypeVar("_Entry", bound=CacheEntry)


class Classes(NamedTuple):
    """Unit class vectors, float32 [labels, D], and the indices of labels of which the model knows nothing.

    A label whose own words have a zero vector has one here too, whatever its templates say.
    """

    vectors: np.ndarray
    weak: frozenset[int]

    @property
    def size_bytes(self) -> int:
        return self.vectors.nbytes + _WEAK_BYTES * len(self.weak)


def resolve_templates(manifest: Manifest, templates: Templates | None) -> tuple[str, ...]:
    """The template strings a request means; None: the artifact's own."""
    if templates is None:
        return manifest.templates
    return named_templates(templates) if isinstance(templates, str) else tuple(templates)


class LabelCache(Generic[_Entry]):
    """The most recent of what was worked out for labels, at most `max_entries` of them and `max_bytes` together."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _Key) -> _Entry | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: _Key, entry: _Entry) -> None:
        """Remember it unless it is larger than the whole cache; the oldest make room."""
        if key in self._entries or _bytes_of(entry) > self._max_bytes:
            return
        self._entries[key] = entry
        self.bytes += _bytes_of(entry)
        while self.bytes > self._max_bytes or len(self._entries) > self._max_entries:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _bytes_of(oldest)


ClassCache = LabelCache[Classes]


@dataclass
class _Shared:
    """One computation and how many requests wait for it; nobody's deadline rules it, but it ends with the last."""

    task: asyncio.Task[Classes]
    waiting: int = 0


class ZeroShot:
    """Builds class matrices and keeps the most recent ones; equal requests at the same time share one computation.

    max_places: how many places in front of the text encoder the labels of one request take at most.
    """

    def __init__(self, *, limits: Limits, cache: ClassCache, max_places: int) -> None:
        self.cache = cache
        self.limits = limits
        self._max_places = max_places
        self._running: dict[_Key, _Shared] = {}

    async def class_matrix(
        self,
        model: RunningModel,
        labels: Sequence[Label],
        templates: Templates | None,
        *,
        on_unknown: OnUnknown,
        limits: Limits,
        budget: Budget,
    ) -> ClassMatrix:
        """Class vectors of labels; `limits` are those of where the labels come from.

        Raises:
            TooManyItems: labels x templates is over the limit of texts, or of their characters.
            ServiceOverloaded: there is no room for so many texts now; said before any of them is encoded.
            InvalidText, DeadlinePassed: while encoding.
            NoDirection: with on_unknown "error", there are labels of which the model knows nothing; it names them.
        """
        prompts = Prompts.of(labels, resolve_templates(model.manifest, templates))
        if len(prompts.labels) > _AT_ONCE:
            await asyncio.to_thread(_count, prompts, limits)
        else:
            _count(prompts, limits)
        vectors, weak = await self._classes(model, prompts, budget)
        classes = ClassMatrix(prompts.names, vectors, weak)
        if weak and on_unknown == "error":
            raise NoDirection(unknown_labels(classes.weak_names))
        return classes

    async def label_vectors(
        self,
        model: RunningModel,
        classes: ClassMatrix,
        presence: Presence,
        *,
        limits: Limits,
        budget: Budget,
    ) -> LabelVectors:
        """Class vectors with what `presence` compares them with: their denials, and texts that name no label.

        Raises:
            As `class_matrix`.
        """
        negative = neutral = None
        denials, neutral_texts = compared_texts(presence)
        if denials:
            denied = await self.class_matrix(
                model,
                classes.names,
                list(denials),
                on_unknown="warn",
                limits=limits,
                budget=budget,
            )
            negative = denied.vectors
        elif neutral_texts:
            neutral = await self.bare_vectors(model, neutral_texts, budget=budget)
        return LabelVectors(positive=classes.vectors, negative=negative, neutral=neutral)

    async def bare_vectors(self, model: RunningModel, texts: Sequence[str], *, budget: Budget) -> NDArray[np.float32]:
        """Unit vectors [n, D] of texts as they are, such as the neutral ones of a presence; kept like those of classes.

        Raises:
            ServiceOverloaded, DeadlinePassed
        """
        vectors, _ = await self._classes(model, Prompts.of(texts, (_BARE,)), budget)
        return vectors

    async def _classes(self, model: RunningModel, prompts: Prompts, budget: Budget) -> Classes:
        """Unit vectors, remembered or encoded; only a computation that succeeded is remembered.

        Raises:
            ServiceOverloaded: there is no room for it; whoever comes while it is under way needs none.
            DeadlinePassed: the computation goes on only if other requests wait for it.
        """
        key = (model.build, prompts.digest)
        if (known := self.cache.get(key)) is not None:
            return known
        shared = self._running.get(key)
        if shared is None:
            shared = self._running[key] = self._begin(model, prompts, budget)
            shared.task.add_done_callback(lambda task: self._keep(key, task))
        shared.waiting += 1
        entered = time.perf_counter()
        try:
            async with asyncio.timeout(budget.remaining_s()):
                classes = await asyncio.shield(shared.task)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed while the labels were being encoded") from error
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                self._running.pop(key, None)
                shared.task.cancel()
        budget.timings.add("labels", time.perf_counter() - entered)
        return classes

    def _begin(self, model: RunningModel, prompts: Prompts, deadline: Deadline) -> _Shared:
        """A computation with its places, which it holds to its end.

        Raises:
            ArtifactNotFound, ServiceOverloaded, ServiceNotReady
        """
        if "text_encoder" not in model.batchers:
            raise RoleNotFound(f"{model.reference} has no text_encoder")
        places = ExitStack()
        ticket = places.enter_context(
            admit_labels(model.batchers["text_encoder"], prompts.texts, deadline, max_places=self._max_places)
        )
        task = asyncio.create_task(encode_classes(model, prompts, ticket), name="class matrix")
        task.add_done_callback(lambda _: places.close())  # also of a task that is cancelled before it begins
        return _Shared(task)

    def _keep(self, key: _Key, task: asyncio.Task[Classes]) -> None:
        if (shared := self._running.get(key)) and shared.task is task:
            del self._running[key]
        if not task.cancelled() and task.exception() is None:  # asking for it also marks a failure as seen
            self.cache.put(key, task.result())


def _count(prompts: Prompts, limits: Limits) -> None:
    """Costs one look at each label, which `prompts` keeps. Raises TooManyItems, InvalidText."""
    limits.check(prompts)
    _ = prompts.digest


async def encode_classes(
    model: RunningModel,
    prompts: Prompts,
    ticket: Ticket | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> Classes:
    """Class vectors; in chunks, so that other texts get their turn.

    ticket: places of all texts; None: they run in the background. weights: of the templates; None: equal ones.
    """
    classes = np.empty((len(prompts.labels), model.dim), dtype=np.float32)
    for at, part in enumerate(prompts.parts(_PART_LABELS)):
        sums = np.zeros((len(part.labels), model.dim))
        silent = np.zeros(len(part.labels), dtype=bool)
        owners = (label for label, count in enumerate(part.counts) for _ in range(count))
        texts = iter(part)
        shares = None if weights is None else _shares(part, weights)
        while chunk := list(islice(texts, CHUNK_TEXTS)):
            vectors = await encode_texts(model, chunk, ticket)
            labels = list(islice(owners, len(chunk)))
            share = 1.0 if shares is None else np.array(list(islice(shares, len(chunk))))[:, None]
            np.add.at(sums, labels, vectors * share)
            np.logical_or.at(silent, labels, ~vectors.any(axis=1))
        # "a photo of a" has a vector also where the label in it is no word that the model knows.
        sums[[index for index in np.flatnonzero(silent) if isinstance(part.labels[index], str)]] = 0.0
        classes[at * _PART_LABELS :][: len(sums)] = label_means_of_sums(sums)
    weak = await asyncio.to_thread(weak_labels, model.tokenizer, prompts.labels, classes)
    return Classes(classes, weak)


def _shares(prompts: Prompts, weights: Sequence[float]) -> Iterator[float]:
    """The weight of each text, label by label; a label's own prompts all count the same."""
    for label in prompts.labels:
        yield from weights if isinstance(label, str) else [1.0] * len(label.prompts)


def weak_labels(tokenizer: Tokenizer | None, labels: Sequence[Label], vectors: np.ndarray) -> frozenset[int]:
    """Indices of labels of which the model knows nothing: their vector is zero, or no token of their own is a word."""
    zero = np.flatnonzero(~vectors.any(axis=1)).tolist()
    if tokenizer is None or not tokenizer.has_unknown:
        return frozenset(zero)

    def knows(text: str) -> bool:
        return tokenizer.knows(tokenizer.encode(text))

    return frozenset(zero) | {
        index
        for index, label in enumerate(labels)
        if not any(map(knows, [label] if isinstance(label, str) else label.prompts))
    }


def unknown_labels(names: Sequence[str]) -> str:
    """What to say of labels of which the model knows nothing."""
    shown = ", ".join(repr(name[:_SHOWN_CHARS]) for name in names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"labels: this model knows nothing of {shown}{more}; try other words, or another model"


def _bytes_of(entry: CacheEntry) -> int:
    return _ENTRY_BYTES + entry.size_bytes
