"""How far each collection had come, noted beside the database now and then.

SQLite opens a write-ahead log that was cut or damaged at its last whole commit, and cannot tell that from a crash. This
note can: a database that is behind it has lost acknowledged changes, and that is said.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from service.retrieval.files import write_whole
from service.retrieval.tables import Tables

NAME = "progress.json"
Progress = Mapping[str, int]


def save(folder: Path, progress: Progress) -> None:
    """progress: sequence by epoch. Raises OSError."""
    line = json.dumps(dict(progress), sort_keys=True)

    def write(stream: BinaryIO) -> None:
        stream.write(f"{line}\n{zlib.crc32(line.encode()):08x}\n".encode())

    write_whole(folder / NAME, write)


def load(folder: Path) -> Progress | None:
    """None without a note, or with one that is damaged: it only ever adds a warning."""
    try:
        line, sum, end = (folder / NAME).read_text().split("\n")
        if end or sum != f"{zlib.crc32(line.encode()):08x}":
            return None
        return {str(epoch): int(sequence) for epoch, sequence in json.loads(line).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def shortfalls(noted: Progress, found: Sequence[tuple[Tables, int]]) -> list[str]:
    """What the note knows and the database does not, each in one sentence."""
    present = {tables.epoch: (tables.name, sequence) for tables, sequence in found}
    sentences: list[str] = []
    for epoch, sequence in noted.items():
        name, reached = present.get(epoch, (None, 0))
        if name is None:
            sentences.append(
                f"a collection with {sequence} changes that was here is gone: the write-ahead log was cut or damaged"
            )
        elif reached < sequence:
            sentences.append(
                f"collection {name} is at change {reached}, but had reached {sequence}: the write-ahead log was cut or"
                f" damaged, and at least {sequence - reached} acknowledged changes are lost; restore a snapshot"
            )
    return sentences
