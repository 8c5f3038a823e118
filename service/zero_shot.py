"""Labels x templates -> class matrix: prompts expanded, encoded once, cached."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from clipworks.schemas import Label, Templates
from model_store.manifest import Presence
from model_store.presence import LabelVectors
from model_store.templates import named_templates
from service.faults import DeadlineExceeded, NoDirection, TooManyItems
from service.pipeline import encode_texts
from service.running import RunningModel
from service.scoring import ClassMatrix, mean_of_prompts
from service.timing import Deadline, Timings

Prompts = tuple[tuple[str, ...], ...]
_CHUNK_TEXTS = 64


def resolve_templates(model: RunningModel, templates: Templates | None) -> tuple[str, ...]:
    """The template strings a request means; None: the artifact's own."""
    if templates is None:
        return model.manifest.templates
    return named_templates(templates) if isinstance(templates, str) else tuple(templates)


def expand(labels: Sequence[Label], templates: Sequence[str]) -> tuple[tuple[str, ...], Prompts]:
    """(names, prompts of each): templates filled in, or the label's own prompts as they are."""
    names = tuple(label if isinstance(label, str) else label.name for label in labels)
    prompts = tuple(
        tuple(template.replace("{}", label) for template in templates)
        if isinstance(label, str)
        else tuple(label.prompts)
        for label in labels
    )
    return names, prompts


class ZeroShot:
    """Builds class matrices and keeps the most recent ones; equal requests at the same time share one computation."""

    def __init__(self, *, cache_size: int = 256) -> None:
        self._cache: OrderedDict[tuple[str, Prompts, bool], asyncio.Task[np.ndarray]] = OrderedDict()
        self._cache_size = cache_size

    async def class_matrix(
        self,
        model: RunningModel,
        labels: Sequence[Label],
        templates: Templates | None,
        *,
        max_texts: int,
        deadline: Deadline,
        timings: Timings,
    ) -> ClassMatrix:
        """Class vectors of inline labels.

        Raises:
            TooManyItems: labels x templates is over `max_texts`.
            InvalidText, Overloaded, DeadlineExceeded: while encoding.
        """
        chosen = resolve_templates(model, templates)
        count = sum(len(chosen) if isinstance(label, str) else len(label.prompts) for label in labels)
        if count > max_texts:
            raise TooManyItems(
                f"labels x templates is {count} texts, the limit is {max_texts}: "
                "store them with PUT /label-sets/{name}"
            )
        names, prompts = expand(labels, chosen)
        return ClassMatrix(names, await self._vectors(model, prompts, False, deadline, timings))

    async def label_vectors(
        self,
        model: RunningModel,
        classes: ClassMatrix,
        presence: Presence,
        *,
        max_texts: int,
        deadline: Deadline,
        timings: Timings,
    ) -> LabelVectors:
        """Class vectors with what `presence` compares them with: their denials, and texts that name no label.

        Raises:
            As `class_matrix`.
        """
        negative = neutral = None
        if presence.negative_templates:
            denied = await self.class_matrix(
                model,
                classes.names,
                list(presence.negative_templates),
                max_texts=max_texts,
                deadline=deadline,
                timings=timings,
            )
            negative = denied.vectors
        elif presence.neutral_texts:
            texts = tuple((text,) for text in presence.neutral_texts)
            neutral = await self._vectors(model, texts, True, deadline, timings)
        return LabelVectors(positive=classes.vectors, negative=negative, neutral=neutral)

    async def _vectors(
        self, model: RunningModel, prompts: Prompts, lenient: bool, deadline: Deadline, timings: Timings
    ) -> np.ndarray:
        """Unit vectors [len(prompts), D], from the cache or encoded; `lenient`: zeros for texts without a direction."""
        key = (model.build, prompts, lenient)
        task = self._cache.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            # Callers share it, so no single caller's deadline or timings may rule it.
            encode = encode_classes if not lenient else encode_known
            task = asyncio.create_task(encode(model, prompts, deadline=Deadline(), timings=Timings()))
            task.add_done_callback(_retrieve)
            self._cache[key] = task
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        entered = time.perf_counter()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                vectors = await asyncio.shield(task)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed while the labels were being encoded") from error
        timings.add("labels", time.perf_counter() - entered)
        return vectors


def _retrieve(task: asyncio.Task[np.ndarray]) -> None:
    """Mark a failure as seen: its callers may have left before it came."""
    if not task.cancelled():
        task.exception()


async def encode_classes(
    model: RunningModel, prompts: Prompts, *, deadline: Deadline, timings: Timings, background: bool = False
) -> np.ndarray:
    """Unit class vectors, float32 [len(prompts), D]; in chunks, so that other texts get their turn."""
    flat = [text for group in prompts for text in group]
    parts = [
        await encode_texts(model, flat[i : i + _CHUNK_TEXTS], deadline=deadline, timings=timings, background=background)
        for i in range(0, len(flat), _CHUNK_TEXTS)
    ]
    return mean_of_prompts(np.concatenate(parts), [len(group) for group in prompts])


async def encode_known(model: RunningModel, prompts: Prompts, *, deadline: Deadline, timings: Timings) -> np.ndarray:
    """As `encode_classes` for one prompt each, with zeros where a text holds nothing that the model knows."""
    rows: list[np.ndarray] = []
    for (text,) in prompts:
        try:
            rows.append((await encode_texts(model, [text], deadline=deadline, timings=timings))[0])
        except NoDirection:
            rows.append(np.zeros(model.dim, dtype=np.float32))
    return np.stack(rows)
