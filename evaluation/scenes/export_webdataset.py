"""Scenes as webdataset shards: tar files that hold `KEY.png`, `KEY.txt`, `KEY.json` and `KEY.owner.png` in a row.

The tar files are byte-equal for equal records (no times, no owners), so a data set has a digest.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import count, groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.scenes.records import SceneRecord, StoredScene, record_from_json, record_to_json
from evaluation.scenes.rendering import render
from evaluation.scenes.scene import SceneError
from model_store.files import whole_file

_PARTS = ("json", "owner.png", "png", "txt")


def write_webdataset(
    records: Iterable[SceneRecord], folder: Path, *, size_px: int, per_shard: int = 1000
) -> list[Path]:
    """Write `scenes-000000.tar`, `scenes-000001.tar`, ...; a shard appears under its name only when it is complete.

    `txt` holds the first caption, `json` the scene and every caption with its meaning, `owner.png` per pixel 0 for the
    background and 1 + index for a thing.

    Raises:
        SceneError: a key twice in one shard. ValueError: per_shard under 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    if per_shard < 1:
        raise ValueError(f"per_shard must be 1 or more, got {per_shard}")
    rest = iter(records)
    for number in count():
        group = list(islice(rest, per_shard))
        if not group:
            break
        shard = folder / f"scenes-{number:06d}.tar"
        keys = [record.key for record in group]
        if len(set(keys)) != len(keys):
            raise SceneError(f"{shard.name} would hold a key twice")
        with whole_file(shard) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for record in group:
                for name, data in _parts(record, size_px):
                    entry = tarfile.TarInfo(f"{record.key}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        shards.append(shard)
    return shards


def read_webdataset(shard: Path) -> Iterator[StoredScene]:
    """What `write_webdataset` put into one shard, in order.

    Raises:
        SceneError: not such a shard.
    """
    with tarfile.open(shard, "r:") as tar:
        entries = (entry for entry in tar if entry.isfile())
        for key, group in groupby(entries, key=lambda entry: entry.name.split(".", 1)[0]):
            parts: dict[str, bytes] = {}
            for entry in group:
                file = tar.extractfile(entry)
                if file is not None:
                    parts[entry.name.split(".", 1)[1]] = file.read()
            if sorted(parts) != list(_PARTS):
                raise SceneError(f"{shard.name}: {key} has parts {sorted(parts)}, expected {list(_PARTS)}")
            record = record_from_json(json.loads(parts["json"]))
            yield StoredScene(record, read_png(parts["png"]), owner_from_png(parts["owner.png"]))


def _parts(record: SceneRecord, size_px: int) -> list[tuple[str, bytes]]:
    rendered = render(record.scene, size_px)
    return [
        ("png", png_bytes(rendered.image)),
        ("owner.png", png_bytes((rendered.owner + 1).astype(np.uint8))),
        ("txt", record.captions[0].text.encode()),
        ("json", json.dumps(record_to_json(record)).encode()),
    ]


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] or [H, W] as PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def read_png(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.array(image)


def owner_from_png(data: bytes) -> NDArray[np.int8]:
    """int8 [H, W], -1 for the background."""
    return read_png(data).astype(np.int8) - np.int8(1)
