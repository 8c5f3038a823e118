"""Reader of webdataset shards as training rows (see evaluation.standard.shards for the files themselves)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.standard.shards import ShardSample, shard_samples
from model_store.errors import InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from training.data.rows import Row, group_of


@dataclass(frozen=True)
class Sample:
    """One row, the undecoded bytes of its picture, and its `json` member ({} where it has none)."""

    row: Row
    data: bytes
    meta: dict[str, Any]


def read_shards(shards: Iterable[Path], *, label_keys: Sequence[str] = ()) -> Iterator[Sample]:
    """Every sample of every shard, in order.

    The caption is the `txt` member, else the json's "caption". `label_keys` are fields of the json that become labels.
    A row's image is `SHARD/KEY.EXTENSION`; its group is the last number in KEY.

    Raises:
        ValueError: a shard that is no tar or is cut off; a sample without picture, caption, label or number.
    """
    for shard in shards:
        for sample in shard_samples(shard):
            yield Sample(_row(sample, label_keys), sample.data, sample.meta)


def load_shards(
    shards: Iterable[Path], spec: ImageSpec, *, label_keys: Sequence[str] = ()
) -> tuple[list[Row], NDArray[np.uint8]]:
    """All rows and their prepared pictures, uint8 [N, height_px, width_px, 3].

    Raises:
        ValueError: as `read_shards`; or a picture that does not decode, with its name.
    """
    rows: list[Row] = []
    pixels: list[NDArray[np.uint8]] = []
    for sample in read_shards(shards, label_keys=label_keys):
        try:
            pixels.append(prepare(decode(sample.data), spec))
        except InputError as error:
            raise ValueError(f"{sample.row.image}: {error}") from error
        rows.append(sample.row)
    empty = np.empty((0, spec.height_px, spec.width_px, 3), dtype=np.uint8)
    return rows, np.stack(pixels) if pixels else empty


def _row(sample: ShardSample, label_keys: Sequence[str]) -> Row:
    missing = [name for name in label_keys if sample.meta.get(name) is None]
    if missing:
        shard, _, key = sample.name.rpartition(".")[0].partition("/")
        raise ValueError(f"{shard}: {key} has no {', '.join(missing)} in its json")
    labels = {name: str(sample.meta[name]) for name in label_keys}
    return Row(image=sample.name, caption=sample.caption, group=group_of(sample.name), labels=labels)
