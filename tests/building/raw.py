"""Raw pairs of the tests: shards and facts, small and seeded."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.standard.shards import ShardSample, shard_samples
from tests.tars import tar_bytes
from training.building.build import BuildChoice, BuildPlan
from training.building.pair_table import PairTable
from training.building.scanning import ScanPlan
from training.building.sources import find_units


def mosaic(seed: int, *, side: int = 40, quality: int = 90) -> bytes:
    """A JPEG of 4 x 4 random colours; another quality is the same picture in other bytes."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(out, format="JPEG", quality=quality)
    return out.getvalue()


def shard(path: Path, pairs: Sequence[tuple[str, bytes, str]]) -> Path:
    """pairs: key, picture, caption."""
    members: dict[str, bytes] = {}
    for key, data, caption in pairs:
        members |= {f"{key}.jpg": data, f"{key}.txt": caption.encode()}
    path.write_bytes(tar_bytes(members))
    return path


def plan(
    folder: Path, queries: Path, out: Path, *, workers: int = 1, work: Path | None = None, **choice: object
) -> BuildPlan:
    return BuildPlan(
        units=tuple(find_units([str(folder)])),
        scan=ScanPlan(queries=queries),
        choice=BuildChoice(**choice),  # pyright: ignore[reportArgumentType]
        out=out,
        work=work or out / "work",
        shard_pairs=7,
        workers=workers,
        plot=False,
    )


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def samples_of(folder: Path) -> list[ShardSample]:
    return [sample for path in sorted(folder.glob("*.tar")) for sample in shard_samples(path)]


def table_of(path: Path, facts: Sequence[Mapping[str, object]], *, seed: int = 0) -> PairTable:
    """A table of pairs of which only this was found; what is not said is as of any usable pair."""
    usual = {"at": 0, "fault": None, "size": [9, 9], "code": "00" * 32, "queries": [0]}
    lines = path.with_suffix(".jsonl")
    with lines.open("w", encoding="utf-8") as file:
        for number, fact in enumerate(facts):
            own = {"i": number, "pair": f"{number:032x}", "picture": f"{number:032x}"}
            file.write(json.dumps(usual | own | fact) + "\n")
    table = PairTable(path)
    table.take_in(0, lines, seed=seed)
    return table


def states(table: PairTable) -> list[str]:
    return [state for (state,) in table.db.execute("SELECT state FROM pairs ORDER BY id")]
