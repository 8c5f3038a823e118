"""PromptSRC: prompts of both towers, or of texts alone, that are held near what the frozen base says.

Khattak et al., 2023, "Self-regulating Prompts: Foundational Model Adaptation without Forgetting". Three terms stand
beside the cross entropy, and an average of the prompts over the epochs is what ships.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from model_store.modality.text import Tokenizer
from training.features import picture_vectors
from training.losses import unit
from training.method import Context, ModuleUse, Needs
from training.methods.parts.deep_prompts import TowerPrompts
from training.methods.parts.prompt_averages import follow, gaussian_shares, moved_share
from training.methods.parts.prompt_learning import PromptMethod, TwoTowerOptions, both_start, text_start
from training.models.towers import DualEncoder


class PromptSrcOptions(TwoTowerOptions):
    """towers: which have prompts; "text" is for bases whose image tower has no place for them.

    text_weight, image_weight: of the mean distance (L1) of unit vectors from the frozen base's, whose class vectors are
    those of `templates`. logit_weight: of KL(frozen || prompted) over the classes, a mean over pictures and classes.
    0 switches a term off.
    epochs: into so many equal parts the run is cut, and after each the prompts go into the average; 0: no average, the
    last prompts ship. mean, deviation: of the Gaussian that weighs the parts, as shares of the run.
    """

    n_ctx: int = Field(default=4, ge=1)
    towers: Literal["both", "text"] = "both"
    text_weight: float = Field(default=25.0, ge=0)
    image_weight: float = Field(default=10.0, ge=0)
    logit_weight: float = Field(default=1.0, ge=0)
    epochs: int = Field(default=20, ge=0)
    mean: float = Field(default=0.75, gt=0, le=1)
    deviation: float = Field(default=0.05, gt=0)


def create(options: dict[str, Any]) -> PromptSrcMethod:
    return PromptSrcMethod(PromptSrcOptions.parse(options, method="promptsrc"))


class PromptSrcMethod(PromptMethod):
    name = "promptsrc"

    def __init__(self, options: PromptSrcOptions) -> None:
        super().__init__(options)
        self.promptsrc = options
        image = ("image",) if options.towers == "both" else ()
        self.needs = Needs(fields=(*image, "image_embeds", "class_id"))

    def start(self, model: DualEncoder, tokenizer: Tokenizer) -> TowerPrompts:
        options = self.promptsrc
        if options.towers == "both":
            return both_start(model, tokenizer, options)
        words, n_ctx, depth = options.words, options.n_ctx, options.text_depth
        return TowerPrompts(None, text_start(model, tokenizer, words=words, n_ctx=n_ctx, depth=depth))

    def setup(self, context: Context) -> None:
        super().setup(context)
        self._frozen = picture_vectors(context.required_base(self.name), self.pictures, device=context.device)
        options = self.promptsrc
        self._shares = gaussian_shares(options.epochs, mean=options.mean, deviation=options.deviation)
        if options.epochs:
            self.shipped = copy.deepcopy(self.prompts)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        found = super().modules()
        return {**found, "average": (self.shipped, "train_only")} if self.promptsrc.epochs else found

    def fields(self) -> dict[str, NDArray[Any]]:
        found = {**super().fields(), "image_embeds": self._frozen}
        return {name: found[name] for name in self.needs.fields}

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        options, frozen, texts = self.promptsrc, batch["image_embeds"], self.class_vectors()
        images = frozen if options.towers == "text" else self.towers.encode_image(batch["image"])
        with torch.autocast(images.device.type, enabled=False):
            images, frozen, texts = unit(images), unit(frozen), unit(texts)
            logits = self.scale * images @ texts.T
            losses = {"cross_entropy": functional.cross_entropy(logits, batch["class_id"])}
            if options.text_weight:
                losses["text"] = options.text_weight * functional.l1_loss(texts, self.base_classes)
            if options.image_weight and options.towers == "both":
                losses["image"] = options.image_weight * functional.l1_loss(images, frozen)
            if options.logit_weight:
                before = self.scale * frozen @ self.base_classes.T
                both = logits.log_softmax(dim=1), before.log_softmax(dim=1)
                divergence = functional.kl_div(*both, reduction="sum", log_target=True) / logits.numel()
                losses["logits"] = options.logit_weight * divergence
            return losses

    def stepped(self, step: int, progress: float) -> None:
        """At the end of an epoch the average moves."""
        if self.promptsrc.epochs and (share := moved_share(self._shares, step, progress)) is not None:
            follow(self.shipped, self.prompts, share)
