"""Reader of webdataset shards: tar files whose neighbouring members `KEY.png`, `KEY.txt`, ... are one sample.

Nothing is unpacked to disk; only plain members are read, and none beyond the decoder's size limit.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import DEFAULT_LIMITS, decode, prepare
from training.data.rows import Row, group_of

_IMAGES = ("png", "jpg", "jpeg", "webp")
_TAR_END = bytes(1024)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Sample:
    """One row, the undecoded bytes of its picture, and its `json` member ({} where it has none)."""

    row: Row
    data: bytes
    meta: dict[str, Any]


def shard_paths(pattern: str) -> list[Path]:
    """`scenes-{000000..000009}.tar` -> ten paths; a pattern without braces is one path.

    Raises:
        ValueError: a range that runs backwards, or a shard that does not exist.
    """
    found = _RANGE.search(pattern)
    if found is None:
        path = Path(pattern)
        if not path.is_file():
            raise ValueError(f"no shard {path}")
        return [path]
    low, high = found.groups()
    if int(low) > int(high):
        raise ValueError(f"{found.group()} runs backwards")
    names = [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    return [path for name in names for path in shard_paths(pattern[: found.start()] + name + pattern[found.end() :])]


def read_shards(shards: Iterable[Path], *, label_keys: Sequence[str] = ()) -> Iterator[Sample]:
    """Every sample of every shard, in order.

    The caption is the `txt` member, else the json's "caption". `label_keys` are fields of the json that become labels.
    A row's image is `SHARD/KEY.EXTENSION`; its group is the last number in KEY.

    Raises:
        ValueError: a shard that is no tar or is cut off; a sample without picture, caption, label or number.
    """
    for shard in shards:
        try:
            _check_end(shard)
            with tarfile.open(shard, "r:") as tar:
                for key, entries in groupby(_members(tar, shard), key=lambda entry: _split(entry.name)[0]):
                    yield _sample(shard, key, {_split(e.name)[1]: _read(tar, e) for e in entries}, label_keys)
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{shard.name}: not a complete tar file ({error})") from error


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


def _check_end(shard: Path) -> None:
    """tarfile takes a cut in the middle of a header for the end; a complete tar ends in two blocks of zeros."""
    with shard.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_TAR_END)))
        if file.read() != _TAR_END:
            raise tarfile.ReadError("its end mark is missing")


def _members(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    for entry in tar:
        if not entry.isfile() or PurePosixPath(entry.name).name.startswith("."):
            continue
        if entry.size > DEFAULT_LIMITS.max_bytes:
            raise ValueError(f"{shard.name}: {entry.name} has {entry.size} bytes, limit {DEFAULT_LIMITS.max_bytes}")
        yield entry


def _split(name: str) -> tuple[str, str]:
    """("folder/0001", "owner.png"): the key ends at the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _read(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    data = b"" if file is None else file.read()
    if len(data) != entry.size:
        raise tarfile.ReadError(f"{entry.name} is cut off")
    return data


def _sample(shard: Path, key: str, parts: dict[str, bytes], label_keys: Sequence[str]) -> Sample:
    extension = next((name for name in _IMAGES if name in parts), None)
    if extension is None:
        raise ValueError(f"{shard.name}: {key} has no picture, only {', '.join(sorted(parts))}")
    try:
        meta = json.loads(parts.get("json", b"{}"))
        caption = parts["txt"].decode().strip() if "txt" in parts else str(meta.get("caption") or "").strip()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{shard.name}: the text of {key} cannot be read ({error})") from error
    if not isinstance(meta, dict) or not caption:
        raise ValueError(f"{shard.name}: {key} has no caption (a txt member, or a caption in its json)")
    missing = [name for name in label_keys if meta.get(name) is None]
    if missing:
        raise ValueError(f"{shard.name}: {key} has no {', '.join(missing)} in its json")
    image = f"{shard.name}/{key}.{extension}"
    labels = {name: str(meta[name]) for name in label_keys}
    row = Row(image=image, caption=caption, group=group_of(image), labels=labels)
    return Sample(row, parts[extension], meta)
