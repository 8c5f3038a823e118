"""`python -m training.shipped.regrid FOLDER [--short-px N]`: a dense role for an artifact whose checkpoint is gone.

The image encoder's graph is read back into torch, which is possible where it is a plain convolutional trunk with a mean
head (convolutions, ReLU, additions, one mean, one projection). The dense graph then passes the checks of every
export: compared with the encoder, exported, measured, and given golden cases. Weights, fingerprints and the encoder's
numbers stay what they were; its weights move to the file that both graphs read, so the artifact's build changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from model_store.artifact import Artifact
from model_store.errors import ExportRefused
from model_store.golden import ARRAYS_FILE, CASES_FILE, DENSE_PICTURES, Goldens, dense_tolerance, write_dense_pictures
from model_store.manifest import DenseSpec, Manifest
from model_store.proving import Proof
from model_store.seal import MANIFEST_FILE
from model_store.session import SessionSettings
from model_store.store import copy_to_change, file_entries, replace
from model_store.towers import open_dense_tower, open_tower
from training.exporting.dense import encode_dense
from training.exporting.dense_build import build_dense
from training.models.dense import DenseSource, free_sizes
from training.models.trunks import TOTAL_STRIDE


class TrunkFromGraph(nn.Module):
    """An exported image encoder of the own kind as torch: uint8 [B, H, W, 3] -> features, positions, pooled vector.

    Raises:
        ExportRefused: the graph holds another operator, or does not end in a mean over the grid and a projection.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        model = onnx.load(path)
        self.values = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
        self.nodes = [(node.op_type, list(node.input), node.output[0], _attributes(node)) for node in model.graph.node]
        self.source = model.graph.input[0].name
        if [kind for kind, *_ in self.nodes[-2:]] != ["ReduceMean", "Gemm"]:
            raise ExportRefused(f"{path.name} does not end in a mean and a projection")
        if unknown := sorted({kind for kind, *_ in self.nodes} - set(_KINDS)):
            raise ExportRefused(f"{path.name} holds {', '.join(unknown)}: not a plain convolutional trunk")
        _, mean_inputs, _, mean = self.nodes[-2]
        axes = self.values[mean_inputs[1]].tolist() if len(mean_inputs) > 1 else mean.get("axes")
        if sorted(axis % 4 for axis in axes or ()) != [2, 3] or mean.get("keepdims", 1) != 0:
            raise ExportRefused(f"{path.name}: its mean is not over rows and columns")
        gemm = self.nodes[-1][3]
        if (gemm.get("transA", 0), gemm.get("alpha", 1.0), gemm.get("beta", 1.0)) != (0, 1.0, 1.0):
            raise ExportRefused(f"{path.name}: its projection is scaled")
        self.transposed = bool(gemm.get("transB", 0))
        used = {name for _, inputs, _, _ in self.nodes for name in inputs}
        self.names = {name: f"value_{index}" for index, name in enumerate(self.values) if name in used}
        for name, buffer in self.names.items():
            self.register_buffer(buffer, torch.from_numpy(np.array(self.values[name])))

    def encode(self, pixels: Tensor) -> Tensor:
        """The image encoder itself, [B, D]."""
        return self._projected(self._features(pixels).mean(dim=(2, 3)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, rows, columns, D] and their mean."""
        features = self._features(pixels)
        batch, channels, rows, columns = features.shape
        cells = features.permute(0, 2, 3, 1).reshape(-1, channels)
        positions = self._projected(cells).view(batch, rows, columns, -1)
        return positions, positions.mean(dim=(1, 2))

    def _projected(self, cells: Tensor) -> Tensor:
        weight, bias = (self._value(name) for name in self.nodes[-1][1][1:3])
        return functional.linear(cells, weight if self.transposed else weight.mT, bias)

    def _value(self, name: str) -> Tensor:
        return self.get_buffer(self.names[name])

    def _features(self, pixels: Tensor) -> Tensor:
        known = {self.source: pixels}
        for kind, inputs, output, attributes in self.nodes[:-2]:
            operands = [known[name] if name in known else self._value(name) for name in inputs]
            known[output] = _KINDS[kind](operands, attributes)
        return known[self.nodes[-2][1][0]]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _convolved(operands: Sequence[Tensor], attributes: dict[str, Any]) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise ExportRefused(f"a convolution with uneven padding {attributes['pads']}")
    return functional.conv2d(
        *operands,
        stride=tuple(attributes.get("strides", [1, 1])),
        padding=(top, left),
        dilation=tuple(attributes.get("dilations", [1, 1])),
        groups=attributes.get("group", 1),
    )


_KINDS: dict[str, Any] = {
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
    "Cast": lambda x, a: x[0].to(torch.float32),
    "Div": lambda x, a: x[0] / x[1],
    "Sub": lambda x, a: x[0] - x[1],
    "Add": lambda x, a: x[0] + x[1],
    "Relu": lambda x, a: x[0].relu(),
    "Conv": _convolved,
    "ReduceMean": None,
    "Gemm": None,
}


def add_dense_role(artifact: Artifact, *, short_px: int | None = None) -> Manifest:
    """Write the dense graph into an artifact's own folder, in place, and prove the whole on its golden cases.

    Raises:
        ExportRefused: it has a dense role already, or its image encoder cannot be read back.
        GoldenError: it is no longer the model that was published; nothing was changed then.
    """
    manifest = artifact.manifest
    found = manifest.graph("image_encoder", "fp32")
    if manifest.dense is not None or found is None or manifest.image is None or found.external_files:
        raise ExportRefused(f"{artifact.reference} has a dense role already, or no fp32 image encoder of its own")
    spec = _resized(free_sizes(manifest.image, stride_px=TOTAL_STRIDE, pooling="mean"), short_px)
    with copy_to_change(artifact) as staged:
        trunk = TrunkFromGraph(staged / found.file).eval()
        source = DenseSource(module=trunk, spec=spec)
        built = build_dense(source, _Encoder(trunk), found, Goldens(artifact).arrays["prepared"], staged)
        graphs = tuple(built.image if graph is found else graph for graph in manifest.graphs)
        return _replace(artifact, staged, source, {"graphs": (*graphs, built.graph)})


def change_size(artifact: Artifact, short_px: int) -> Manifest:
    """Let an artifact look at pictures at another default size, in place; graphs and weights stay as they are.

    Raises:
        ExportRefused: it has no dense role of free sizes, or its image encoder cannot be read back.
        GoldenError: it is no longer the model that was published; nothing was changed then.
    """
    manifest = artifact.manifest
    encoder = manifest.graph("image_encoder", "fp32")
    if manifest.dense is None or manifest.dense.sizes != "free" or encoder is None:
        raise ExportRefused(f"{artifact.reference} has no dense role of its own that takes other sizes")
    with copy_to_change(artifact) as staged:
        trunk = TrunkFromGraph(staged / encoder.file).eval()
        return _replace(artifact, staged, DenseSource(module=trunk, spec=_resized(manifest.dense, short_px)), {})


def _resized(spec: DenseSpec, short_px: int | None) -> DenseSpec:
    """The longest side stays: it is the limit for requests that ask for more."""
    if short_px is None:
        return spec
    try:
        return DenseSpec.model_validate(spec.model_dump() | {"short_px": short_px})
    except ValidationError as error:
        raise ExportRefused(f"short_px {short_px}: {error.errors()[0]['msg']}") from error


def _replace(artifact: Artifact, staged: Path, source: DenseSource, change: dict[str, Any]) -> Manifest:
    """Give the staged copy goldens and manifest for `source`, prove it, and put it in the artifact's place."""
    _write_goldens(staged, source)
    update = {**change, "dense": source.spec, "files": file_entries(staged)}
    changed = Manifest.model_validate(artifact.manifest.model_copy(update=update).model_dump())
    _prove(Artifact(manifest=changed, folder=staged, base=artifact.base, writable=artifact.writable))
    replace(artifact, staged, changed)
    return changed


class _Encoder(nn.Module):
    def __init__(self, trunk: TrunkFromGraph) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: Tensor) -> Tensor:
        return self.trunk.encode(pixels)


