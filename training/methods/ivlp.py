"""IVLP: prompts in both towers that know nothing of each other, learnt from a few pictures; all weights stay.

Rasheed et al., 2023, "Fine-tuned CLIP Models are Efficient Video Learners" (independent vision-language prompting), as
Khattak et al., 2023, "MaPLe", compare with it. What ships is both encoders, with the prompts inside.
"""

from __future__ import annotations

from typing import Any

from model_store.modality.text import Tokenizer
from training.methods.parts.deep_prompts import TowerPrompts
from training.methods.parts.prompt_learning import PromptMethod, TwoTowerOptions, both_start
from training.models.towers import DualEncoder


def create(options: dict[str, Any]) -> IvlpMethod:
    return IvlpMethod(TwoTowerOptions.parse(options, method="ivlp"))


class IvlpMethod(PromptMethod):
    name = "ivlp"

    def __init__(self, options: TwoTowerOptions) -> None:
        super().__init__(options)
        self.ivlp = options

    def start(self, model: DualEncoder, tokenizer: Tokenizer) -> TowerPrompts:
        return both_start(model, tokenizer, self.ivlp)
