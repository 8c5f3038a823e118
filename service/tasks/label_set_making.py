"""A label set becomes ready: its texts are encoded behind interactive ones, then its examples are fitted.

Where its templates are to be weighed, all texts are encoded once before, so that few labels' are in memory at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import numpy as np

from model_store.errors import ClipworksError
from model_store.template_weights import template_weights
from service.engine.registry import Registry
from service.engine.running import RunningModel
from service.faults import NoDirection, ServiceNotReady, StateConflict
from service.tasks.kept_label_set import KeptLabelSet
from service.tasks.label_places import CHUNK_TEXTS
from service.tasks.pipeline import encode_texts
from service.tasks.prompts import Prompts
from service.tasks.weighed_sets import add_labels, scores_by
from service.tasks.zero_shot import encode_classes, unknown_labels
from service.teaching.fitting import fit_examples
from service.threads import in_thread

log = logging.getLogger("clipworks.label_sets")
_T = TypeVar("_T")
_RETRY_S = 1.0
_CHUNK_LABELS = 16
_SETTLE_S = 0.5  # after a change of examples: many that follow each other, as a folder that is sent, are one fit


async def make_ready(
    label_set: KeptLabelSet,
    registry: Registry,
    *,
    fitting: asyncio.Lock,
    keep: Callable[[KeptLabelSet], Awaitable[None]],
) -> None:
    """Ends with classes or with the reason why there are none, whatever goes wrong. Vectors that are there are kept.

    keep: what to do with a set when its templates are weighed, before it is encoded.
    fitting: one fit of a server at a time, so that many never fill the threads that other work needs; whoever is
    cancelled while it waits for it, because its set was changed again, costs nothing.
    """
    try:
        if label_set.stored and label_set.stored.is_unweighed:
            await _weigh(label_set, registry)
            await keep(label_set)
        if label_set.vectors is None:
            await _encode(label_set, registry)
        if label_set.is_taught:
            if label_set.before is not None:
                await asyncio.sleep(_SETTLE_S)
            async with fitting:
                await _fit(label_set)
    except ClipworksError as error:
        label_set.failed = str(error)
        log.error("label set %s: %s", label_set.name, error.code)  # its words can name labels
    except Exception as error:
        label_set.failed = f"internal error: {type(error).__name__}"
        log.exception("label set %s", label_set.name)


async def _weigh(label_set: KeptLabelSet, registry: Registry) -> None:
    """The weights of the templates become part of what the set is. Raises StateConflict, InputError."""
    stored, pictures = label_set.stored, label_set.pictures
    if stored is None or stored.weighed is None or pictures is None or stored.request.weigh_templates is None:
        return
    prompts = label_set.prompts
    scores = scores_by(pictures, len(prompts.templates), scale=label_set.scale)
    done = 0
    for part in prompts.parts(_CHUNK_LABELS):
        filled = Prompts(tuple(label for label in part.labels if isinstance(label, str)), part.templates)
        if filled.labels:
            texts = await _when_ready(lambda model, filled=filled: _texts_of(model, filled), label_set, registry)
            await in_thread(lambda texts=texts: add_labels(scores, texts))
        done += part.texts
        label_set.encoded = done // 2  # they are all encoded once more, with the weights
    weights = template_weights(scores.scores(), stored.request.weigh_templates.how)
    weighed = replace(stored.weighed, weights=tuple(weights.tolist()))
    label_set.stored, label_set.pictures = replace(stored, weighed=weighed), None


async def _texts_of(model: RunningModel, prompts: Prompts) -> np.ndarray:
    """Unit vectors [C, P, D] of labels in every template."""
    texts = iter(prompts)
    chunks: list[np.ndarray] = []
    while chunk := list(islice(texts, CHUNK_TEXTS)):
        chunks.append(await encode_texts(model, chunk, None))
    return np.concatenate(chunks).reshape(len(prompts.labels), len(prompts.templates), model.dim)


async def _encode(label_set: KeptLabelSet, registry: Registry) -> None:
    """Raises NoDirection, StateConflict, InputError."""
    model = await registry.until_loaded(label_set.model)
    if model.text_spec is None:  # its examples say all
        label_set.vectors = np.zeros((len(label_set.prompts.labels), model.dim), dtype=np.float32)
        label_set.weak = frozenset(range(len(label_set.prompts.labels)))
        return
    parts: list[np.ndarray] = []
    weak: set[int] = set()
    weights = label_set.stored.weights if label_set.stored else None
    before = label_set.encoded
    done = 0
    for at, part in enumerate(label_set.prompts.parts(_CHUNK_LABELS)):
        classes = await _when_ready(
            lambda model, part=part: encode_classes(model, part, weights=weights), label_set, registry
        )
        parts.append(classes.vectors)
        weak |= {at * _CHUNK_LABELS + index for index in classes.weak}
        done += part.texts
        label_set.encoded = before + done * (label_set.prompts.texts - before) // label_set.prompts.texts
    vectors = await asyncio.to_thread(np.concatenate, parts)
    label_set.weak = frozenset(weak)
    if weak and label_set.stored and label_set.stored.request.on_unknown == "error":
        raise NoDirection(unknown_labels(label_set.weak_names))
    label_set.vectors = vectors


async def _when_ready(
    encode: Callable[[RunningModel], Awaitable[_T]], label_set: KeptLabelSet, registry: Registry
) -> _T:
    """What `encode` makes of the set's model; one that is restarted or not loaded is waited for.

    Raises:
        StateConflict: the model that was loaded has another text encoder.
    """
    while True:
        model = await registry.until_loaded(label_set.model)
        if label_set.stored and model.fingerprint.text != label_set.stored.fingerprint:
            raise StateConflict(f"the text encoder of {model.reference} is another one now")
        try:
            return await encode(model)
        except ServiceNotReady as error:
            log.info("label sets wait for %s: %s", model.reference, error)
            await asyncio.sleep(_RETRY_S)


async def _fit(label_set: KeptLabelSet) -> None:
    """Raises LabelSetFailed: nothing can be learned, and there are no texts either."""
    examples, texts = label_set.examples, label_set.vectors
    if examples is None or texts is None:
        return
    names, shown = label_set.prompts.names, texts if texts.any() else None
    label_set.head, label_set.report = await in_thread(
        lambda: fit_examples(names, examples, shown, scale=label_set.scale)
    )
