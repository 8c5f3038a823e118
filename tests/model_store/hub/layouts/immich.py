"""The two layouts of immich-app's repositories, by open_clip and torch's exporters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tests.model_store.hub.layouts.exporting import export_captured, export_traced, move_weights, write_json
from tests.model_store.hub.layouts.source_models import SourceModel


def write_immich_v1(folder: Path, source: SourceModel) -> None:
    """Graphs of a fixed batch of one: float NCHW pixels, int32 ids, `embedding` normalised in the graph; opset 19."""
    _write_settings(folder, source)
    size, model = source.size_px, source.model
    export_traced(
        model,
        lambda image: model.encode_image(image, normalize=True),
        {"image": torch.randn(1, 3, size, size)},
        ["embedding"],
        folder / "visual" / "model.onnx",
        opset=19,
    )
    export_traced(
        model,
        lambda text: model.encode_text(text, normalize=True),
        {"text": torch.ones(1, source.context_length, dtype=torch.int32)},
        ["embedding"],
        folder / "textual" / "model.onnx",
        opset=19,
    )


def write_immich_v2(folder: Path, source: SourceModel, *, sidecar: str | None = "model.onnx.data") -> None:
    """Graphs of a free batch: uint8 NHWC pixels, mean and std in the graph, int32 ids, normalised; opset 23.

    sidecar: the file beside each graph that holds its weights; None keeps them inside. The project's own graphs fold
    mean and std into the first convolution; here they are nodes before it.
    """
    _write_settings(folder, source)
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.preprocess.mean, source.preprocess.std))
    model, size = source.model, source.size_px

    def image_embedding(image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).float()
        return functional.normalize(model.encode_image((pixels - 255 * mean) / (255 * std)), dim=-1)

    def text_embedding(text: Tensor) -> Tensor:
        return functional.normalize(model.encode_text(text), dim=-1)

    export_captured(
        model,
        image_embedding,
        {"image": torch.randint(256, (2, size, size, 3), dtype=torch.uint8)},
        ["image_embedding"],
        folder / "visual" / "model.onnx",
        opset=23,
    )
    export_captured(
        model,
        text_embedding,
        {"text": source.tokenize(["a photo", "of a dog"]).int()},
        ["text_embedding"],
        folder / "textual" / "model.onnx",
        opset=23,
    )
    if sidecar:
        for tower in ("visual", "textual"):
            move_weights(folder / tower / "model.onnx", sidecar)


def _write_settings(folder: Path, source: SourceModel) -> None:
    write_json(folder / "config.json", source.config)
    write_json(folder / "visual" / "preprocess_cfg.json", dataclasses.asdict(source.preprocess))
    source.hub_tokenizer.save_pretrained(folder / "textual")
