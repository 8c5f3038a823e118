"""Towers that are changed by steps on a few pictures and the names of their classes, and what validation says of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from evaluation.zero_shot import class_matrix
from training.checkpoint import LoadedModel
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.losses import unit
from training.method import Context, Needs, Produced, StepMethod
from training.methods.parts.class_heads import judge_head
from training.methods.parts.few_shot import scale_of
from training.methods.parts.linear_heads import zero_shot_head
from training.methods.parts.shots import ShotBatches, ShotOptions, shot_task
from training.methods.parts.text_tower import text_derivation
from training.methods.parts.tower_parameters import Towers
from training.publication import Publication


class TunedOptions(ShotOptions):
    """towers: which are changed. templates: one prompt of the classes, which is also the artifact's; none: the base's
    first.
    """

    towers: Towers = "both"
    templates: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=1)


class BothDoors(Protocol):
    """What is tuned: uint8 [B, H, W, 3] -> [B, D] and int64 [B, L] -> [B, D]."""

    def encode_image(self, pixels: Tensor) -> Tensor: ...

    def encode_text(self, ids: Tensor) -> Tensor: ...


class TunedTowers(StepMethod):
    """Pictures run through their tower in every step, and so do the class names in the one prompt.

    Subclasses make their modules, call `see_shots`, and say in `encoded` what they train.
    """

    needs = Needs(fields=("image", "class_id"))
    options: TunedOptions

    def see_shots(self, context: Context, base: LoadedModel, model: BothDoors) -> None:
        """Choose the shots, and judge the base. model: as it is judged, in eval mode.

        Raises:
            ValueError: no such label, fewer than two classes, or none of them in validation.
        """
        source, options = context.source, self.options
        self.task = shot_task(source, options)
        self.scale = scale_of(base)
        self.templates = options.templates or base.info.templates[:1]
        said = [self.templates[0].replace("{}", name) for name in self.task.classes]
        tokenizer = context.tokenizer
        self.ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in said])).to(context.device)
        self._pictures = source.pictures("train")[self.task.rows]
        self._validation = source.pictures("validation")[self.task.known]
        self._zero_shot = self._judged(encoder_of(base, name="base", device=context.device))
        self._encoder = TorchEncoder(
            model.encode_image,
            model.encode_text,
            image_spec=base.info.image_spec,
            tokenizer=tokenizer,
            name="in training",
            fingerprint="in training",
            device=context.device,
        )

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        fields = {"image": self._pictures, "class_id": self.task.truth}
        return ShotBatches(fields=fields, batch_size=batch_size, seed=seed)

    @abstractmethod
    def encoded(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] and int64 [C, L] -> [B, D] and [C, D], as a step sees them."""

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        images, texts = self.encoded(batch["image"], self.ids)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.scale * unit(images) @ unit(texts).T
            return {"cross_entropy": functional.cross_entropy(logits, batch["class_id"])}

    def validated(self) -> dict[str, Any]:
        """The classes' accuracy on validation, beside the base's in the same prompt; data are judged by captions."""
        return {
            "zero_shot": self._zero_shot,
            "adapted": self._judged(self._encoder),
            "shots": self.task.report(),
        }

    def artifact(self) -> Produced:
        return Produced(
            graphs={"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"},
            templates=self.templates,
            inherited=("image_encoder",) if self.options.towers == "text" else (),
        )

    def derivation(self, publication: Publication) -> DerivationSource:
        return text_derivation(publication, may_leave=True)

    def _judged(self, encoder: TorchEncoder) -> dict[str, Any]:
        classes = class_matrix(encoder.encode_texts, self.task.classes, self.templates)
        vectors = encoder.encode_prepared(self._validation)
        return judge_head(zero_shot_head(classes, scale=self.scale), vectors, self.task.expected)