def _write_goldens(folder: Path, source: DenseSource) -> None:
    pictures, arrays = write_dense_pictures(folder, source.spec, encode_dense(source))
    cases = json.loads((folder / CASES_FILE).read_text(encoding="utf-8"))
    cases["dense"] = [case.model_dump(mode="json") for case in pictures]
    cases["tolerances"]["dense_encoder"] = {"fp32": dense_tolerance().model_dump(mode="json")}
    (folder / CASES_FILE).write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with np.load(folder / ARRAYS_FILE, allow_pickle=False) as stored:
        kept = {name: stored[name] for name in stored.files if not name.startswith("dense_")}
    with (folder / ARRAYS_FILE).open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **kept, **arrays)


def _prove(artifact: Artifact) -> None:
    """The image encoder against its old golden cases, the dense graph against its new ones."""
    settings, proof = SessionSettings(intra_threads=1), Proof(artifact)
    proof.check_inputs(artifact.tokenizer())
    proof.check_tower("image_encoder", open_tower(artifact, "image_encoder", "fp32", settings), {}, batch_size=4)
    proof.check_dense(open_dense_tower(artifact, "fp32", settings))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.regrid", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path, help="folder of one artifact, with its manifest.json")
    parser.add_argument("--short-px", type=int, help="size at which pictures are looked at by default")
    chosen = parser.parse_args(arguments)
    manifest = Manifest.model_validate_json((chosen.folder / MANIFEST_FILE).read_bytes())
    artifact = Artifact(manifest=manifest, folder=chosen.folder, base=None, writable=False)
    if manifest.dense is not None and chosen.short_px is not None:
        change_size(artifact, chosen.short_px)
        sys.stdout.write(f"{artifact.reference}: looks at pictures at {chosen.short_px} px now\n")
        return
    changed = add_dense_role(artifact, short_px=chosen.short_px)
    sys.stdout.write(f"{changed.name}@{changed.version}: dense_encoder added, pictures {', '.join(DENSE_PICTURES)}\n")


if __name__ == "__main__":
    main()
