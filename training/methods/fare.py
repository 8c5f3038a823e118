"""FARE: an image tower learns to say of an attacked picture what its base says of the clean one; it needs no labels.

Schlarmann et al., 2024, "Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust Large
Vision-Language Models", equation 3. The loss is the squared distance of un-normalised vectors, summed over their
components, and the attack raises the same. The texts stay, and so do label sets; whether collections do is measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluation.agreement import picture_agreement
from training.encoder import TorchEncoder, encoder_of
from training.method import Context, Needs
from training.methods.parts.adversarial_tower import AdversarialOptions, AdversarialTower


class FareOptions(AdversarialOptions):
    """The authors train 2 epochs of ImageNet with epsilon 2 or 4, 10 steps of 1 level from a random start, AdamW at
    1e-5 with weight decay 1e-4 and batches of 128. Their code gives the attack a momentum; of the L-infinity norm it
    changes nothing, because the sign of each step is taken again.
    """


def create(options: dict[str, Any]) -> FareMethod:
    return FareMethod(FareOptions.parse(options, method="fare"))


class FareMethod(AdversarialTower):
    name = "fare"
    needs = Needs(fields=("image",))

    def setup(self, context: Context) -> None:
        super().setup(context)
        # Pictures without captions cannot be judged by what is found with texts.
        self._shown = None
        if not context.source.captioned:
            base = encoder_of(context.required_base("fare"), name="base", device=context.device)
            pictures = context.source.pictures("validation")
            self._shown = pictures, base.encode_prepared(pictures)
        self._encoder = TorchEncoder(
            self.model.encode_image,
            self.model.encode_text,
            image_spec=context.required_base("fare").info.image_spec,
            tokenizer=context.tokenizer,
            name="in training",
            fingerprint="in training",
            device=context.device,
        )

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        pixels = batch["image"]
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            said = self.base.encode_image(pixels).float()
        return self.losses(pixels, lambda vectors: (vectors - said).square().sum(dim=1))

    def validated(self) -> dict[str, Any] | None:
        """Of pictures without captions: how near the tower still is to its base on clean ones."""
        if self._shown is None:
            return None
        pictures, wanted = self._shown
        training = self.model.training
        self.model.eval()
        try:
            return {"agreement": picture_agreement(self._encoder.encode_prepared(pictures), wanted)}
        finally:
            self.model.train(training)
