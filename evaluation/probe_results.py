"""What a probe found, as plain data: rows with score, chance, interval and controls; written and read as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.probes.rows import Row, Unit

FORMAT = 1
Control = Literal["blind", "bag", "truth"]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """None where there is no such number: no item settled it, or the control does not exist for the probe.

    low, high: 95 % bootstrap interval over groups of scenes. blind: the same encoder without pictures, ties shared.
    bag: a bag of words. truth: what a perfect encoder scores (for localisation: the best that the grid allows).
    better: "at chance" marks a bias: the further from chance, the worse.
    """

    name: str
    n: int
    unit: Unit
    better: Literal["more", "less", "at chance"]
    score: float | None
    low: float | None
    high: float | None
    chance: float | None
    blind: float | None
    bag: float | None
    truth: float | None


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """What a result depends on; a stored result is used again only if all of it is equal."""

    probe: str
    fingerprint: str
    space: str
    suite: str
    seed: int
    size_px: int
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """`not_applicable` says why there are no rows, None if there are; `notes` what the reader must know."""

    key: RunKey
    encoder: str
    pictures: int
    texts: int
    rows: tuple[ResultRow, ...]
    not_applicable: str | None = None
    notes: tuple[str, ...] = ()


def result_rows(rows: Sequence[Row], controls: Mapping[Control, Sequence[Row] | None]) -> tuple[ResultRow, ...]:
    """Join an encoder's rows with its controls'.

    Raises:
        ValueError: a control has other rows than the encoder.
    """
    names = [row.name for row in rows]
    for kind, found in controls.items():
        if found is not None and [row.name for row in found] != names:
            raise ValueError(f"the {kind} control has rows {[row.name for row in found]}, the encoder {names}")
    out: list[ResultRow] = []
    for index, row in enumerate(rows):
        low, high = row.interval()
        beside = {kind: found[index].value if found is not None else None for kind, found in controls.items()}
        out.append(
            ResultRow(
                name=row.name,
                n=row.n,
                unit=row.unit,
                better=row.better,
                score=_finite(row.value),
                low=_finite(low),
                high=_finite(high),
                chance=row.chance,
                blind=_finite(beside.get("blind")),
                bag=_finite(beside.get("bag")),
                truth=_finite(beside.get("truth")),
            )
        )
    return tuple(out)


def to_json(result: ProbeResult) -> dict[str, Any]:
    return asdict(result)


def from_json(data: Mapping[str, Any]) -> ProbeResult:
    """The inverse of `to_json`.

    Raises:
        ValueError: not a result of this format.
    """
    try:
        fields = dict(data)
        key, rows = RunKey(**fields.pop("key")), tuple(ResultRow(**row) for row in fields.pop("rows"))
        return ProbeResult(key=key, rows=rows, notes=tuple(fields.pop("notes")), **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the result of a probe: {type(error).__name__} {error}") from error


def write_result(result: ProbeResult, path: Path) -> None:
    """Whole or not at all: a run that is stopped leaves no half file."""
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps(to_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(staged, path)


def read_result(path: Path) -> ProbeResult:
    """Raises:
    ValueError: not a result of this format.
    OSError: cannot be read.
    """
    return from_json(json.loads(path.read_text(encoding="utf-8")))


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
