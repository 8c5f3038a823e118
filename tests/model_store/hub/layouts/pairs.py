"""Layouts of two graphs side by side: fastembed's two repositories, and flat pairs of files."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.model_store.hub.layouts.exporting import export_traced, write_json
from tests.model_store.hub.layouts.source_models import SourceModel
from tests.model_store.hub.layouts.transformers_models import image_processor, transformers_model


def write_fastembed_pair(vision: Path, text: Path, source: SourceModel) -> None:
    """Two repositories of one model, each with model.onnx at its root: `image_embeds`; `text_embeds` with a mask."""
    model = transformers_model(source)
    for folder in (vision, text):
        model.config.save_pretrained(folder)
    image_processor(source).save_pretrained(vision)
    source.hub_tokenizer.save_pretrained(text)
    export_traced(
        model,
        lambda pixel_values: model.get_image_features(pixel_values).pooler_output,
        {"pixel_values": torch.randn(2, 3, source.size_px, source.size_px)},
        ["image_embeds"],
        vision / "model.onnx",
        opset=14,
        free_axes={"pixel_values": {0: "batch_size"}, "image_embeds": {0: "batch_size"}},
    )
    ids = source.tokenize(["a photo of a dog", "two"])
    axes = {0: "batch_size", 1: "sequence_length"}
    export_traced(
        model,
        lambda ids, mask: model.get_text_features(ids, attention_mask=mask).pooler_output,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        ["text_embeds"],
        text / "model.onnx",
        opset=14,
        free_axes={"input_ids": axes, "attention_mask": axes, "text_embeds": {0: "batch_size"}},
    )


def write_flat_pair(folder: Path, source: SourceModel, *, stem: str = "onnx32-open_clip-ViT-B-32-tiny") -> None:
    """STEM-visual.onnx and STEM-textual.onnx with a free batch axis, open_clip's configuration and tokenizer.json."""
    model = source.model
    config = {
        "mean": list(source.preprocess.mean),
        "std": list(source.preprocess.std),
        "interpolation": source.preprocess.interpolation,
        "resize_mode": source.preprocess.resize_mode,
    }
    write_json(folder / "open_clip_config.json", {"model_cfg": source.config, "preprocess_cfg": config})
    source.hub_tokenizer.save_pretrained(folder)
    export_traced(
        model,
        model.encode_image,
        {"input": torch.randn(2, 3, source.size_px, source.size_px)},
        ["output"],
        folder / f"{stem}-visual.onnx",
        opset=16,
        free_axes={"input": {0: "batch_size"}, "output": {0: "batch_size"}},
    )
    export_traced(
        model,
        model.encode_text,
        {"input": source.tokenize(["a photo of a dog", "two"])},
        ["output"],
        folder / f"{stem}-textual.onnx",
        opset=16,
        free_axes={"input": {0: "batch_size"}, "output": {0: "batch_size"}},
    )
