"""A frozen base's positions of every training picture, worked out once, in half precision, and kept on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.files import whole_file
from training.checkpoint import LoadedModel
from training.data.protocol import Source
from training.features import dense_source, position_vectors
from training.models.dense import DenseSource
from training.progress import Track

_LEAST_SPREAD = 1e-6
F16 = NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class RowPositions:
    """Un-normalised, of N pictures: positions float16 [N, h, w, D], pooled float32 [N, D]."""

    positions: F16
    pooled: NDArray[np.float32]

    def statistics(self) -> tuple[torch.Tensor, float]:
        """Mean [D] of the positions of some pictures, and the spread of all their numbers around it."""
        some = np.asarray(self.positions[:: max(1, len(self.positions) // 512)], dtype=np.float32)
        rows = torch.from_numpy(some.reshape(-1, some.shape[-1]))
        mean = rows.mean(dim=0)
        return mean, max(float((rows - mean).std()), _LEAST_SPREAD)


def dense_at(base: LoadedModel, side_px: int | None) -> DenseSource:
    """The base's dense role for pictures whose short side is `side_px`; None: as it is exported.

    Raises:
        ValueError: it has no positions, or takes pictures of another size only.
    """
    found = dense_source(base)
    own = found.spec.height_px or found.spec.short_px
    if side_px in (None, own):
        return found
    if found.spec.sizes == "fixed" or side_px % found.spec.stride_px or side_px > found.spec.max_long_px:
        raise ValueError(
            f"dense_px = {side_px}: the base's positions are of {found.spec.sizes} sizes, {own} px as exported, "
            f"in steps of {found.spec.stride_px} px"
        )
    return DenseSource(module=found.module, spec=found.spec.model_copy(update={"short_px": side_px}))


def positions_of_rows(
    base: LoadedModel,
    dense: DenseSource,
    source: Source,
    *,
    folder: Path | None,
    device: str,
    track: Track,
) -> RowPositions:
    """Of each training picture, not augmented, as a square of the side of `dense`.

    The names of the files in `folder` are a digest of the base, of all pictures, and of how they are shown.
    """
    side = dense.spec.height_px or dense.spec.short_px
    spec = base.info.image_spec.model_copy(update={"height_px": side, "width_px": side})
    found = hashlib.sha256(f"positions/1 {base.info.weights_sha256} {spec.model_dump_json()}".encode())
    found.update(f"{source.pixels.shape}".encode() + np.ascontiguousarray(source.pixels).data)
    key = found.hexdigest()[:24]
    places = [None if folder is None else folder / f"rows-{key}-{what}.npy" for what in ("positions", "pooled")]
    if all(place is not None and place.exists() for place in places):
        positions, pooled = (np.load(place, mmap_mode="r") for place in places if place is not None)
        return RowPositions(positions=positions, pooled=np.asarray(pooled))
    pictures = source.pictures("train", spec)
    positions, pooled = position_vectors(dense.module.to(device), pictures, device=device, track=track)
    for place, array in zip(places, (positions, pooled), strict=True):
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place, by_many=True) as stream:
                np.save(stream, array)
    return RowPositions(positions=positions, pooled=pooled)
