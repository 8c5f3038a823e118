"""The base method: two towers and one contrastive loss, CLIP's or SigLIP's, with equal captions as positives."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from training.losses import info_nce, positive_pairs, sigmoid_loss
from training.methods import Context, ModuleUse, Needs, ParamGroup, Produced
from training.towers import DualEncoder, SmallDualEncoder, build_model

MAX_LOG_SCALE = math.log(100)


class BaseOptions(BaseModel):
    """`text_rate_share`: learning rate of the text tower relative to the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    loss: Literal["info_nce", "sigmoid"] = "info_nce"
    text_rate_share: float = 1.0
    templates: tuple[str, ...] = ("{}",)


def create(options: dict[str, Any]) -> BaseMethod:
    try:
        return BaseMethod(BaseOptions.model_validate(options))
    except ValidationError as error:
        raise ValueError(f"method_options of base: {error}") from error


class BaseMethod:
    needs = Needs(fields=("image", "text", "caption_id"))
    model: DualEncoder

    def __init__(self, options: BaseOptions) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        spec = context.tokenizer.spec
        if spec.end_id is None:
            raise ValueError("the base method needs a tokenizer with an end id")
        self.model = build_model(context.model, vocab_size=spec.vocab_size, end_id=spec.end_id).to(context.device)
        if isinstance(self.model, SmallDualEncoder):
            _zero_unseen(self.model.text.token_embedding, context)
        if self.options.loss == "sigmoid":
            if self.model.logit_bias is None:
                raise ValueError("loss sigmoid needs model.logit_bias = true")
            with torch.no_grad():
                # One pair in `batch_size` is positive: start at that rate, not at a half (Zhai et al., 2023, 3.2).
                self.model.logit_bias.fill_(-math.log(context.batch_size - 1))
                self.model.logit_scale.fill_(math.log(10))

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"model": (self.model, "export")}

    def param_groups(self) -> list[ParamGroup]:
        named = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        text = {name: p for name, p in named.items() if name.startswith("model.text.")}
        rest = {name: p for name, p in named.items() if name not in text}
        groups = [ParamGroup(parameters=rest)]
        return [*groups, ParamGroup(parameters=text, rate_share=self.options.text_rate_share)] if text else groups

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)
        image = functional.normalize(self.model.encode_image(batch["image"]).float(), dim=-1)
        text = functional.normalize(self.model.encode_text(batch["text"]).float(), dim=-1)
        scale, positives = self.model.logit_scale.exp(), positive_pairs(batch["caption_id"])
        # The loss is small and sensitive: autocast's bf16 is for the towers.
        with torch.autocast(image.device.type, enabled=False):
            if self.options.loss == "sigmoid":
                if self.model.logit_bias is None:
                    raise ValueError("loss sigmoid needs a logit bias")
                return {"sigmoid": sigmoid_loss(image, text, scale, self.model.logit_bias, positives)}
            return {"info_nce": info_nce(image, text, scale, positives)}

    def artifact(self) -> Produced:
        graphs = {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
        if isinstance(self.model, SmallDualEncoder):
            graphs["dense_encoder"] = "model.encode_dense"
        return Produced(graphs=graphs, templates=self.options.templates)


def _zero_unseen(embedding: nn.Embedding, context: Context) -> None:
    """Ids that no training text holds get no gradient: as zeros they say nothing, as random vectors they are noise."""
    seen = torch.zeros(embedding.num_embeddings, dtype=torch.bool)
    for text in context.texts:
        seen[torch.tensor(context.tokenizer.encode(text))] = True
    with torch.no_grad():
        embedding.weight[~seen.to(embedding.weight.device)] = 0
