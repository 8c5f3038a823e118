"""Torch modules that are exported as they stand: uint8 pixels or token ids in, un-normalised vectors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from model_store.errors import ExportRefused
from model_store.manifest import ImageSpec, TensorSpec, TextSpec
from training.models.pixels import PixelNormalize

# Version of what the graphs compute from weights; part of every fingerprint. Raise it when an answer would change.
GRAPH_RECIPE = "uint8-nhwc/1"
EXTERNAL_DATA_BYTES = 1_500_000_000  # one protobuf file ends at 2 GB
MAX_BATCH = 65_536
CAUSAL_POOLS = ("argmax", "eos", "first")  # what these read does not move when padding is cut


class ImageGraph(nn.Module):
    """An open_clip image tower behind the pixel normalisation: uint8 [B, H, W, 3] -> float32 [B, D]."""

    def __init__(self, visual: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = PixelNormalize(mean, std)
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.visual(self.normalize(pixels))
        return output[0] if isinstance(output, tuple) else output


class TextGraph(nn.Module):
    """An open_clip text tower: int64 [B, L] -> float32 [B, D].

    open_clip adds the whole position table and the whole mask, so it only takes L = context length. Here both are
    cut to L: with causal attention a token sees nothing to its right, so cutting padding changes no bit of meaning.
    Takes a CLIP (whose text parts lie on the model) or a CustomTextCLIP (whose parts lie on `.text`).
    """

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    transformer: nn.Module
    ln_final: nn.Module
    text_projection: nn.Module | Tensor | None
    attn_mask: Tensor | None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        tower: Any = getattr(model, "text", model)
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)
        self.pool_type = str(getattr(tower, "text_pool_type", None) or tower.pool_type)
        self.eos_id = int(getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", 0) or 0)
        self.context_length = int(tower.context_length)
        self.vocab_size = int(tower.vocab_size)
        if getattr(tower, "cls_emb", None) is not None:
            raise ExportRefused("text tower appends a class token (CoCa): its length cannot be cut, not supported")
        if getattr(tower, "use_pad_mask", False):
            raise ExportRefused("text tower masks padding by value: not supported")

    @property
    def dynamic_length(self) -> bool:
        """True when rows may be cut at their longest real length without changing any answer."""
        return self.attn_mask is not None and self.pool_type in CAUSAL_POOLS

    def forward(self, ids: Tensor) -> Tensor:
        return self._projected(self._pool(self._states(self.token_embedding(ids)), ids))

    def end_of(self, ids: Tensor) -> Tensor:
        """Where each row of int64 [B, L] has its end token: int64 [B].

        Raises:
            ExportRefused: a tower that reads another place.
        """
        if self.pool_type == "argmax":
            return ids.argmax(dim=-1)
        if self.pool_type == "eos":
            return (ids == self.eos_id).int().argmax(dim=-1)
        raise ExportRefused(f"text pooling {self.pool_type!r} gives no single vector; argmax, eos, first or last do")

    def token_vectors(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, W], behind the last norm."""
        return self._states(self.token_embedding(ids))

    def read(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Embedded tokens [B, L, W], each row with its end token at `end` int64 [B] -> [B, D]."""
        return self._projected(_at(self._states(tokens), end))

    def _states(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = tokens + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        return self.ln_final(self.transformer(x, attn_mask=mask))

    def _projected(self, x: Tensor) -> Tensor:
        if self.text_projection is None:
            return x
        if isinstance(self.text_projection, nn.Module):
            return self.text_projection(x)
        return x @ self.text_projection

    def _pool(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.pool_type == "first":
            return x[:, 0]
        if self.pool_type == "last":
            return x[:, -1]
        return _at(x, self.end_of(ids))


def _at(x: Tensor, position: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0], device=x.device), position]


class EncoderGraph(nn.Module):
    """A model's `encode_image` or `encode_text` as a module, for towers that already take uint8 or ids.

    `context_length` is for text encoders that take any length up to it.
    """

    def __init__(self, model: nn.Module, method: str, *, context_length: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.context_length = context_length

    def forward(self, value: Tensor) -> Tensor:
        return getattr(self.model, self.method)(value)


def image_tensors(spec: ImageSpec, dim: int) -> tuple[TensorSpec, TensorSpec]:
    """(input, output) of an image encoder graph."""
    shape = ("batch", spec.height_px, spec.width_px, 3)
    return (
        TensorSpec(name="pixels", dtype="uint8", shape=shape),
        TensorSpec(name="image_embeds", dtype="float32", shape=("batch", dim)),
    )


def text_tensors(spec: TextSpec, dim: int) -> tuple[TensorSpec, TensorSpec]:
    """(input, output) of a text encoder graph."""
    length = "length" if spec.dynamic_length else spec.context_length
    return (
        TensorSpec(name="ids", dtype="int64", shape=("batch", length)),
        TensorSpec(name="text_embeds", dtype="float32", shape=("batch", dim)),
    )


def write_graph(module: nn.Module, tensors: tuple[TensorSpec, TensorSpec], path: Path) -> tuple[Path, ...]:
    """Write `module` as ONNX with the free axes of its input tensor dynamic; returns the files, the graph first.

    Weights go into a second file `<path>.data` only when they come near protobuf's 2 GB.

    Raises:
        ExportRefused: the exporter cannot trace the module.
    """
    source, target = tensors
    shape = [axis if isinstance(axis, int) else 2 + position for position, axis in enumerate(source.shape)]
    example = torch.ones(shape, dtype=getattr(torch, source.dtype))
    free = {
        position: torch.export.Dim(axis, min=1, max=MAX_BATCH if position == 0 else _max_length(module))
        for position, axis in enumerate(source.shape)
        if isinstance(axis, str)
    }
    program = export_program(module, {source.name: example}, output_names=(target.name,), free_axes=[free])
    return save_program(program, module, path)


def save_program(program: torch.onnx.ONNXProgram, module: nn.Module, path: Path) -> tuple[Path, ...]:
    """Write the traced `module`; returns the files, the graph first."""
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    external = size > EXTERNAL_DATA_BYTES
    program.save(path, external_data=external)
    return (path, path.with_name(path.name + ".data")) if external else (path,)


def export_program(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    *,
    output_names: tuple[str, ...],
    free_axes: Sequence[Mapping[int, Any]],
) -> torch.onnx.ONNXProgram:
    """Trace `module` on the examples of its inputs, by their names in order.

    `free_axes` maps, for each of them, positions of its axes to torch.export dimensions.

    Raises:
        ExportRefused: the exporter cannot trace the module.
    """
    names = ", ".join(output_names)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=list(output_names),
                dynamic_shapes=tuple(dict(axes) for axes in free_axes),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        first = str(error).strip().splitlines()[0]
        raise ExportRefused(f"cannot export the graph that gives {names}: {first[:300]}") from error
    if program is None:
        raise ExportRefused(f"the exporter returned no program for {names}")
    if _free_convolutions(program.model):
        program.optimize()
    _strip_traces(program.model)
    return program


def _free_convolutions(model: onnx_ir.Model) -> bool:
    """Let the sizes of a free grid be read behind a batch norm instead of before it; says whether any was.

    The exporter reads them at the convolution, which then has a second reader, and its norm is not folded into it: the
    graph would be slower, and its weights others than the image encoder's.
    """
    moved = False
    for node in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        before, after = node.inputs[0], node.outputs[0]
        for user, position in tuple(before.uses()) if before is not None else ():
            if user.op_type == "Shape":
                user.replace_input_with(position, after)
                moved = True
    if moved:
        model.graph.sort()
    return moved


def _strip_traces(model: onnx_ir.Model) -> None:
    """Drop what the exporter notes per node: half of a small file, and it names folders of the exporting machine."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        values = [*graph.inputs, *graph.initializers.values()]
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()
            node.doc_string = None
            values.extend(node.outputs)
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None


def _max_length(module: nn.Module) -> int:
    length = getattr(module, "context_length", None)
    if not isinstance(length, int):
        raise ExportRefused("a text module with a free length needs an int attribute context_length")
    return length
