"""Makes token ids of the labels of a request for a conditional head, counted before they are made, and keeps them.

Such a head reads every text anew for each picture, so what a request costs is pictures x texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from clipworks.schemas import Label, OnUnknown, Templates
from model_store.errors import RoleNotFound
from model_store.templates import named_templates
from service.engine.running import RunningModel
from service.faults import NoDirection, TooManyItems
from service.tasks.label_tokens import LabelTokens
from service.tasks.prompts import Limits, Prompts
from service.tasks.zero_shot import LabelCache, unknown_labels

_NAME_ALONE = ("{}",)  # the context is in the head


class LabelTokenizer:
    """Makes the ids of labels and keeps the most recent ones. max_texts: pictures x texts of one request."""

    def __init__(self, *, cache: LabelCache[LabelTokens], max_texts: int) -> None:
        self.cache = cache
        self._max_texts = max_texts

    async def tokens(
        self,
        model: RunningModel,
        labels: Sequence[Label],
        templates: Templates | None,
        *,
        images: int,
        on_unknown: OnUnknown,
        limits: Limits,
    ) -> LabelTokens:
        """Ids of labels; templates None: the names alone. `limits` are those of where the labels come from.

        Raises:
            TooManyItems: images x texts, or labels x templates, is over its limit; said before a text is made.
            InvalidText: a text is too long.
            NoDirection: with on_unknown "error", there are labels of which the model knows nothing; it names them.
        """
        given = named_templates(templates) if isinstance(templates, str) else tuple(templates or _NAME_ALONE)
        prompts = Prompts.of(labels, given)
        if images * prompts.texts > self._max_texts:
            raise TooManyItems(
                f"{images} images x {prompts.texts} texts of labels are {images * prompts.texts}, the limit is "
                f"{self._max_texts} (CLIPWORKS_MAX_CONDITIONAL_TEXTS): {model.reference} has a conditional head, which "
                "reads each text anew for each image; send fewer images or fewer labels at a time"
            )
        limits.check(prompts)
        key = (model.build, prompts.digest)
        found = self.cache.get(key)
        if found is None:
            async with model.tokenising:
                found = await asyncio.to_thread(_tokens, model, prompts)
            self.cache.put(key, found)
        if found.weak and on_unknown == "error":
            raise NoDirection(unknown_labels(found.weak_names))
        return found


def _tokens(model: RunningModel, prompts: Prompts) -> LabelTokens:
    tokenizer, size = model.tokenizer, model.texts_at_once
    if tokenizer is None:
        raise RoleNotFound(f"{model.reference} has no tokenizer")
    rows = [tokenizer.encode(text) for text in prompts]
    known = iter([not tokenizer.has_unknown or tokenizer.knows(row) for row in rows])
    weak = [index for index, count in enumerate(prompts.counts) if not any([next(known) for _ in range(count)])]
    return LabelTokens(
        names=prompts.names,
        counts=tuple(prompts.counts),
        blocks=tuple(tokenizer.pad(rows[start : start + size]) for start in range(0, len(rows), size)),
        weak=frozenset(weak),
    )
