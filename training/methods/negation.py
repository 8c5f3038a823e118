"""Negation: the text tower learns what "no" does, the image tower stays, and so does every index made with it.

NegationCLIP's recipe (its image tower is frozen too) with CoN-CLIP's flaw repaired: there a negated caption was always
the wrong one, and a model that dislikes "no" had learned enough. The hard negatives of drawn scenes deny as often as
the true captions do; a table's `negative_column` should be counted before it is trusted.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.features import picture_vectors
from training.losses import info_nce, negclip_loss, positive_pairs, unit, usable_negatives
from training.method import Context, Produced
from training.methods.base import TowerOptions, TwoTowers
from training.methods.parts.sentence_reader import fit_reader

_READER_CAPTIONS = 4  # of each picture, and as many hard negatives


class NegationOptions(TowerOptions):
    """false_twin: each picture also chooses between its caption and that caption's hard negative.

    cached_pictures: the frozen image tower sees each picture once, before the first step, instead of in every batch;
    right for pictures that are not augmented, such as drawn scenes.

    reader_weight: above 0, a reader of meanings is fitted to the frozen pictures first (`fit_reader`), and the text
    tower also learns to say what it says; for cached pictures whose captions' meaning is known.
    """

    false_twin: bool = True
    cached_pictures: bool = False
    reader_weight: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _reader_has_its_pictures(self) -> Self:
        if self.reader_weight and not (self.cached_pictures and self.false_twin):
            raise ValueError("reader_weight needs cached_pictures and false_twin")
        return self


def create(options: dict[str, Any]) -> NegationMethod:
    return NegationMethod(NegationOptions.parse(options, method="negation"))


class NegationMethod(TwoTowers):
    _pictures: Tensor
    _reader: nn.Linear

    def __init__(self, options: NegationOptions) -> None:
        self.false_twin, self.cached_pictures = options.false_twin, options.cached_pictures
        if options.false_twin:
            self.fields = (*TwoTowers.fields, "negative_text", "negative_id", "has_negative")
        if options.cached_pictures:
            self.fields = (*self.fields, "row")
        if options.reader_weight:
            self.fields = (*self.fields, "meaning_code", "negative_code")
        self.reader_weight = options.reader_weight
        super().__init__(options)

    def setup(self, context: Context) -> None:
        base = context.required_base("negation")
        super().setup(context)
        self.model.lock_image()
        if self.cached_pictures:
            vectors = picture_vectors(base, context.source.pictures("train"), device=context.device)
            self._pictures = unit(torch.from_numpy(vectors).to(context.device))
        if self.reader_weight:
            captions = context.source.captions(_READER_CAPTIONS, negatives=True)
            code = context.source.meaning_code()
            self._reader = fit_reader(self._pictures, captions, code, seed=context.seed)

    def encode_pictures(self, batch: dict[str, Tensor]) -> Tensor:
        return self._pictures[batch["row"]] if self.cached_pictures else super().encode_pictures(batch)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = super().encode(batch)
        if self.false_twin:
            vectors["twin"] = unit(self.model.encode_text(batch["negative_text"]))
        return vectors

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        image, text = (self.gathering.vectors(vectors[name]) for name in ("image", "text"))
        ids = self.gathering.facts(batch["caption_id"])
        scale, rows, positives = (
            self.model.logit_scale.exp(),
            self.gathering.rows(len(batch["image"])),
            positive_pairs(ids),
        )
        if not self.false_twin:
            with torch.autocast(image.device.type, enabled=False):
                return {"info_nce": info_nce(image, text, scale, positives, excused=self.excused(batch), rows=rows)}
        twin = self.gathering.vectors(vectors["twin"])
        negative_id, has_negative = (self.gathering.facts(batch[name]) for name in ("negative_id", "has_negative"))
        # "no red circle" is false of one picture and true of most others: a hard negative counts
        # against its own only, unless the data say of which others it is false.
        usable = usable_negatives(ids, negative_id, has_negative, own_only=not self.options.excuse_true)
        excused = self.excused(batch)
        with torch.autocast(image.device.type, enabled=False):
            loss = negclip_loss(
                image, text, twin, scale, positives=positives, usable=usable, excused=excused, rows=rows
            )
            if not self.reader_weight:
                return {"negation": loss}
            codes = torch.cat([self.gathering.facts(batch[name]) for name in ("meaning_code", "negative_code")])
            return {"negation": loss, "reader": self.reader_weight * self._unlike(torch.cat([text, twin]), codes)}

    def _unlike(self, texts: Tensor, codes: Tensor) -> Tensor:
        """Mean cosine distance of unit texts [n, D] to the reader's of codes [n, C], of those that it can say."""
        known = codes.any(dim=1)
        cosines = (texts * unit(self._reader(codes))).sum(dim=1)
        return ((1 - cosines) * known).sum() / known.sum().clamp(min=1)

    def artifact(self) -> Produced:
        return self.produced(inherited=("image_encoder",))
