"""VPT: prompts among the patches of pictures are learnt from a few of them; the text tower and all weights stay.

Jia et al., 2022, "Visual Prompt Tuning" (deep), for CLIP as the authors of MaPLe have it. What ships is an image
encoder with the prompts inside; texts are the base's.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from model_store.modality.text import Tokenizer
from training.methods.parts.deep_prompts import TowerPrompts
from training.methods.parts.prompt_learning import PromptMethod, image_start
from training.methods.parts.shots import ShotOptions
from training.models.towers import DualEncoder

_USUAL_DEPTH = 12


class VptOptions(ShotOptions):
    """n_ctx: prompts of each layer. depth: how many layers have prompts of their own; None: twelve, or all of fewer.

    templates: prompts of the classes, by default the base's; they are also the artifact's.
    """

    n_ctx: int = Field(default=8, ge=1)
    depth: int | None = Field(default=None, ge=1)


def create(options: dict[str, Any]) -> VptMethod:
    return VptMethod(VptOptions.parse(options, method="vpt"))


class VptMethod(PromptMethod):
    name = "vpt"

    def __init__(self, options: VptOptions) -> None:
        super().__init__(options)
        self.vpt = options

    def start(self, model: DualEncoder, tokenizer: Tokenizer) -> TowerPrompts:
        options = self.vpt
        return TowerPrompts(image_start(model, n_ctx=options.n_ctx, depth=options.depth, usual=_USUAL_DEPTH), None)
