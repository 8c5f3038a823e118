"""CLIP-LoRA: small changes of low rank in both towers are learnt from a few pictures, and merged into the weights.

Zanella and Ben Ayed, 2024, "Low-Rank Few-Shot Adaptation of Vision-Language Models". What ships is a model like its
base, of the same size and speed.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from evaluation.zero_shot import class_matrix
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.losses import unit
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.parts.class_heads import judge_head
from training.methods.parts.few_shot import HeadOptions
from training.methods.parts.linear_heads import zero_shot_head
from training.methods.parts.low_rank import LowRankChange, LowRankTowers, Towers, low_rank_targets
from training.methods.parts.prompted import scale_of
from training.methods.parts.shots import ShotBatches, shot_task
from training.methods.parts.text_tower import text_derivation
from training.publication import Publication


class ClipLoraOptions(HeadOptions):
    """rank and alpha: of the changes, which are multiplied with alpha / rank. dropout: of their input channels.

    towers: which are changed. templates: one prompt of the classes, which is also the artifact's; none: the base's
    first.
    """

    rank: int = Field(default=2, ge=1)
    alpha: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    towers: Towers = "both"
    templates: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=1)


def create(options: dict[str, Any]) -> ClipLoraMethod:
    return ClipLoraMethod(ClipLoraOptions.parse(options, method="clip_lora"))


class ClipLoraMethod(StepMethod):
    needs = Needs(fields=("image", "class_id"))

    def __init__(self, options: ClipLoraOptions) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        base, options, source = context.required_base("clip_lora"), self.options, context.source
        model = base.model.to(context.device)
        try:
            targets = low_rank_targets(model, options.towers)
        except ValueError as error:
            raise ValueError(f"clip_lora: {error}") from error
        self.task = shot_task(
            source,
            options.label,
            shots=options.shots,
            seed=options.shots_seed,
            least=options.least,
            only=options.only,
        )
        self.change = LowRankChange(targets, rank=options.rank, alpha=options.alpha, dropout=options.dropout)
        self.change.to(context.device)
        self.model, self.scale = LowRankTowers(model, self.change), scale_of(base)
        self.templates = options.templates or base.info.templates[:1]
        said = [self.templates[0].replace("{}", name) for name in self.task.classes]
        tokenizer = context.tokenizer
        self.ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in said])).to(context.device)
        self._pictures = source.pictures("train")[self.task.rows]
        self._validation = source.pictures("validation")[self.task.known]
        self._base_encoder = encoder_of(base, name="base", device=context.device)
        self._encoder = TorchEncoder(
            self.model.encode_image,
            self.model.encode_text,
            image_spec=base.info.image_spec,
            tokenizer=tokenizer,
            name="in training",
            fingerprint="in training",
            device=context.device,
        )

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"change": (self.change, "train_only"), "model": (self.model, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"change.{name}": p for name, p in self.change.named_parameters()})]

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        fields = {"image": self._pictures, "class_id": self.task.truth}
        return ShotBatches(fields=fields, batch_size=batch_size, seed=seed)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        weights = self.model.weights(training=True)
        images = self.model.encode("encode_image", batch["image"], weights)
        texts = self.model.encode("encode_text", self.ids, weights)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.scale * unit(images) @ unit(texts).T
            return {"cross_entropy": functional.cross_entropy(logits, batch["class_id"])}

    def validated(self) -> dict[str, Any]:
        """The classes' accuracy on validation, beside the base's in the same prompt; data are judged by captions."""
        return {
            "zero_shot": self._judged(self._base_encoder),
            "adapted": self._judged(self._encoder),
            "shots": self.task.report(),
        }

    def weights(self) -> dict[str, Tensor]:
        """Of the whole model, with the changes in it."""
        with torch.no_grad():
            merged = {**self.model.base.state_dict(), **self.model.weights()}
        return {f"model.{name}": tensor for name, tensor in merged.items()}

    def artifact(self) -> Produced:
        return Produced(
            graphs={"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"},
            templates=self.templates,
            inherited=("image_encoder",) if self.options.towers == "text" else (),
        )

    def derivation(self, publication: Publication) -> DerivationSource:
        return text_derivation(publication)

    def _judged(self, encoder: TorchEncoder) -> dict[str, Any]:
        classes = class_matrix(encoder.encode_texts, self.task.classes, self.templates)
        vectors = encoder.encode_prepared(self._validation)
        return judge_head(zero_shot_head(classes, scale=self.scale), vectors, self.task.expected)
