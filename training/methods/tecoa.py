"""TeCoA: an image tower learns to name attacked pictures by the texts of their classes, which stay.

Mao et al., 2023, "Understanding Zero-shot Adversarial Robustness for Large-Scale Models" (text-guided contrastive
adversarial training), equations 3 and 4. The cross entropy over the classes of a label column is attacked and lowered.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from evaluation.zero_shot import class_matrix
from training.encoder import TorchEncoder, encoder_of
from training.losses import unit
from training.method import Context, Needs
from training.methods.parts.adversarial_tower import AdversarialOptions, AdversarialTower
from training.methods.parts.class_heads import judge_head
from training.methods.parts.few_shot import scale_of
from training.methods.parts.linear_heads import zero_shot_head
from training.methods.parts.shots import ShotBatches, ShotOptions, shot_task


class TecoaOptions(AdversarialOptions, ShotOptions):
    """shots: by default all pictures of each class. templates: of the class texts, by default the base's.

    The authors train 10 epochs of ImageNet with epsilon 1, 2 steps of 1 level and plain SGD; the numbers that FARE is
    compared with are of epsilon 2 and 4 and 10 steps.
    """

    shots: int = Field(default=0, ge=0)


def create(options: dict[str, Any]) -> TecoaMethod:
    return TecoaMethod(TecoaOptions.parse(options, method="tecoa"))


class TecoaMethod(AdversarialTower):
    name = "tecoa"
    by_captions = True
    needs = Needs(fields=("image", "class_id"))

    def __init__(self, options: TecoaOptions) -> None:
        super().__init__(options)
        self.options = options

    def setup(self, context: Context) -> None:
        """Raises:
        ValueError: no base, no such label, fewer than two classes, or none of them in validation.
        """
        super().setup(context)
        base, source = context.required_base("tecoa"), context.source
        self.task = shot_task(source, self.options)
        before = encoder_of(base, name="base", device=context.device)
        classes = class_matrix(before.encode_texts, self.task.classes, self.options.templates or self.templates)
        self.scale = scale_of(base)
        self._head = zero_shot_head(classes, scale=self.scale)
        self.classes = torch.from_numpy(classes).to(context.device)
        self._pictures = source.pictures("train")[self.task.rows]
        self._validation = source.pictures("validation")[self.task.known]
        self._zero_shot = self._judged(before)
        self._encoder = TorchEncoder(
            self.model.encode_image,
            self.model.encode_text,
            image_spec=base.info.image_spec,
            tokenizer=context.tokenizer,
            name="in training",
            fingerprint="in training",
            device=context.device,
        )

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        fields = {"image": self._pictures, "class_id": self.task.truth}
        return ShotBatches(fields=fields, batch_size=batch_size, seed=seed)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        def wanted(vectors: Tensor) -> Tensor:
            logits = self.scale * unit(vectors) @ self.classes.T
            return functional.cross_entropy(logits, batch["class_id"], reduction="none")

        return self.losses(batch["image"], wanted)

    def validated(self) -> dict[str, Any]:
        """The classes' accuracy on clean pictures of validation, beside the base's."""
        training = self.model.training
        self.model.eval()
        try:
            judged = self._judged(self._encoder)
        finally:
            self.model.train(training)
        return {"zero_shot": self._zero_shot, "adapted": judged, "shots": self.task.report()}

    def _judged(self, encoder: TorchEncoder) -> dict[str, Any]:
        return judge_head(self._head, encoder.encode_prepared(self._validation), self.task.expected)
