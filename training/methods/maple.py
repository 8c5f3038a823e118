"""MaPLe: prompts of texts, and linear functions of them that are prompts of pictures, learnt from a few pictures.

Khattak et al., 2023, "MaPLe: Multi-modal Prompt Learning". All weights of the base stay. What ships is both encoders,
with the prompts inside; the functions are worked out, and no part of it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from model_store.modality.text import Tokenizer
from training.methods.parts.deep_prompts import CoupledPrompts, TowerPrompts, image_transformer
from training.methods.parts.prompt_learning import PromptMethod, TextPromptOptions, text_start
from training.models.towers import DualEncoder


class MapleOptions(TextPromptOptions):
    """depth: how many layers of each tower have prompts of their own; None: nine, or all of the smaller tower."""

    depth: int | None = Field(default=None, ge=1)


def create(options: dict[str, Any]) -> MapleMethod:
    return MapleMethod(MapleOptions.parse(options, method="maple"))


class MapleMethod(PromptMethod):
    name = "maple"

    def __init__(self, options: MapleOptions) -> None:
        super().__init__(options)
        self.maple = options

    def start(self, model: DualEncoder, tokenizer: Tokenizer) -> TowerPrompts:
        options, pictures = self.maple, image_transformer(model)
        text = text_start(
            model, tokenizer, words=options.words, n_ctx=options.n_ctx, depth=options.depth, most=pictures.layers
        )
        return TowerPrompts(CoupledPrompts(text, pictures.width), text)
