"""Small frozen text towers with drawn weights, for methods that put vectors among their tokens."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import torch
from torch import nn

from model_store.modality.text import Tokenizer
from training.aligned_config import BertConfig
from training.config import TextTowerConfig
from training.models.aligned import AlignedDualEncoder
from training.models.bert import BertTower
from training.models.towers import DualEncoder, OpenClipDualEncoder, PixelInput, SmallDualEncoder, TextTower

LENGTH, WIDTH = 16, 12


class TextAlone(SmallDualEncoder):
    """A small text tower; pictures have nothing to do with where tokens stand."""

    def __init__(self, tower: TextTower) -> None:
        nn.Module.__init__(self)
        self.text = tower


def small(tokenizer: Tokenizer, *, embed_dim: int = WIDTH, **changes: object) -> TextAlone:
    settings = {"merges": 2000, "context_length": LENGTH, "width": WIDTH, "layers": 2, "heads": 2, **changes}
    spec = tokenizer.spec
    torch.manual_seed(0)
    config = TextTowerConfig.model_validate({"embedding_std": 1.0, **settings})
    tower = TextTower(config, vocab_size=spec.vocab_size, end_id=spec.end_id or 0, embed_dim=embed_dim)
    if hasattr(tower, "projection"):
        nn.init.normal_(tower.projection.weight)
    return TextAlone(tower.eval().requires_grad_(False))


def open_clips(
    tokenizer: Tokenizer, kind: Callable[..., nn.Module] = open_clip.CLIP, **changes: object
) -> OpenClipDualEncoder:
    model = OpenClipDualEncoder.__new__(OpenClipDualEncoder)
    nn.Module.__init__(model)
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": LENGTH, "vocab_size": tokenizer.spec.vocab_size, "width": WIDTH, "heads": 2, "layers": 2}
    model.clip = kind(embed_dim=10, vision_cfg=vision, text_cfg={**text, **changes}).eval()
    nn.init.normal_(getattr(model.clip, "text", model.clip).token_embedding.weight)
    model.pixel_input = PixelInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model.requires_grad_(False)


class SentencesAlone(AlignedDualEncoder):
    """A small sentence encoder; pictures have nothing to do with where tokens stand."""

    def __init__(self, tower: BertTower) -> None:
        nn.Module.__init__(self)
        self.text = tower


def sentences(tokenizer: Tokenizer, *, table_rank: int | None = None) -> SentencesAlone:
    torch.manual_seed(0)
    shape = BertConfig(width=WIDTH, layers=2, heads=2, hidden=24, norm_epsilon=1e-6, table_rank=table_rank)
    tower = BertTower(shape, vocab_size=tokenizer.spec.vocab_size, context_length=LENGTH)
    nn.init.normal_(tower.positions)
    nn.init.normal_(tower.centre, std=0.1)
    return SentencesAlone(tower.eval().requires_grad_(False))


def models(tokenizer: Tokenizer) -> dict[str, DualEncoder]:
    return {
        "eos": small(tokenizer),
        "eos+bag": small(tokenizer, pool="eos+bag"),
        "open_clip": open_clips(tokenizer),
        "open_clip, text apart": open_clips(tokenizer, open_clip.CustomTextCLIP),
        "bert": sentences(tokenizer),
        "bert, two factors": sentences(tokenizer, table_rank=4),
    }
