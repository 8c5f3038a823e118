"""Webdataset shards: tar files whose neighbouring members `KEY.png`, `KEY.txt`, ... are one sample.

Nothing is unpacked to disk; only plain members are read, and none beyond the decoder's size limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from evaluation.standard.tar_members import BrokenTar, ByteStream, TarMember, tar_members
from model_store.modality.image import DEFAULT_LIMITS

_IMAGES = ("png", "jpg", "jpeg", "webp")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

Fault = Literal["no picture", "no caption", "unreadable text", "too large", "broken picture", "broken shard"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """A captioned picture: its undecoded bytes, where they lie in the tar file, and its `json` ({} without one).

    name: `SHARD/KEY.EXTENSION`. at, end: offsets of the sample's first header, and of what follows it.
    """

    name: str
    caption: str
    data: bytes
    start: int
    meta: dict[str, Any]
    at: int
    end: int


class BadSample(ValueError):
    """A sample that cannot be used, or a shard that ends too early. end: offset of what follows it."""

    def __init__(self, fault: Fault, message: str, *, end: int) -> None:
        super().__init__(message)
        self.fault: Fault = fault
        self.end = end


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
        with shard.open("rb") as file:
            for sample in streamed_samples(file, shard.name):
                if isinstance(sample, BadSample):
                    raise sample
                yield sample
    except OSError as error:
        raise ValueError(f"{shard.name}: {error}") from error


def streamed_samples(file: ByteStream, shard: str, *, at: int = 0) -> Iterator[ShardSample | BadSample]:
    """The samples behind the offset `at`, where `file` stands already and a sample begins; bad ones in their places.

    A shard that breaks off ends in a `BadSample`, and takes the sample along that it breaks off in.

    Raises:
        OSError: of reading.
    """
    end = at
    try:
        for key, found in groupby(_visible(file, at), key=lambda member: _split(member.name)[0]):
            members = list(found)
            end = members[-1].end
            try:
                yield _sample(shard, key, members)
            except BadSample as bad:
                yield bad
    except BrokenTar as error:
        yield BadSample("broken shard", f"{shard}: not a complete tar file ({error})", end=end)


def _visible(file: ByteStream, at: int) -> Iterator[TarMember]:
    for member in tar_members(file, at=at, max_bytes=DEFAULT_LIMITS.max_bytes):
        if not PurePosixPath(member.name).name.startswith("."):
            yield member


def _split(name: str) -> tuple[str, str]:
    """("folder/0001", "owner.png"): the key ends at the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _sample(shard: str, key: str, members: list[TarMember]) -> ShardSample:
    end = members[-1].end
    for member in members:
        if member.data is None:
            what = f"{shard}: {member.name} has {member.size} bytes, limit {DEFAULT_LIMITS.max_bytes}"
            raise BadSample("too large", what, end=end)
    parts = {_split(member.name)[1]: member for member in members}
    data = {extension: member.data or b"" for extension, member in parts.items()}
    extension = next((name for name in _IMAGES if name in parts), None)
    if extension is None:
        raise BadSample("no picture", f"{shard}: {key} has no picture, only {', '.join(sorted(parts))}", end=end)
    try:
        meta = json.loads(data["json"]) if "json" in data else {}
        caption = data["txt"].decode().strip() if "txt" in data else str(meta.get("caption") or "").strip()
        caption.encode()
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadSample("unreadable text", f"{shard}: the text of {key} cannot be read ({error})", end=end) from error
    if not isinstance(meta, dict) or not caption:
        what = f"{shard}: {key} has no caption (a txt member, or a caption in its json)"
        raise BadSample("no caption", what, end=end)
    return ShardSample(
        name=f"{shard}/{key}.{extension}",
        caption=caption,
        data=data[extension],
        start=parts[extension].start,
        meta=meta,
        at=members[0].at,
        end=end,
    )
