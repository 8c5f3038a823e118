"""Export of the dense role: its graph, the proof that it is the torch module, and what company changes."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.errors import ExportRefused
from model_store.fidelity import measure
from model_store.golden import EncodeDense, dense_goldens
from model_store.graph import Graph
from model_store.manifest import GraphSpec, TensorSpec
from model_store.precisions.measure import INVARIANCE_TOLERANCE
from model_store.probe import probe
from model_store.towers import DenseTower, DenseVectors
from training.exporting.graphs import EXTERNAL_DATA_BYTES, MAX_BATCH, export_program
from training.models.dense import DenseSource
from training.models.dense_towers import NoPositions

DENSE_RELATIVE_MAX = 1e-5  # of the longest vector, torch against ONNX
_SAME_POOLED = 1e-4  # relative; the pooled vector of the dense run against the image encoder's, both in torch
_SAME_MEAN = 1e-5
_COMPANY = (2, 5)
DENSE_FILE = "dense_encoder.fp32.onnx"


def check_module(source: DenseSource, image: nn.Module, pixels: NDArray[np.uint8]) -> None:
    """Compare the dense module with the image encoder on `pixels` uint8 [N, H, W, 3] of the encoder's own size.

    Raises:
        ExportRefused: the pooled vectors differ, or positions that should average to them do not.
    """
    batch = torch.from_numpy(pixels)
    try:
        with torch.inference_mode():
            (positions, pooled), expected = source.module(batch), image(batch)
    except NoPositions as error:
        raise ExportRefused(f"no vector for a position: {error}") from error
    if pooled.shape != expected.shape or not (off := _relative(pooled, expected)) <= _SAME_POOLED:
        raise ExportRefused(
            f"the pooled vector of the dense run is not the image encoder's: {list(pooled.shape)} against "
            f"{list(expected.shape)}" + (f", {off:.1e} apart" if pooled.shape == expected.shape else "")
        )
    if source.spec.pooling in ("mean", "flat") and not (
        (off := _relative(positions.mean(dim=(1, 2)), pooled)) <= _SAME_MEAN
    ):
        raise ExportRefused(f"the positions' mean is {off:.1e} from the pooled vector")


def encode_dense(source: DenseSource) -> EncodeDense:
    """The torch module as the reference of golden cases."""

    def encode(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            positions, pooled = source.module(torch.from_numpy(pixels))
        return positions.float().numpy(), pooled.float().numpy()

    return encode


def write_dense(source: DenseSource, folder: Path) -> GraphSpec:
    """Write the graph into `folder`; its axes are free where the sizes are. Nothing is measured yet.

    Raises:
        ExportRefused: the exporter cannot trace the module.
    """
    spec = source.spec
    if spec.height_px is None or spec.width_px is None:
        example = (2, spec.short_px, spec.short_px + 2 * spec.stride_px, 3)
        most = spec.max_long_px // spec.stride_px
        rows, columns = (torch.export.Dim(name, min=2, max=most) for name in ("rows", "columns"))
        axes: dict[int, Any] = {1: spec.stride_px * rows, 2: spec.stride_px * columns}
        shape: tuple[int | str, ...] = ("batch", "height", "width", 3)
        grid: tuple[int | str, int | str] = ("rows", "columns")
    else:
        example, axes = (2, spec.height_px, spec.width_px, 3), {}
        shape = ("batch", spec.height_px, spec.width_px, 3)
        grid = (spec.height_px // spec.stride_px, spec.width_px // spec.stride_px)
    pixels = torch.ones(example, dtype=torch.uint8)
    axes[0] = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    program = export_program(
        source.module, {"pixels": pixels}, output_names=("dense_embeds", "image_embeds"), free_axes=[axes]
    )
    size = sum(p.numel() * p.element_size() for p in source.module.parameters())
    program.save(folder / DENSE_FILE, external_data=size > EXTERNAL_DATA_BYTES)
    with torch.inference_mode():
        dim = source.module(pixels[:1])[1].shape[1]
    return GraphSpec(
        role="dense_encoder",
        precision="fp32",
        file=DENSE_FILE,
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=shape),),
        outputs=(
            TensorSpec(name="dense_embeds", dtype="float32", shape=("batch", *grid, dim)),
            TensorSpec(name="image_embeds", dtype="float32", shape=("batch", dim)),
        ),
        batch_invariant=False,
        batch_difference=0.0,
    )


def measure_dense(source: DenseSource, draft: GraphSpec, folder: Path) -> GraphSpec:
    """Compare the written graph with torch on the golden pictures, and a picture alone with itself in company.

    Raises:
        ExportRefused: it crashes, or is not the module within DENSE_RELATIVE_MAX.
    """
    pictures, path = dense_goldens(source.spec), folder / draft.file
    first = next(iter(pictures.values()))
    probe(path, draft, feeds={"pixels": first})
    tower, torch_run = DenseTower(Graph.open(path, draft)), encode_dense(source)
    found: list[NDArray[np.float32]] = []
    expected: list[NDArray[np.float32]] = []
    for pixels in pictures.values():
        vectors, (positions, pooled) = tower(pixels), torch_run(pixels)
        for got, want in ((vectors.positions, positions), (vectors.pooled, pooled)):
            off = float(np.abs(got - want).max() / max(float(np.linalg.norm(want, axis=-1).max()), 1e-30))
            if got.shape != want.shape or not off <= DENSE_RELATIVE_MAX:
                raise ExportRefused(
                    f"dense_encoder: the fp32 graph is not the torch model: {off:.1e} of the longest vector apart, at "
                    f"most {DENSE_RELATIVE_MAX:.0e} is allowed"
                )
        found.append(vectors.positions.reshape(-1, positions.shape[-1]))
        expected.append(positions.reshape(-1, positions.shape[-1]))
    difference = company_difference(tower, first)
    return draft.model_copy(
        update={
            "fidelity": measure(np.concatenate(found), np.concatenate(expected)),
            "batch_difference": difference,
            "batch_invariant": difference <= INVARIANCE_TOLERANCE["fp32"],
        }
    )


def company_difference(run: Callable[[NDArray[np.uint8]], DenseVectors], picture: NDArray[np.uint8]) -> float:
    """How far a position moves when other pictures share the batch, in lengths of its picture's longest one, or the
    pooled vector in its own length: the larger."""
    variants = (picture, picture[:, ::-1], picture[:, :, ::-1], 255 - picture, np.roll(picture, 5, axis=1))
    pictures = np.ascontiguousarray(np.concatenate(variants))

    def in_batches(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = [run(pictures[start : start + size]) for start in range(0, len(pictures), size)]
        return np.concatenate([each.positions for each in found]), np.concatenate([each.pooled for each in found])

    alone = in_batches(1)
    together = [in_batches(size) for size in _COMPANY]
    return max(_moved(got, want) for each in together for got, want in zip(each, alone, strict=True))


def _moved(found: NDArray[np.float32], alone: NDArray[np.float32]) -> float:
    """Of vectors [pictures, ..., D]."""
    longest = np.linalg.norm(alone, axis=-1).reshape(len(alone), -1).max(axis=1)
    apart = np.abs(found - alone).reshape(len(alone), -1).max(axis=1)
    return float((apart / np.maximum(longest, 1e-30)).max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
