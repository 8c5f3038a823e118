"""Names of shards: braces, globs and lists of paths and URLs -> one path or URL for each shard."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import IO

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")
_MOST = 1_000_000
_CHUNK_BYTES = 2**20


def shard_urls(patterns: str | Sequence[str], *, folder: str = "") -> tuple[str, ...]:
    """One path or URL for each shard, in the order of the patterns; what a glob finds is sorted.

    `{00000..00099}` counts, with the width of its first number; `{a,b}` takes each. A relative pattern is below
    `folder`, a path or URL.

    Raises:
        ValueError: braces that are neither, a range that runs backwards, a glob or a local path without a file, no
            shard, or one shard twice.
    """
    found: list[str] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if not pattern.strip():
            raise ValueError("a shard without a name")
        for name in expanded(pattern):
            found += _existing(_below(folder, name))
    if not found:
        raise ValueError("no shards are named")
    twice, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the shard {twice} is named twice: its samples would be seen twice in an epoch")
    return tuple(found)


def expanded(pattern: str) -> list[str]:
    """Every name that a pattern with braces stands for; the last braces change fastest.

    Raises:
        ValueError: see `shard_urls`.
    """
    names, parts = [""], _BRACES.split(pattern)
    for at, part in enumerate(parts):
        if at % 2 == 0 and re.search(r"[{}]", part):
            raise ValueError(f"{pattern}: braces do not match, or stand in braces")
        choices = _choices(part, pattern) if at % 2 else [part]
        if len(names) * len(choices) > _MOST:
            raise ValueError(f"{pattern}: over {_MOST:,} shards")
        names = [name + choice for name in names for choice in choices]
    return names


def local(url: str) -> bool:
    """Whether a shard is a path of this machine, written without a protocol."""
    return "://" not in url and "::" not in url


def open_shard(url: str) -> AbstractContextManager[IO[bytes]]:
    """A context manager that gives the shard's bytes as a stream; only an address needs fsspec."""
    if local(url):
        return open(url, "rb")
    import fsspec

    return fsspec.open(url, "rb")  # pyright: ignore[reportReturnType]


def skip_to(file: IO[bytes], at: int) -> None:
    """Move a stream that has just been opened; what cannot seek is read and thrown away."""
    if not at:
        return
    try:
        file.seek(at)
    except (OSError, ValueError, NotImplementedError):
        while at and (skipped := len(file.read(min(at, _CHUNK_BYTES)))):
            at -= skipped


def _choices(inside: str, pattern: str) -> list[str]:
    if counted := _RANGE.fullmatch(inside):
        low, high = counted.groups()
        if int(low) > int(high):
            raise ValueError(f"{pattern}: {{{inside}}} runs backwards")
        if int(high) - int(low) >= _MOST:
            raise ValueError(f"{pattern}: over {_MOST:,} shards")
        return [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    if "," in inside:
        return inside.split(",")
    raise ValueError(f"{pattern}: {{{inside}}} is neither a range such as {{0000..0099}} nor a list such as {{a,b}}")


def _below(folder: str, name: str) -> str:
    if not folder or not local(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder != "/" else f"/{name}"


def _existing(url: str) -> list[str]:
    # A query of an https address may hold a question mark; of such files there is no list to choose from.
    if _GLOB.search(url) and local(url):
        found = sorted(each for each in glob.glob(url, recursive=True) if os.path.isfile(each))
        if not found:
            raise ValueError(f"no shard matches {url}")
        return [os.path.abspath(each) for each in found]
    if _GLOB.search(url) and not url.startswith(("http://", "https://")):
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
        found = sorted(str(each) for each in files.glob(path))
        if not found:
            raise ValueError(f"no shard matches {url}")
        return [files.unstrip_protocol(each) for each in found]
    if local(url) and not os.path.isfile(url):
        raise ValueError(f"no shard {url}")
    return [url]
