"""Smaller variants of a verified fp32 graph: fp16 for GPUs, and statically calibrated int8 for CPUs."""

# pyright: basic
# (onnx and onnxruntime.quantization come without types)
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_store.precisions.smoothing import peak_ratios, smooth_layer_norms

QUANTIZED_OPS = ("MatMul", "Gemm", "Conv")
DEPTHWISE_FROM = 0.5
_BIG_BYTES = 1_500_000_000


class NothingToQuantise(ValueError):
    """An int8 variant would hold no int8."""


class _Batches(CalibrationDataReader):
    def __init__(self, name: str, batches: Sequence[NDArray[Any]]) -> None:
        self._feeds: Iterator[dict[str, NDArray[Any]]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, NDArray[Any]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self._feeds, None)


def write_fp16(source: Path, target: Path) -> tuple[Path, ...]:
    """Convert weights and arithmetic to fp16; the graph's inputs and outputs keep their types."""
    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    return _save(model, target)


def write_int8(
    source: Path, target: Path, *, input_name: str, batches: Sequence[NDArray[Any]], keep_fp32: float = 0.0
) -> tuple[Path, ...]:
    """Quantise products with weights, and convolutions; ranges come from `batches` and are fixed for ever.

    Fixed ranges make a row's answer independent of its company, which dynamic int8 is not. What keeps fidelity
    (docs/export.md has the numbers): channels of layer norms are evened out first; products of two activations
    (attention), the stem convolution and the last projection stay fp32; results of products are not rounded again.

    Raises:
        NothingToQuantise: the graph has no product or convolution but those that stay fp32.

    keep_fp32: share that stays fp32: of the products those whose input has the widest range for its size, of the
    convolutions the first ones (a small convolutional trunk has most of its error there: docs/export.md). From a share
    of DEPTHWISE_FROM on, depthwise convolutions come before the others: their channels differ most in range, and they
    are a small part of the work.
    """
    model = onnx.load(source)
    del model.graph.value_info[:]  # the exporter's shapes of inner tensors contradict the quantiser's for RN50
    _mark_preprocessed(model)
    smooth_layer_norms(model, {input_name: batches})
    ratios = peak_ratios(model, {input_name: batches}) if keep_fp32 else {}
    outer = _outer_nodes(model)
    inner = sorted((node for node in ratios if node not in outer), key=lambda node: ratios[node], reverse=True)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.name not in outer]
    if keep_fp32 >= DEPTHWISE_FROM:
        convolutions.sort(key=lambda node: not _is_depthwise(node))
    excluded = [
        *outer,
        *inner[: round(keep_fp32 * len(inner))],
        *(node.name for node in convolutions[: round(keep_fp32 * len(convolutions))]),
    ]
    with tempfile.TemporaryDirectory() as name:
        smoothed = Path(name) / "smoothed.onnx"
        big = len(_save(model, smoothed)) > 1
        del model
        quantize_static(
            smoothed,
            target,
            _Batches(input_name, batches),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(QUANTIZED_OPS),
            nodes_to_exclude=excluded,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=big,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load(target, load_external_data=False).graph.node):
        raise NothingToQuantise("no product or convolution is left to quantise: it would be the fp32 graph again")
    data = target.with_name(target.name + ".data")
    return (target, data) if data.exists() else (target,)


def _outer_nodes(model: onnx.ModelProto) -> list[str]:
    """The stem convolution and the last projection: a thirtieth of the work, a third of the error."""
    nodes = [node for node in model.graph.node if node.op_type in QUANTIZED_OPS]
    return [node.name for node in nodes[:1] if node.op_type == "Conv"] + [node.name for node in nodes[-1:]]


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def _mark_preprocessed(model: onnx.ModelProto) -> None:
    """Stop the quantiser's advice to run its own optimiser first; the exporter has optimised already."""
    entry = model.metadata_props.add()
    entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"


def _save(model: onnx.ModelProto, target: Path) -> tuple[Path, ...]:
    if model.ByteSize() < _BIG_BYTES:
        onnx.save(model, target)
        return (target,)
    data = target.with_name(target.name + ".data")
    onnx.save(model, target, save_as_external_data=True, location=data.name)
    return (target, data)
