"""Results of a probe as plain data: rows with score, chance, interval and controls; written and read as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.dense.overlays import Overlay, overlay_from_json
from evaluation.probes.examples import Example, example_from_json
from evaluation.probes.figures import Figures, figures_from_json
from evaluation.probes.priors import BestPrior
from evaluation.probes.rows import Mean, ProbeRow, Unit
from model_store.files import write_whole

FORMAT = 3
Control = Literal["blind", "bag", "truth"]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a row's score is made of, for each group of scenes, so that two encoders can be compared in pairs.

    clusters, sizes: the groups' numbers, ascending, and how many items each has. sums: of the items' outcomes, where
    the score is their mean (sums over sizes). draws: for any other statistic its values on resampled groups (None
    where a resample settles nothing), the same resamples for every encoder that has these clusters and sizes.
    """

    clusters: tuple[int, ...]
    sizes: tuple[int, ...]
    sums: tuple[float, ...] | None = None
    draws: tuple[float | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """None where there is no such number: no item settled it, or the control does not exist for the probe.

    low, high: 95 % interval over groups of scenes. blind: the same encoder without pictures, ties shared.
    bag: a bag of words. truth: what a perfect encoder scores (for localisation: the best that the grid allows).
    better: "at chance" marks a bias: the further from chance, the worse. outcomes: None in files of format 1.
    prior: the best that a simple rule scores which sees the texts alone, or the pictures alone, and prior_name the rule
    (evaluation.probes.priors); not known in files of format 1 and 2.
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
    outcomes: Outcomes | None = None
    prior: float | None = None
    prior_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """What a result depends on; a stored result is used again only if all of it is equal.

    settings: how the encoder was asked, where that can be chosen; results of one encoder under two may be compared.
    """

    probe: str
    fingerprint: str
    space: str
    suite: str
    seed: int
    size_px: int
    format: int = FORMAT
    settings: str = ""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """`not_applicable` says why there are no rows, None if there are; `notes` what the reader must know.

    questions: digest of the pictures and texts that were asked about; unknown in files of format 1. examples, figures:
    single items and what plots need, where the probe has them; overlays: pictures that went best and worst. None of
    them changes a score.
    """

    key: RunKey
    encoder: str
    pictures: int
    texts: int
    rows: tuple[ResultRow, ...]
    not_applicable: str | None = None
    notes: tuple[str, ...] = ()
    questions: str | None = None
    examples: tuple[Example, ...] = ()
    figures: Figures | None = None
    overlays: tuple[Overlay, ...] = ()


def result_rows(
    rows: Sequence[ProbeRow],
    controls: Mapping[Control, Sequence[ProbeRow] | None],
    priors: Sequence[BestPrior | None] = (),
) -> tuple[ResultRow, ...]:
    """Join an encoder's rows with its controls' and with the best priors, which have as many entries or none.

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
        prior = priors[index] if priors else None
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
                outcomes=_outcomes(row),
                prior=_finite(prior.value) if prior else None,
                prior_name=prior.name if prior else None,
            )
        )
    return tuple(out)


def _outcomes(row: ProbeRow) -> Outcomes:
    ids, inverse, sizes = np.unique(row.clusters, return_inverse=True, return_counts=True)
    groups = Outcomes(clusters=tuple(ids.tolist()), sizes=tuple(sizes.tolist()))
    if isinstance(row.statistic, Mean):
        sums = np.bincount(inverse, row.statistic.outcomes, minlength=len(ids))
        return replace(groups, sums=tuple(sums.tolist()))
    return replace(groups, draws=tuple(_finite(value) for value in row.draws().tolist()))


def to_json(result: ProbeResult) -> dict[str, Any]:
    return asdict(result)


def from_json(data: Mapping[str, Any]) -> ProbeResult:
    """The inverse of `to_json`.

    Raises:
        ValueError: not a result of this format.
    """
    try:
        fields = dict(data)
        key, rows = RunKey(**fields.pop("key")), tuple(_row_from(row) for row in fields.pop("rows"))
        shown = tuple(example_from_json(each) for each in fields.pop("examples", ()))
        drawn = fields.pop("figures", None)
        figures = None if drawn is None else figures_from_json(drawn)
        notes = tuple(fields.pop("notes"))
        overlays = tuple(overlay_from_json(each) for each in fields.pop("overlays", ()))
        return ProbeResult(
            key=key, rows=rows, notes=notes, examples=shown, figures=figures, overlays=overlays, **fields
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the result of a probe: {type(error).__name__} {error}") from error


def _row_from(data: Mapping[str, Any]) -> ResultRow:
    fields = dict(data)
    found = fields.pop("outcomes", None)
    if found is None:
        return ResultRow(**fields)
    parts: dict[str, Any] = {name: None if value is None else tuple(value) for name, value in found.items()}
    return ResultRow(**fields, outcomes=Outcomes(**parts))


def write_result(result: ProbeResult, path: Path) -> None:
    """Whole or not at all: a run that is stopped leaves no half file."""
    write_whole(path, (json.dumps(to_json(result), indent=1, allow_nan=False) + "\n").encode())


def read_result(path: Path) -> ProbeResult:
    """Raises:
    ValueError: not a result of this format.
    OSError: cannot be read.
    """
    return from_json(json.loads(path.read_text(encoding="utf-8")))


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
