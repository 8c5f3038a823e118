"""Webdataset shards: tar files whose neighbouring members `KEY.png`, `KEY.txt`, ... are one sample.

Nothing is unpacked to disk; only plain members are read, and none beyond the decoder's size limit.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from model_store.modality.image import DEFAULT_LIMITS

_IMAGES = ("png", "jpg", "jpeg", "webp")
_TAR_END = bytes(1024)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """A captioned picture: its undecoded bytes, where they lie in the tar file, and its `json` ({} without one).

    name: `SHARD/KEY.EXTENSION`.
    """

    name: str
    caption: str
    data: bytes
    start: int
    meta: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    data: bytes
    start: int


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


def shard_samples(shard: Path) -> Iterator[ShardSample]:
    """Every sample of one shard, in order. The caption is the `txt` member, else the json's "caption".

    Raises:
        ValueError: no tar file, or one that is cut off; a sample without picture or caption.
    """
    try:
        _check_end(shard)
        with tarfile.open(shard, "r:") as tar:
            for key, entries in groupby(_members(tar, shard), key=lambda entry: _split(entry.name)[0]):
                yield _sample(shard, key, {_split(e.name)[1]: _Part(_read(tar, e), e.offset_data) for e in entries})
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{shard.name}: not a complete tar file ({error})") from error


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


def _sample(shard: Path, key: str, parts: dict[str, _Part]) -> ShardSample:
    extension = next((name for name in _IMAGES if name in parts), None)
    if extension is None:
        raise ValueError(f"{shard.name}: {key} has no picture, only {', '.join(sorted(parts))}")
    try:
        meta = json.loads(parts["json"].data) if "json" in parts else {}
        caption = parts["txt"].data.decode().strip() if "txt" in parts else str(meta.get("caption") or "").strip()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{shard.name}: the text of {key} cannot be read ({error})") from error
    if not isinstance(meta, dict) or not caption:
        raise ValueError(f"{shard.name}: {key} has no caption (a txt member, or a caption in its json)")
    picture = parts[extension]
    return ShardSample(
        name=f"{shard.name}/{key}.{extension}", caption=caption, data=picture.data, start=picture.start, meta=meta
    )
