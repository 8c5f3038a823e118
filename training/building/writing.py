"""Kept pairs as webdataset shards: each is made of its own part of the kept list, so any of them can be made again."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from model_store.files import whole_file
from model_store.modality.formats import sniff
from training.building.pair_table import kept_rows, numbers_of, reopened
from training.building.picture_code import EXTENSIONS
from training.building.sources import RawPair, Unit, raw_pairs

RECORD = "build"  # what a sample's json holds about this build; one of an earlier build lies in it


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """`table` holds the kept pairs of `units`; a shard has `size` of them."""

    table: Path
    units: tuple[Unit, ...]
    queries: tuple[str, ...]
    folder: Path
    size: int

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.tar"


def write_shard(plan: ShardPlan, number: int) -> int:
    """Write shard `number` (KEY.jpg, KEY.json, KEY.txt, picture bytes as they were); how many pairs it has.

    Equal plans give equal bytes.

    Raises:
        OSError: of reading or writing.
        ValueError: a picture is not the one that was looked at.
    """
    count = 0
    with (
        closing(reopened(plan.table)) as db,
        whole_file(plan.path(number)) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for row, pair in _read_again(plan, list(kept_rows(db, number * plan.size, plan.size))):
            for extension, data in _members(row, pair, plan.queries):
                entry = tarfile.TarInfo(f"{number:05d}{count:05d}.{extension}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            count += 1
    return count


def _read_again(plan: ShardPlan, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], RawPair]]:
    for unit, group in groupby(rows, key=lambda row: row["unit"]):
        wanted = {row["place"]: row for row in group}
        first = min(wanted)
        left = len(wanted)
        source = plan.units[unit]
        for pair in raw_pairs(source, wanted=wanted, index=first, at=wanted[first]["at"]):
            row = wanted.get(pair.index)
            if row is None:
                continue
            if hashlib.sha256(pair.data).hexdigest()[:32] != row["picture"].hex():
                raise ValueError(f"{source.url}: {pair.name} has changed since it was looked at; name another --work")
            yield row, pair
            left -= 1
            if not left:
                break
        if left:
            raise ValueError(f"{source.url} has fewer pairs than when it was looked at; name another --work")


def _members(row: dict[str, Any], pair: RawPair, texts: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    record: dict[str, Any] = {
        "source": pair.name,
        "sha256": row["picture"].hex(),
        "queries": [texts[number] for number in numbers_of(row["queries"]).tolist()],
    }
    if row["chosen"] is not None:
        record["chosen_for"] = [texts[number] for number in numbers_of(row["chosen"]).tolist()]
    if row["score"] is not None:
        record["score"] = row["score"]
    if RECORD in pair.meta:
        record["before"] = pair.meta[RECORD]
    yield EXTENSIONS[sniff(pair.data) or ""], pair.data
    meta = {**pair.meta, "caption": pair.caption, RECORD: record}
    yield "json", json.dumps(meta, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
    yield "txt", pair.caption.encode()
