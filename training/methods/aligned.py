"""Trains the head of an aligned model on features worked out once: frozen trunk, locked text (Zhai et al., 2022)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from training.aligned_config import AlignedConfig
from training.data.protocol import StepBatches
from training.losses import info_nce, unit
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.parts.aligned_start import aligned_model
from training.methods.parts.trunk_features import PairBatches, TrunkFeatures, trunk_features
from training.models.aligned import AlignedDualEncoder
from training.options import Options

MAX_LOG_SCALE = math.log(100)


class AlignedOptions(Options):
    """captions: how many captions of each row of the data are drawn. flip: mirrored pictures are trained on too.
    keep_classes: weight of the distance between what is said of a class's pseudo-picture, the row of the trunk's
    classifier, and the class's text vector. decay_head: weight of the mean square of what the head adds.
    ridge: the linear head starts at the ridge regression of the caption vectors, of this strength relative to the mean
    square of the features; 0: it starts as it is. scale: the inverse temperature at the start.
    """

    templates: tuple[str, ...] = ("{}",)
    captions: int = Field(default=1, ge=1)
    flip: bool = False
    keep_classes: float = Field(default=0.0, ge=0)
    decay_head: float = Field(default=0.0, ge=0)
    ridge: float = Field(default=0.0, ge=0)
    scale: float = Field(default=1 / 0.07, gt=0)


def create(options: dict[str, Any]) -> AlignedHeads:
    return AlignedHeads(AlignedOptions.parse(options, method="aligned"))


class AlignedHeads(StepMethod):
    """Trains the head alone; pairs of one picture or of equal captions are all positives of each other."""

    needs = Needs(fields=("features", "text_embeds", "positives"))

    def __init__(self, options: AlignedOptions) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        if not isinstance(context.model, AlignedConfig):
            raise ValueError(f"method aligned trains models of kind aligned, not {context.model.kind}")
        if context.model.image.head == "none":
            raise ValueError("method aligned trains the head: model.image.head is none")
        self.model = aligned_model(context.model, context)
        with torch.no_grad():
            self.model.logit_scale.fill_(math.log(self.options.scale))
        self.model.lock(*(part for name, part in self.model.named_children() if name != "head"))
        self.features = trunk_features(
            self.model,
            context,
            captions=self.options.captions,
            flip=self.options.flip,
        )
        if self.options.keep_classes:
            self.class_features = class_pictures(self.model, self.features)
        if self.options.ridge and context.base is None:
            start_at_ridge(self.model, self.features, strength=self.options.ridge)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"model": (self.model, "export")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"model.{n}": p for n, p in self.model.named_parameters() if p.requires_grad})]

    def batches(self, *, batch_size: int, seed: int) -> StepBatches:
        return PairBatches(self.features, batch_size=batch_size, seed=seed)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        features = batch["features"]
        image, text = self.model.from_features(features, self.model.logits(features)), batch["text_embeds"]
        losses = {"info_nce": info_nce(unit(image), unit(text), self.model.logit_scale.exp(), batch["positives"])}
        if self.options.keep_classes:
            losses["keep_classes"] = self.options.keep_classes * self._moved_classes()
        if self.options.decay_head and self.model.head is not None:
            losses["decay_head"] = self.options.decay_head * self.model.head(features).square().sum(dim=1).mean()
        return losses

    def constrain(self) -> None:
        self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def artifact(self) -> Produced:
        graphs = {
            "image_encoder": "model.encode_image",
            "text_encoder": "model.encode_text",
            "dense_encoder": "model.encode_dense",
        }
        return Produced(graphs=graphs, templates=self.options.templates)

    def _moved_classes(self) -> Tensor:
        """1 - cosine between the pseudo-pictures of the classes and their text vectors, the mean."""
        if self.model.class_map is None:
            raise ValueError("keep_classes needs a model.class_map")
        said = self.model.from_features(self.class_features, self.model.logits(self.class_features))
        return 1 - (unit(said) * unit(self.model.class_map.vectors)).sum(dim=1).mean()


def class_pictures(model: AlignedDualEncoder, features: TrunkFeatures) -> Tensor:
    """Features of each class, [K, F]: the direction of its row in the trunk's classifier, as long as a picture's; of
    finer stages, the mean over the pictures.

    Raises:
        ValueError: no class map.
    """
    if model.class_map is None:
        raise ValueError("keep_classes needs a model.class_map")
    rows = model.trunk.get_classifier().weight.detach()
    pictures = torch.from_numpy(features.image).to(rows.device)
    last = pictures[:, : rows.shape[1]]
    length = last.norm(dim=1).mean()
    rest = pictures[:, rows.shape[1] :].mean(dim=0).expand(len(rows), -1)
    return torch.cat([unit(rows) * length, rest], dim=1)


def start_at_ridge(model: AlignedDualEncoder, features: TrunkFeatures, *, strength: float) -> None:
    """Put the ridge regression of unit caption vectors on features into a linear head.

    Raises:
        ValueError: the head is no linear one.
    """
    head = model.head
    if head is None or head.hidden is not None or head.gate is not None:
        raise ValueError("ridge is a start for model.image.head = linear without a gate")
    weights = features.row_weights / features.row_weights.sum()
    x, y = features.image[features.picture].astype(np.float64), features.text.astype(np.float64)
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    x_mean, y_mean = weights @ x, weights @ y
    x, y = x - x_mean, y - y_mean
    gram = x.T @ (weights[:, None] * x)
    gram[np.diag_indices_from(gram)] += strength * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram, x.T @ (weights[:, None] * y))
    with torch.no_grad():
        head.out.weight.copy_(torch.from_numpy(solved.T))
        head.out.bias.copy_(torch.from_numpy(y_mean - x_mean @ solved))
