"""The base method: two towers and one contrastive loss, CLIP's or SigLIP's, with equal captions as positives."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.aligned_config import AlignedConfig
from training.config import OpenClipConfig
from training.distributed import Gathering
from training.exporting.derive import DerivationSource
from training.losses import info_nce, positive_pairs, sigmoid_loss, unit
from training.method import Context, ContrastiveMethod, ModuleUse, Needs, ParamGroup, Produced
from training.methods.parts.aligned_start import start_aligned
from training.methods.parts.decorrelation import Decorrelation, DecorrelationOptions
from training.methods.parts.text_tower import text_derivation
from training.models.aligned import AlignedDualEncoder
from training.models.building import build_model
from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder
from training.options import Options
from training.pretrained import load_pretrained
from training.publication import Publication

MAX_LOG_SCALE = math.log(100)


class TowerOptions(Options):
    """What every method that trains two towers asks; `text_rate_share`: rate of the text tower relative to the rest.

    frozen: submodules of the model that stay as they are, such as "trunk" or "text" (Zhai et al., 2022, LiT).
    excuse_true: texts that are true of a picture, or may be, do not count against it; data with an oracle only.
    captions: so many rows of a batch are of one picture, each with another caption and hard negative; drawn data only.
    local_loss, gather_with_grad: for several processes, see `training.distributed.Gathering`.
    """

    text_rate_share: float = 1.0
    frozen: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    excuse_true: bool = False
    captions: int = Field(default=1, ge=1)
    local_loss: bool = False
    gather_with_grad: bool = True

    @model_validator(mode="after")
    def _gives_right_gradients(self) -> Self:
        self.gathering()
        return self

    def gathering(self) -> Gathering:
        return Gathering(local_loss=self.local_loss, with_gradient=self.gather_with_grad)


class BaseOptions(TowerOptions):
    """decorrelation: a second loss term, see `training.methods.parts.decorrelation`."""

    loss: Literal["info_nce", "sigmoid"] = "info_nce"
    decorrelation: DecorrelationOptions | None = None


def create(options: dict[str, Any]) -> BaseMethod:
    return BaseMethod(BaseOptions.parse(options, method="base"))


class TwoTowers(ContrastiveMethod):
    """A dual encoder trained by steps, from a base or from scratch; subclasses say by which loss in `compare`."""

    model: DualEncoder

    fields: tuple[str, ...] = ("image", "text", "caption_id")

    def __init__(self, options: TowerOptions) -> None:
        self.options = options
        fields = (*self.fields, "excused") if options.excuse_true else self.fields
        self.needs = Needs(fields=fields, captions=options.captions)
        self.gathering = options.gathering()

    def setup(self, context: Context) -> None:
        spec = context.tokenizer.spec
        if spec.end_id is None:
            raise ValueError("a text tower needs a tokenizer with an end id")
        self.model = build_model(context.model, vocab_size=spec.vocab_size, end_id=spec.end_id).to(context.device)
        if context.base is not None:
            self.model.load_state_dict(context.base.model.state_dict())
        elif isinstance(self.model, OpenClipDualEncoder) and isinstance(context.model, OpenClipConfig):
            if context.model.pretrained:
                load_pretrained(self.model, context.model)
        elif isinstance(self.model, SmallDualEncoder):
            _zero_unseen(self.model.text.token_embedding, context)
        elif isinstance(self.model, AlignedDualEncoder) and isinstance(context.model, AlignedConfig):
            start_aligned(self.model, context.model, context)
        self.model.lock(*(self._part(name) for name in self.options.frozen))

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"model": (self.model, "export")}

    def param_groups(self) -> list[ParamGroup]:
        named = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        text = {name: p for name, p in named.items() if name.startswith("model.text.")}
        rest = {name: p for name, p in named.items() if name not in text}
        groups = [ParamGroup(parameters=rest)]
        return [*groups, ParamGroup(parameters=text, rate_share=self.options.text_rate_share)] if text else groups

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors [b, D] of this process's pictures, "image", and of their texts, "text", in fp32."""
        return {"image": self.encode_pictures(batch), "text": unit(self.model.encode_text(batch["text"]))}

    def encode_pictures(self, batch: dict[str, Tensor]) -> Tensor:
        """Unit vectors [b, D] of this process's pictures."""
        return unit(self.model.encode_image(batch["image"]))

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} defines neither compare() nor a step() of its own")

    def constrain(self) -> None:
        self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def excused(self, batch: dict[str, Tensor]) -> Tensor | None:
        """bool [B, B] or [B, 2B] of a batch, from all processes; None if everything counts."""
        return self.gathering.facts(batch["excused"]) if self.options.excuse_true else None

    def artifact(self) -> Produced:
        return self.produced()

    def produced(self, *, inherited: tuple[str, ...] = ()) -> Produced:
        """Both towers, and per-position vectors where the model has them."""
        graphs = {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
        if isinstance(self.model, SmallDualEncoder | AlignedDualEncoder):
            graphs["dense_encoder"] = "model.encode_dense"
        return Produced(graphs=graphs, templates=self.options.templates, inherited=inherited)

    def derivation(self, publication: Publication) -> DerivationSource:
        return text_derivation(publication)

    def _part(self, name: str) -> nn.Module:
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            known = ", ".join(part for part, _ in self.model.named_children())
            raise ValueError(f"frozen: the model has no part {name!r}; it has: {known}") from None


class BaseMethod(TwoTowers):
    def __init__(self, options: BaseOptions) -> None:
        if options.decorrelation is not None:
            self.fields = (*TwoTowers.fields, "row")
        super().__init__(options)
        if options.loss == "sigmoid" and options.excuse_true:
            raise ValueError("excuse_true is for info_nce: the sigmoid loss asks about every pair by itself")
        self.loss, self._decorrelated = options.loss, options.decorrelation
        self._decorrelation: Decorrelation | None = None

    def setup(self, context: Context) -> None:
        super().setup(context)
        if self._decorrelated is not None:
            self._decorrelation = Decorrelation(self._decorrelated, context)
        if self.loss == "info_nce":
            return
        if self.model.logit_bias is None:
            raise ValueError("loss sigmoid needs model.logit_bias = true")
        if context.base is None:
            with torch.no_grad():
                # One pair in `batch_size` is positive: start at that rate, not at a half (Zhai et al., 2023, 3.2).
                self.model.logit_bias.fill_(-math.log(context.batch_size - 1))
                self.model.logit_scale.fill_(math.log(10))

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        losses = self._contrast(vectors, batch)
        if self._decorrelation is None:
            return losses
        image, rows = self.gathering.vectors(vectors["image"]), self.gathering.facts(batch["row"])
        with torch.autocast(image.device.type, enabled=False):
            return {**losses, "decorrelation": self._decorrelation.penalty(self.model, image, rows)}

    def _contrast(self, vectors: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image, text = (self.gathering.vectors(vectors[name]) for name in ("image", "text"))
        scale, positives = self.model.logit_scale.exp(), positive_pairs(self.gathering.facts(batch["caption_id"]))
        rows = self.gathering.rows(len(batch["image"]))
        # The loss is small and sensitive: autocast's bf16 is for the towers.
        with torch.autocast(image.device.type, enabled=False):
            if self.model.logit_bias is not None and self.loss == "sigmoid":
                return {"sigmoid": sigmoid_loss(image, text, scale, self.model.logit_bias, positives, rows=rows)}
            loss = info_nce(image, text, scale, positives, excused=self.excused(batch), rows=rows)
            return {"info_nce": loss}


def _zero_unseen(embedding: nn.Embedding, context: Context) -> None:
    """Ids that no training text holds get no gradient: as zeros they say nothing, as random vectors they are noise."""
    seen = torch.zeros(embedding.num_embeddings, dtype=torch.bool)
    for text in dict.fromkeys(context.source.texts()):
        seen[torch.tensor(context.tokenizer.encode(text))] = True
    with torch.no_grad():
        embedding.weight[~seen.to(embedding.weight.device)] = 0
