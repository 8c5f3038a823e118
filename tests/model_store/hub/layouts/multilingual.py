"""A model whose text tower is an XLM-R of transformers, as open_clip has it, and its exports."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg
from torch import Tensor
from torch.nn import functional
from transformers import XLMRobertaConfig

from tests.model_store.hub.layouts.exporting import export_traced, write_json
from tests.model_store.hub.layouts.source_models import SourceModel, tiny_clip
from tests.model_store.hub.layouts.tokenizer_files import xlm_roberta

CONTEXT_LENGTH = 77
_WIDTH = 32


def tiny_xlm_roberta(*, seed: int = 0) -> SourceModel:
    """XLM-R of two layers, the mean of the unmasked positions and a linear projection, beside `tiny_clip`'s images."""
    hub_tokenizer = xlm_roberta()
    text = XLMRobertaConfig(
        vocab_size=len(hub_tokenizer),
        hidden_size=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * _WIDTH,
        max_position_embeddings=CONTEXT_LENGTH + 2,  # positions are counted from behind the id of padding
        type_vocab_size=1,
        pad_token_id=hub_tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text.save_pretrained(folder)
        hub_tokenizer.save_pretrained(folder)
        config: dict[str, Any] = {
            "embed_dim": _WIDTH,
            "vision_cfg": tiny_clip().config["vision_cfg"],
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "hf_model_name": folder,
                "hf_model_pretrained": False,
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
            },
        }
        model = open_clip.CustomTextCLIP(**config)
        for parameter in model.text.parameters():
            with torch.no_grad():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        tokenize = HFTokenizer(folder, context_length=CONTEXT_LENGTH)
    config["text_cfg"]["hf_model_name"] = config["text_cfg"]["hf_tokenizer_name"] = "clipworks-test/tiny-xlm-roberta"
    with torch.no_grad():
        model.logit_scale.fill_(np.log(50.0))
    return SourceModel(
        model=model.eval().requires_grad_(False),
        config=config,
        preprocess=PreprocessCfg(size=tiny_clip().size_px),
        tokenize=tokenize,
        hub_tokenizer=hub_tokenizer,
        logit_scale=50.0,
        logit_bias=None,
    )


def write_immich_multilingual(
    folder: Path, source: SourceModel, *, mask: bool = True, free_batch: bool = False, normalized: bool = True
) -> None:
    """immich's folders of a multilingual model: int32 `input_ids` and `attention_mask` [1, L], or `text` alone.

    free_batch: both axes of the ids are free. Without a mask the graph makes its own, of the id of padding.
    """
    write_json(folder / "config.json", source.config)
    write_json(folder / "visual" / "preprocess_cfg.json", dataclasses.asdict(source.preprocess))
    source.hub_tokenizer.save_pretrained(folder / "textual")
    size, model, tower = source.size_px, source.model, source.model.text

    def text_vectors(ids: Tensor, given: Tensor) -> Tensor:
        out = tower.transformer(input_ids=ids, attention_mask=given)
        vectors = tower.proj(tower.pooler(out, given))
        return functional.normalize(vectors, dim=-1) if normalized else vectors

    export_traced(
        model,
        lambda image: model.encode_image(image, normalize=normalized),
        {"image": torch.randn(1, 3, size, size)},
        ["embedding"],
        folder / "visual" / "model.onnx",
        opset=19,
        free_axes={"image": {0: "batch"}, "embedding": {0: "batch"}} if free_batch else None,
    )
    rows = 2 if free_batch else 1
    ids = source.tokenize(["a photo of a dog", "two"])[:rows].int()
    inputs = {"input_ids": ids, "attention_mask": (ids != source.hub_tokenizer.pad_token_id).int()}
    axes = {0: "batch", 1: "length"}
    export_traced(
        model,
        text_vectors if mask else lambda text: model.encode_text(text, normalize=normalized),
        inputs if mask else {"text": ids},
        ["embedding"],
        folder / "textual" / "model.onnx",
        opset=19,
        free_axes={**dict.fromkeys(inputs if mask else ("text",), axes), "embedding": {0: "batch"}}
        if free_batch
        else None,
    )
