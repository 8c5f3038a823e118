"""Smaller files for the same answers: a model rounded to what its files hold, and files that hold no more than that."""

# torch gives every submodule and buffer the type Tensor | Module.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from model_store.errors import ExportRefused
from model_store.graph import Graph
from model_store.manifest import GraphSpec, Role
from training.aligned_config import AlignedConfig, Storage, TableStorage
from training.exporting.shared_weights import share_weights
from training.models.aligned import AlignedDualEncoder
from training.models.bert import FactorisedTable

_TOWERS: Mapping[str, tuple[Role, ...]] = {
    "image_weights.data": ("image_encoder", "dense_encoder"),
    "text_weights.data": ("text_encoder",),
}
_SAME = 1e-4  # of the largest component
_LEAST_ROUNDED = 256  # numbers; norms, biases and scalars cost nothing and stay as they are
_LARGEST_HALF = 65504.0
_SCALE_DIGITS = 2.0**11
_SILENT = 1e-6


class StoredTable(nn.Module):
    """Token embeddings in half precision, or in 8 bits with a scale for each token: ids [...] -> float [..., W]."""

    def __init__(self, rows: Tensor, kind: TableStorage) -> None:
        super().__init__()
        if kind == "int8":
            scale = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
            self.register_buffer("rows", (rows / scale).round().to(torch.int8))
            self.register_buffer("scale", scale)
        else:
            self.register_buffer("rows", rows.half())
            self.scale = None

    def forward(self, ids: Tensor) -> Tensor:
        found = nn.functional.embedding(ids, self.rows).float()
        return found if self.scale is None else found * nn.functional.embedding(ids, self.scale)


def as_stored(model: AlignedDualEncoder, config: AlignedConfig) -> tuple[AlignedDualEncoder, dict[str, Tensor]]:
    """A copy of `model` rounded to what its files will hold, and its weights by name, for fingerprints.

    Raises:
        ExportRefused: folding its norms changes its answers, or a number is beyond the range of half precision.
    """
    model = copy.deepcopy(model).eval()
    if config.storage != "fp32":
        pixels = torch.randint(0, 256, (2, *[config.image.size_px] * 2, 3), dtype=torch.uint8, generator=_seeded())
        with torch.no_grad():
            before = model.encode_image(pixels)
            fold_norms(model.trunk)
            off = float((model.encode_image(pixels) - before).abs().max() / before.abs().max().clamp(min=1e-30))
        if not off <= _SAME:
            raise ExportRefused(f"folding the norms of {config.image.trunk} changes its answers by {off:.1e}")
        round_to_half(model)
        if config.storage == "int8":
            for part in model.image_parts():
                round_to_int8(part)
    if config.text.matrices == "int8":
        round_to_int8(model.text)
    rows = store_table(model.text, config.text.table)
    table = "text.tokens.table" if isinstance(model.text.tokens, FactorisedTable) else "text.tokens"
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{table}.")}
    return model, {**state, f"{table}.weight": rows}


def round_to_half(module: nn.Module) -> None:
    """Round every large parameter to half precision, in place. Norms are folded before: the exporter would fold them
    afterwards, and make numbers of them that half precision does not hold.

    Raises:
        ExportRefused: a parameter is beyond the range of half precision.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.numel() >= _LEAST_ROUNDED:
                if not parameter.abs().max() <= _LARGEST_HALF:
                    raise ExportRefused(f"{name} holds numbers beyond half precision: it cannot be stored as fp16")
                parameter.copy_(parameter.half().float())


def round_to_int8(module: nn.Module) -> None:
    """Round the weights of every linear layer and convolution to 8 bits with a scale for each output, in place.

    Scales are rounded up to 11 binary digits, so that their products with small integers are exact. Outputs that are
    silent beside the layer's others become 0: a quantiser could not scale them (pretrained trunks have some).
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                inputs = tuple(range(1, layer.weight.ndim))
                loudest = layer.weight.abs().amax(dim=inputs, keepdim=True)
                layer.weight[(loudest <= _SILENT * loudest.max()).flatten()] = 0
                mantissa, exponent = torch.frexp(layer.weight.abs().amax(dim=inputs, keepdim=True) / 127)
                scale = torch.ldexp((mantissa * _SCALE_DIGITS).ceil() / _SCALE_DIGITS, exponent)
                scale[scale == 0] = 1
                layer.weight.copy_((layer.weight / scale).round().clamp(-127, 127) * scale)


def fold_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place; an activation behind the norm stays.

    A norm belongs to the convolution that its parent lists before it, which is so in the networks of timm; the caller
    has to compare answers.
    """
    for parent in list(module.modules()):
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                before.weight, before.bias = fuse_conv_bn_weights(
                    before.weight,
                    before.bias,
                    child.running_mean,
                    child.running_var,
                    child.eps,
                    child.weight,
                    child.bias,
                )
                # timm's norms bring their activation with them.
                setattr(parent, name, getattr(child, "act", None) or nn.Identity())
            before = child


def store_table(tower: nn.Module, kind: TableStorage) -> Tensor:
    """Keep the token embeddings of `tower.tokens`, or the table that is one of their factors, as `kind`; returns the
    rows that they then stand for, in fp32."""
    owner, name = (tower.tokens, "table") if isinstance(tower.tokens, FactorisedTable) else (tower, "tokens")
    table = getattr(owner, name)
    if kind == "fp32":
        return table.weight.detach()
    stored = StoredTable(table.weight.detach(), kind)
    setattr(owner, name, stored)
    with torch.no_grad():
        return stored(torch.arange(table.num_embeddings, device=table.weight.device))


def keep_compact(
    graphs: list[GraphSpec], folder: Path, storage: Storage, *, feeds: Mapping[Role, NDArray[Any]]
) -> list[GraphSpec]:
    """Put the weights of each tower's graphs in `folder` into one file, each array once, in half precision or in 8 bits
    where storage is not "fp32" and no number changes; graphs of precision fp16 are left alone. Returns the changed
    entries.

    feeds: an input for each role, on which every graph answers as before, bit by bit.

    Raises:
        ExportRefused: it does not.
    """
    found: dict[str, GraphSpec] = {}
    for file, roles in _TOWERS.items():
        held = [graph for graph in graphs if graph.role in roles and graph.precision != "fp16"]
        if not held:
            continue
        before = [_answers(graph, folder, feeds) for graph in held]
        old = {name for graph in held for name in graph.external_files} - {file}
        share_weights(folder, tuple(graph.file for graph in held), file, smaller=storage != "fp32")
        for name in old:
            (folder / name).unlink(missing_ok=True)
        for graph, expected in zip(held, before, strict=True):
            after = _answers(graph, folder, feeds)
            if any(not np.array_equal(after[name], expected[name]) for name in expected):
                raise ExportRefused(f"{graph.file} answers otherwise since its weights lie in {file}")
            found[graph.file] = graph.model_copy(update={"external_files": (file,)})
    return [found.get(graph.file, graph) for graph in graphs]


def _answers(graph: GraphSpec, folder: Path, feeds: Mapping[Role, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return Graph.open(folder / graph.file, graph).run({graph.inputs[0].name: feeds[graph.role]})


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
