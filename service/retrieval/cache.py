"""Snapshots of indexes, so that opening need not train and encode again. Deleting them is harmless.

A flat index has none: reading its vectors from the truth, checksums verified, is as fast as reading them from a copy.
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.retrieval.files import write_whole
from service.retrieval.index import VectorIndex
from service.retrieval.live import LiveIndex
from service.retrieval.records import IndexSpec, RetrievalSettings
from service.retrieval.searching import Frozen
from service.retrieval.slots import Slots
from service.retrieval.tables import Counters, Tables

log = logging.getLogger("clipworks.retrieval")
_MAGIC = b"CLIPWORKS-INDEX 1\n"
_MAX_HEADER = 65_536
_CHUNK = 1 << 20


def path_of(folder: Path, tables: Tables) -> Path:
    return folder / f"{tables.number}.index"


def save(path: Path, tables: Tables, frozen: Frozen) -> None:
    """Write an index with a checksum for each MiB. Raises OSError."""
    rids = frozen.rids.astype("<i8").view(np.uint8)
    body = [rids, frozen.index]
    header = {
        "kind": frozen.kind,
        "epoch": tables.epoch,
        "counters": [frozen.counters.sequence, frozen.counters.rows, frozen.counters.last_rid],
        "trained_rows": frozen.trained_rows,
        "bytes": [part.nbytes for part in body],
        "sums": [_sums(part) for part in body],
    }
    line = json.dumps(header, sort_keys=True).encode()

    def write(stream: BinaryIO) -> None:
        stream.write(_MAGIC + line + b"\n" + f"{zlib.crc32(line):08x}\n".encode())
        for part in body:
            stream.write(part.data)

    write_whole(path, write)


def load(path: Path, tables: Tables, spec: IndexSpec, settings: RetrievalSettings) -> LiveIndex | str | None:
    """The index as it was saved, still to be caught up; a sentence if the file cannot be trusted; None without one.

    Anything unexpected is a reason to rebuild, never an error.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read: {error}"
    with stream:
        try:
            if stream.readline(64) != _MAGIC:
                return f"{path} has another format"
            line = stream.readline(_MAX_HEADER + 1 + (path.stat().st_size // _CHUNK) * 16).rstrip(b"\n")
            if stream.readline(16) != f"{zlib.crc32(line):08x}\n".encode():
                return f"{path} is damaged: its header's checksum differs"
            header = json.loads(line)
            parts = [np.fromfile(stream, np.uint8, size) for size in header["bytes"]]
            if stream.read(1) or [part.nbytes for part in parts] != header["bytes"]:
                return f"{path} has another length than was written"
            if [_sums(part) for part in parts] != header["sums"]:
                return f"{path} is damaged: a checksum differs"
            if header["epoch"] != tables.epoch:
                return f"{path} is of other rows"
            rids, data = parts[0].view("<i8").astype(np.int64), parts[1]
            index = VectorIndex.from_bytes(header["kind"], data, nprobe=spec.nprobe, threads=settings.threads)
            if index.count != len(rids) or index.dim != tables.spec.dim:
                return f"{path} holds {index.count} vectors for {len(rids)} rows"
            counters = Counters(*header["counters"])
            return LiveIndex(index, Slots(rids), counters, trained_rows=header["trained_rows"])
        except (ValueError, KeyError, TypeError, OSError, RuntimeError, MemoryError) as error:
            return f"{path} cannot be used: {type(error).__name__} {error}"


def _sums(part: NDArray[np.uint8]) -> list[int]:
    return [zlib.crc32(part[start : start + _CHUNK].data) for start in range(0, len(part), _CHUNK)]
