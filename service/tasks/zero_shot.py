"""Class vectors of labels in templates, encoded once for equal requests and cached within a bound of bytes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from clipworks.schemas import Label, Templates
from model_store.errors import RoleNotFound
from model_store.label_vectors import LabelVectors, compared_texts, label_means_of_sums
from model_store.manifest import Manifest, Presence
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
_Key = tuple[str, bytes, bool]
_Encode = Callable[[RunningModel, Prompts, Ticket], Coroutine[Any, Any, np.ndarray]]


def resolve_templates(manifest: Manifest, templates: Templates | None) -> tuple[str, ...]:
    """The template strings a request means; None: the artifact's own."""
    if templates is None:
        return manifest.templates
    return named_templates(templates) if isinstance(templates, str) else tuple(templates)


class ClassCache:
    """The most recent class matrices, at most `max_entries` of them and `max_bytes` together."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._entries: OrderedDict[_Key, np.ndarray] = OrderedDict()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _Key) -> np.ndarray | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: _Key, vectors: np.ndarray) -> None:
        """Remember it unless it is larger than the whole cache; the oldest make room."""
        if key in self._entries or _ENTRY_BYTES + vectors.nbytes > self._max_bytes:
            return
        self._entries[key] = vectors
        self.bytes += _ENTRY_BYTES + vectors.nbytes
        while self.bytes > self._max_bytes or len(self._entries) > self._max_entries:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= _ENTRY_BYTES + oldest.nbytes


@dataclass
class _Shared:
    """One computation and how many requests wait for it; nobody's deadline rules it, but it ends with the last."""

    task: asyncio.Task[np.ndarray]
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
        limits: Limits,
        budget: Budget,
    ) -> ClassMatrix:
        """Class vectors of labels; `limits` are those of where the labels come from.

        Raises:
            TooManyItems: labels x templates is over the limit of texts, or of their characters.
            ServiceOverloaded: there is no room for so many texts now; said before any of them is encoded.
            InvalidText, NoDirection, DeadlinePassed: while encoding.
        """
        prompts = Prompts.of(labels, resolve_templates(model.manifest, templates))
        if len(prompts.labels) > _AT_ONCE:
            await asyncio.to_thread(_count, prompts, limits)
        else:
            _count(prompts, limits)
        vectors = await self._vectors(model, prompts, encode_classes, budget)
        return ClassMatrix(prompts.names, vectors)

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
                limits=limits,
                budget=budget,
            )
            negative = denied.vectors
        elif neutral_texts:
            texts = Prompts.of(neutral_texts, (_BARE,))
            neutral = await self._vectors(model, texts, encode_known, budget)
        return LabelVectors(positive=classes.vectors, negative=negative, neutral=neutral)

    async def _vectors(
        self,
        model: RunningModel,
        prompts: Prompts,
        encode: _Encode,
        budget: Budget,
    ) -> np.ndarray:
        """Unit vectors, remembered or encoded; only a computation that succeeded is remembered.

        Raises:
            ServiceOverloaded: there is no room for it; whoever comes while it is under way needs none.
            DeadlinePassed: the computation goes on only if other requests wait for it.
        """
        key = (model.build, prompts.digest, encode is encode_known)
        if (known := self.cache.get(key)) is not None:
            return known
        shared = self._running.get(key)
        if shared is None:
            shared = self._running[key] = self._begin(model, prompts, encode, budget)
            shared.task.add_done_callback(lambda task: self._keep(key, task))
        shared.waiting += 1
        entered = time.perf_counter()
        try:
            async with asyncio.timeout(budget.remaining_s()):
                vectors = await asyncio.shield(shared.task)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed while the labels were being encoded") from error
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                self._running.pop(key, None)
                shared.task.cancel()
        budget.timings.add("labels", time.perf_counter() - entered)
        return vectors

    def _begin(self, model: RunningModel, prompts: Prompts, encode: _Encode, deadline: Deadline) -> _Shared:
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
        task = asyncio.create_task(encode(model, prompts, ticket), name="class matrix")
        task.add_done_callback(lambda _: places.close())  # also of a task that is cancelled before it begins
        return _Shared(task)

    def _keep(self, key: _Key, task: asyncio.Task[np.ndarray]) -> None:
        if (shared := self._running.get(key)) and shared.task is task:
            del self._running[key]
        if not task.cancelled() and task.exception() is None:  # asking for it also marks a failure as seen
            self.cache.put(key, task.result())


def _count(prompts: Prompts, limits: Limits) -> None:
    """Costs one look at each label, which `prompts` keeps. Raises TooManyItems, InvalidText."""
    limits.check(prompts)
    _ = prompts.digest


async def encode_classes(model: RunningModel, prompts: Prompts, ticket: Ticket | None = None) -> np.ndarray:
    """Unit class vectors, float32 [labels, D]; in chunks, so that other texts get their turn.

    ticket: places of all texts; None: they run in the background.
    """
    classes = np.empty((len(prompts.labels), model.dim), dtype=np.float32)
    for at, part in enumerate(prompts.parts(_PART_LABELS)):
        sums = np.zeros((len(part.labels), model.dim))
        owners = (label for label, count in enumerate(part.counts) for _ in range(count))
        texts = iter(part)
        while chunk := list(islice(texts, CHUNK_TEXTS)):
            vectors = await encode_texts(model, chunk, ticket)
            np.add.at(sums, list(islice(owners, len(chunk))), vectors)
        classes[at * _PART_LABELS :][: len(sums)] = label_means_of_sums(sums)
    return classes


async def encode_known(model: RunningModel, prompts: Prompts, ticket: Ticket) -> np.ndarray:
    """As `encode_classes` for one text each, with zeros where a text holds nothing that the model knows."""
    rows: list[np.ndarray] = []
    for text in prompts:
        try:
            rows.append((await encode_texts(model, [text], ticket))[0])
        except NoDirection:
            rows.append(np.zeros(model.dim, dtype=np.float32))
    return np.stack(rows)
