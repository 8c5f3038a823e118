"""NegCLIP and FSC-CLIP: composition from hard negatives, captions that differ in who has what and stands where.

A negative must be wrong as a meaning, not only as a string. Drawn scenes give only captions that their oracle calls
plainly false; a table's `negative_column` must hold such captions, this method cannot know.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from training.data.rows import caption_ids
from training.losses import focal_negative_loss, info_nce, negclip_loss, positive_pairs, unit, usable_negatives
from training.method import Context, Produced
from training.methods.base import TowerOptions, TwoTowers
from training.methods.parts.neighbours import image_neighbours


class NegclipOptions(TowerOptions):
    """loss: "negclip" puts negatives among the texts that images choose from; "focal" adds to InfoNCE, weighted, a
    choice between each picture's own two captions (FSC-CLIP's global term; its second term, on patches, is left out).

    own_negatives_only: a negative counts against its own picture only, not against the whole batch ("focal" is so
    always). lock_image: only the text tower and the temperature learn. neighbours: half of a batch are pictures that
    the base sees as close to the other half, each one of so many nearest; 0: batches at random.
    """

    loss: Literal["negclip", "focal"] = "negclip"
    own_negatives_only: bool = False
    negative_weight: float = Field(default=0.5, ge=0)
    focal_gamma: float = Field(default=2.0, ge=0)
    label_smoothing: float = Field(default=0.02, ge=0, lt=1)
    lock_image: bool = False
    neighbours: int = Field(default=0, ge=0)


def create(options: dict[str, Any]) -> NegclipMethod:
    return NegclipMethod(NegclipOptions.parse(options, method="negclip"))


class NegclipMethod(TwoTowers):
    fields = ("image", "text", "caption_id", "negative_text", "negative_id", "has_negative")

    def __init__(self, options: NegclipOptions) -> None:
        super().__init__(options)
        self.negclip = options

    def setup(self, context: Context) -> None:
        super().setup(context)
        if self.negclip.lock_image:
            context.required_base("negclip with lock_image")
            self.model.lock_image()
        if self.negclip.neighbours:
            base = context.required_base("negclip with neighbours")
            captions = [drawn.text for _, drawn in context.source.captions(1, negatives=False)]
            self.neighbours = image_neighbours(
                base,
                context.source.pixels,
                groups=caption_ids(captions),
                count=self.negclip.neighbours,
                device=context.device,
            )

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**super().encode(batch), "negative": unit(self.model.encode_text(batch["negative_text"]))}

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        image, text, negative = (self.gathering.vectors(vectors[name]) for name in ("image", "text", "negative"))
        ids, negative_id, has_negative = (
            self.gathering.facts(batch[name]) for name in ("caption_id", "negative_id", "has_negative")
        )
        rows, scale, positives = (
            self.gathering.rows(len(batch["image"])),
            self.model.logit_scale.exp(),
            positive_pairs(ids),
        )
        excused = self.excused(batch)
        with torch.autocast(image.device.type, enabled=False):
            if self.negclip.loss == "negclip":
                usable = usable_negatives(ids, negative_id, has_negative, own_only=self.negclip.own_negatives_only)
                loss = negclip_loss(
                    image, text, negative, scale, positives=positives, usable=usable, excused=excused, rows=rows
                )
                return {"negclip": loss}
            among_texts = None if excused is None else excused[:, : len(text)]
            focal = focal_negative_loss(
                image,
                text,
                negative,
                scale,
                has_negative=has_negative & (negative_id != ids),
                gamma=self.negclip.focal_gamma,
                smoothing=self.negclip.label_smoothing,
                rows=rows,
            )
            return {
                "info_nce": info_nce(image, text, scale, positives, excused=among_texts, rows=rows),
                "focal": self.negclip.negative_weight * focal,
            }

    def artifact(self) -> Produced:
        return self.produced(inherited=("image_encoder",) if self.negclip.lock_image else ())
