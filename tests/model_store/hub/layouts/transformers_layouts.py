"""Layouts of transformers.js and Optimum: one joint graph or one for each tower, from transformers' own modules.

Optimum's exporter pins transformers below 5 and cannot be installed beside ours: the graphs come from torch.onnx.
optimum_interface.json holds what optimum-onnx 0.1.0 wrote for the same tiny models, and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, SiglipModel

from tests.model_store.hub.layouts.exporting import Answer, export_traced, move_weights
from tests.model_store.hub.layouts.source_models import SourceModel
from tests.model_store.hub.layouts.transformers_models import image_processor, transformers_model

_AXES = {
    "pixel_values": {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"},
    "input_ids": {0: "batch_size", 1: "sequence_length"},
}
_TRANSFORMERSJS_OPSET, _OPTIMUM_OPSET = 14, 18


def write_transformersjs_split(folder: Path, source: SourceModel, *, suffix: str = "") -> None:
    """onnx/vision_model and onnx/text_model: `image_embeds` and `text_embeds` of CLIP, not normalised, without a mask.

    SigLIP's towers have two outputs, and the vector is the second: `last_hidden_state`, `pooler_output`.
    """
    model = _write_settings(folder, source)
    if isinstance(model, SiglipModel):
        return _export_poolers(model, source, folder / "onnx", suffix)
    image_graph, text_graph = (folder / "onnx" / f"{tower}_model{suffix}.onnx" for tower in ("vision", "text"))
    _export_tower(
        model,
        lambda pixel_values: model.get_image_features(pixel_values).pooler_output,
        _pixels(source),
        ["image_embeds"],
        image_graph,
    )
    _export_tower(
        model,
        lambda input_ids: model.get_text_features(input_ids).pooler_output,
        _ids(source),
        ["text_embeds"],
        text_graph,
    )
    return None


def write_transformersjs_joint(folder: Path, source: SourceModel, *, external_data: bool = False) -> None:
    """onnx/model.onnx with both towers, normalised vectors and the scale; external_data: weights in model.onnx_data."""
    model = _write_settings(folder, source)
    path = folder / "onnx" / "model.onnx"
    _export_joint(model, source, path, opset=_TRANSFORMERSJS_OPSET)
    if external_data:
        move_weights(path, "model.onnx_data")


def write_optimum(folder: Path, source: SourceModel) -> None:
    """What `optimum-cli export onnx` leaves: the joint graph as model.onnx in the folder itself."""
    model = _write_settings(folder, source)
    _export_joint(model, source, folder / "model.onnx", opset=_OPTIMUM_OPSET)


def write_optimum_unprojected(folder: Path, source: SourceModel) -> None:
    """Optimum's `clip_vision_model`: `pooler_output` before the projection, which is no CLIP vector. To be refused."""
    _export_poolers(_write_settings(folder, source), source, folder / "onnx", "")


def _write_settings(folder: Path, source: SourceModel) -> CLIPModel | SiglipModel:
    model = transformers_model(source)
    model.config.save_pretrained(folder)
    image_processor(source).save_pretrained(folder)
    source.hub_tokenizer.save_pretrained(folder)
    return model


def _export_joint(model: CLIPModel | SiglipModel, source: SourceModel, path: Path, *, opset: int) -> None:
    has_mask = isinstance(model, CLIPModel)
    names = ["input_ids", "pixel_values", "attention_mask"] if has_mask else ["input_ids", "pixel_values"]
    own_forward = model.forward

    def answers(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = own_forward(**dict(zip(names, inputs, strict=True)))
        return out.logits_per_image, out.logits_per_text, out.text_embeds, out.image_embeds

    ids = source.tokenize(["a photo of a dog", "two"])
    example = {"input_ids": ids, **_pixels(source), "attention_mask": torch.ones_like(ids)}
    text, image = "text_batch_size", "image_batch_size"
    export_traced(
        model,
        answers,
        {name: example[name] for name in names},
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
        path,
        opset=opset,
        free_axes={
            "input_ids": {0: text, 1: "sequence_length"},
            "pixel_values": {**_AXES["pixel_values"], 0: image},
            **({"attention_mask": {0: text, 1: "sequence_length"}} if has_mask else {}),
            "logits_per_image": {0: image, 1: text},
            "logits_per_text": {0: text, 1: image},
            "text_embeds": {0: text},
            "image_embeds": {0: image},
        },
    )


def _export_poolers(model: CLIPModel | SiglipModel, source: SourceModel, folder: Path, suffix: str) -> None:
    """Both towers with the outputs of their transformers: `last_hidden_state` and `pooler_output`."""
    outputs = ["last_hidden_state", "pooler_output"]
    vision, text = model.vision_model, model.text_model
    _export_tower(vision, _both_of(vision.forward), _pixels(source), outputs, folder / f"vision_model{suffix}.onnx")
    _export_tower(text, _both_of(text.forward), _ids(source), outputs, folder / f"text_model{suffix}.onnx")


def _both_of(forward: Callable[[Tensor], Any]) -> Answer:
    def both(given: Tensor) -> tuple[Tensor, Tensor]:
        answer = forward(given)
        return answer.last_hidden_state, answer.pooler_output

    return both


def _export_tower(model: nn.Module, answer: Answer, example: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    (name,) = example
    free_axes = {name: _AXES[name], **{output: {0: "batch_size"} for output in outputs}}
    export_traced(model, answer, example, outputs, path, opset=_TRANSFORMERSJS_OPSET, free_axes=free_axes)


def _pixels(source: SourceModel) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, source.size_px, source.size_px)}


def _ids(source: SourceModel) -> dict[str, Tensor]:
    return {"input_ids": source.tokenize(["a photo of a dog", "two"])}
