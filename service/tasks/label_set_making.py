"""A label set becomes ready: its texts are encoded behind interactive ones, then its examples are fitted."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from model_store.errors import ClipworksError
from service.engine.registry import Registry
from service.faults import NoDirection, ServiceNotReady, StateConflict
from service.tasks.kept_label_set import KeptLabelSet
from service.tasks.prompts import Prompts
from service.tasks.zero_shot import Classes, encode_classes, unknown_labels
from service.teaching.fitting import fit_examples
from service.threads import in_thread

log = logging.getLogger("clipworks.label_sets")
_RETRY_S = 1.0
_CHUNK_LABELS = 16
_SETTLE_S = 0.5  # after a change of examples: many that follow each other, as a folder that is sent, are one fit


async def make_ready(label_set: KeptLabelSet, registry: Registry, *, fitting: asyncio.Lock) -> None:
    """Ends with classes or with the reason why there are none, whatever goes wrong. Vectors that are there are kept.

    fitting: one fit of a server at a time, so that many never fill the threads that other work needs; whoever is
    cancelled while it waits for it, because its set was changed again, costs nothing.
    """
    try:
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


async def _encode(label_set: KeptLabelSet, registry: Registry) -> None:
    """Raises NoDirection, StateConflict, InputError."""
    model = await registry.until_loaded(label_set.model)
    if model.text_spec is None:  # its examples say all
        label_set.vectors = np.zeros((len(label_set.prompts.labels), model.dim), dtype=np.float32)
        label_set.weak = frozenset(range(len(label_set.prompts.labels)))
        return
    parts: list[np.ndarray] = []
    weak: set[int] = set()
    for at, part in enumerate(label_set.prompts.parts(_CHUNK_LABELS)):
        classes = await _encoded(part, label_set, registry)
        parts.append(classes.vectors)
        weak |= {at * _CHUNK_LABELS + index for index in classes.weak}
        label_set.encoded += part.texts
    vectors = await asyncio.to_thread(np.concatenate, parts)
    label_set.weak = frozenset(weak)
    if weak and label_set.stored and label_set.stored.request.on_unknown == "error":
        raise NoDirection(unknown_labels(label_set.weak_names))
    label_set.vectors = vectors


async def _encoded(part: Prompts, label_set: KeptLabelSet, registry: Registry) -> Classes:
    """A model that is restarted or not loaded is waited for.

    Raises:
        StateConflict: the model that was loaded has another text encoder.
    """
    while True:
        model = await registry.until_loaded(label_set.model)
        if label_set.stored and model.fingerprint.text != label_set.stored.fingerprint:
            raise StateConflict(f"the text encoder of {model.reference} is another one now")
        try:
            return await encode_classes(model, part)
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
