"""Snapshots of indexes, so that opening need not train and encode again. Deleting them is harmless.

The float32 vectors beside an index (mapped.py) are no part of its snapshot, which has their file's name and their sums.
A flat index has none: reading its vectors from the truth, checksums verified, is as fast as reading them from a copy.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.files import whole_file
from service.retrieval.index.faiss_index import VectorIndex
from service.retrieval.index.live import Frozen, LiveIndex
from service.retrieval.index.mapped import MappedVectors
from service.retrieval.index.slots import Slots
from service.retrieval.records import IndexSpec, RetrievalSettings
from service.retrieval.truth.tables import Counters, Tables

log = logging.getLogger("clipworks.retrieval")
_MAGIC = b"CLIPWORKS-INDEX 2\n"
_MAX_HEADER = 65_536
_CHUNK = 1 << 20


def path_of(folder: Path, tables: Tables) -> Path:
    return folder / f"{tables.number}.index"


def save(path: Path, tables: Tables, frozen: Frozen) -> None:
    """Write an index with a checksum for each MiB. Raises OSError."""
    mapped = frozen.mapped
    sums = np.zeros(0, np.uint64) if mapped is None else mapped.sums[: len(frozen.rids)]
    if mapped:
        mapped.sync()
    body = [frozen.rids.astype("<i8").view(np.uint8), frozen.index, sums.astype("<u8").view(np.uint8)]
    header = {
        "kind": frozen.kind,
        "epoch": tables.epoch,
        "counters": [frozen.counters.sequence, frozen.counters.rows, frozen.counters.last_rid],
        "trained_rows": frozen.trained_rows,
        "vectors": mapped.path.name if mapped else None,
        "bytes": [part.nbytes for part in body],
        "sums": [_sums(part) for part in body],
    }
    line = json.dumps(header, sort_keys=True).encode()
    with whole_file(path) as stream:
        stream.write(_MAGIC + line + b"\n" + f"{zlib.crc32(line):08x}\n".encode())
        for part in body:
            stream.write(part.data)


def load(path: Path, tables: Tables, spec: IndexSpec, settings: RetrievalSettings) -> LiveIndex | str | None:
    """The index as it was saved, still to be caught up; a sentence if the file cannot be trusted; None without one
    or without its vectors.

    Anything unexpected is a reason to rebuild, never an error.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    with stream:
        try:
            if stream.readline(64) != _MAGIC:
                return f"{name} has another format"
            line = stream.readline(_MAX_HEADER + 1 + (path.stat().st_size // _CHUNK) * 16).rstrip(b"\n")
            if stream.readline(16) != f"{zlib.crc32(line):08x}\n".encode():
                return f"{name} is damaged: its header's checksum differs"
            header = json.loads(line)
            parts = [np.fromfile(stream, np.uint8, size) for size in header["bytes"]]
            if stream.read(1) or [part.nbytes for part in parts] != header["bytes"]:
                return f"{name} has another length than was written"
            if [_sums(part) for part in parts] != header["sums"]:
                return f"{name} is damaged: a checksum differs"
            if header["epoch"] != tables.epoch:
                return f"{name} is of other rows"
            rids, data = parts[0].view("<i8").astype(np.int64), parts[1]
            mapped = _mapped(path, header["vectors"], parts[2].view("<u8").astype(np.uint64), tables.spec.dim)
            if mapped is None:
                return None
            index = VectorIndex.from_bytes(header["kind"], data, nprobe=spec.nprobe, threads=settings.threads)
            if index.count != len(rids) or index.dim != tables.spec.dim:
                return f"{name} holds {index.count} vectors for {len(rids)} rows"
            counters = Counters(*header["counters"])
            return LiveIndex(index, Slots(rids), counters, trained_rows=header["trained_rows"], mapped=mapped)
        except (ValueError, KeyError, TypeError, OSError, RuntimeError, MemoryError) as error:
            return f"{name} cannot be used: {type(error).__name__} {getattr(error, 'strerror', None) or error}"


def _mapped(path: Path, name: str | None, sums: NDArray[np.uint64], dim: int) -> MappedVectors | None:
    """None: there is no such file, as after a stop between a rebuild and its snapshot; so all is rebuilt."""
    if name is None or Path(name).name != name:
        return None
    try:
        return MappedVectors(path.with_name(name), dim, sums=sums)
    except FileNotFoundError:
        return None


def _sums(part: NDArray[np.uint8]) -> list[int]:
    return [zlib.crc32(part[start : start + _CHUNK].data) for start in range(0, len(part), _CHUNK)]
