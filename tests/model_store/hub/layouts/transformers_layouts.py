"""Layouts of transformers.js and Optimum: one joint graph or one for each tower, from transformers' own modules.

Optimum's exporter pins transformers below 5 and cannot be installed beside ours: the graphs come from torch.onnx with
its inputs, outputs, free axes and order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, SiglipModel

from tests.model_store.hub.layouts.exporting import Answering, export_traced, move_weights
from tests.model_store.hub.layouts.source_models import SourceModel
from tests.model_store.hub.layouts.transformers_models import image_processor, transformers_model

_PIXEL_AXES = {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"}
_ID_AXES = {0: "batch_size", 1: "sequence_length"}
_OPSET = 14


def write_transformersjs_split(folder: Path, source: SourceModel, *, suffix: str = "") -> None:
    """onnx/vision_model and onnx/text_model: `image_embeds` and `text_embeds` of CLIP, not normalised, without a mask.

    SigLIP's towers have two outputs, and the vector is the second: `last_hidden_state`, `pooler_output`.
    """
    model = _write_settings(folder, source)
    if isinstance(model, CLIPModel):
        image: Any = Answering(model, lambda pixel_values: model.get_image_features(pixel_values).pooler_output)
        text: Any = Answering(model, lambda input_ids: model.get_text_features(input_ids).pooler_output)
        outputs = ["image_embeds"], ["text_embeds"]
    else:
        image = Answering(model, lambda pixel_values: _both_outputs(model.vision_model(pixel_values)))
        text = Answering(model, lambda input_ids: _both_outputs(model.text_model(input_ids)))
        outputs = (["last_hidden_state", "pooler_output"],) * 2
    _export_tower(image, _pixels(source), outputs[0], folder / "onnx" / f"vision_model{suffix}.onnx", _PIXEL_AXES)
    _export_tower(text, _ids(source), outputs[1], folder / "onnx" / f"text_model{suffix}.onnx", _ID_AXES)


def write_transformersjs_joint(folder: Path, source: SourceModel, *, external_data: bool = False) -> None:
    """onnx/model.onnx with both towers, normalised vectors and the scale; external_data: weights in model.onnx_data."""
    model = _write_settings(folder, source)
    path = folder / "onnx" / "model.onnx"
    _export_joint(model, source, path)
    if external_data:
        move_weights(path, "model.onnx_data")


def write_optimum(folder: Path, source: SourceModel) -> None:
    """What `optimum-cli export onnx` leaves: the joint graph as model.onnx in the folder itself."""
    model = _write_settings(folder, source)
    _export_joint(model, source, folder / "model.onnx")


def write_optimum_unprojected(folder: Path, source: SourceModel) -> None:
    """Optimum's `clip_vision_model`: `pooler_output` before the projection, which is no CLIP vector. To be refused."""
    model = _write_settings(folder, source)
    image = Answering(model, lambda pixel_values: _both_outputs(model.vision_model(pixel_values)))
    text = Answering(model, lambda input_ids: _both_outputs(model.text_model(input_ids)))
    outputs = ["last_hidden_state", "pooler_output"]
    _export_tower(image, _pixels(source), outputs, folder / "onnx" / "vision_model.onnx", _PIXEL_AXES)
    _export_tower(text, _ids(source), outputs, folder / "onnx" / "text_model.onnx", _ID_AXES)


def _write_settings(folder: Path, source: SourceModel) -> CLIPModel | SiglipModel:
    model = transformers_model(source)
    model.config.save_pretrained(folder)
    image_processor(source).save_pretrained(folder)
    source.hub_tokenizer.save_pretrained(folder)
    return model


def _export_joint(model: CLIPModel | SiglipModel, source: SourceModel, path: Path) -> None:
    has_mask = isinstance(model, CLIPModel)
    names = ["input_ids", "pixel_values", "attention_mask"] if has_mask else ["input_ids", "pixel_values"]

    def answers(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = model(**dict(zip(names, inputs, strict=True)))
        return out.logits_per_image, out.logits_per_text, out.text_embeds, out.image_embeds

    ids = source.tokenize(["a photo of a dog", "two"])
    example = {"input_ids": ids, **_pixels(source), "attention_mask": torch.ones_like(ids)}
    text, image = "text_batch_size", "image_batch_size"
    export_traced(
        Answering(model, answers),
        {name: example[name] for name in names},
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
        path,
        opset=_OPSET,
        free_axes={
            "input_ids": {0: text, 1: "sequence_length"},
            "pixel_values": {**_PIXEL_AXES, 0: image},
            **({"attention_mask": {0: text, 1: "sequence_length"}} if has_mask else {}),
            "logits_per_image": {0: image, 1: text},
            "logits_per_text": {0: text, 1: image},
            "text_embeds": {0: text},
            "image_embeds": {0: image},
        },
    )


def _export_tower(
    tower: Answering, example: dict[str, Tensor], outputs: list[str], path: Path, axes: dict[int, str]
) -> None:
    (name,) = example
    free_axes = {name: axes, **{output: {0: "batch_size"} for output in outputs}}
    export_traced(tower, example, outputs, path, opset=_OPSET, free_axes=free_axes)


def _both_outputs(answer: Any) -> tuple[Tensor, Tensor]:
    return answer.last_hidden_state, answer.pooler_output


def _pixels(source: SourceModel) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, source.size_px, source.size_px)}


def _ids(source: SourceModel) -> dict[str, Tensor]:
    return {"input_ids": source.tokenize(["a photo of a dog", "two"])}
