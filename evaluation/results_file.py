"""The JSON file of an evaluation run: what was judged, how, by which version, and all results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.probe_results import ProbeResult, from_json, to_json
from model_store.files import write_whole

KIND, FORMAT = "clipworks evaluation", 1


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """suite: None if only real data was asked about. size_px: the side of drawn pictures. date: ISO 8601, UTC."""

    encoder: str
    fingerprint: str
    space: str
    suite: str | None
    seed: int
    size_px: int
    date: str
    clipworks: str
    results: tuple[ProbeResult, ...]


def run_to_json(run: EvaluationRun) -> dict[str, Any]:
    return {
        "kind": KIND,
        "format": FORMAT,
        "encoder": run.encoder,
        "fingerprint": run.fingerprint,
        "space": run.space,
        "suite": run.suite,
        "seed": run.seed,
        "size_px": run.size_px,
        "date": run.date,
        "clipworks": run.clipworks,
        "results": [to_json(result) for result in run.results],
    }


def run_from_json(data: Mapping[str, Any]) -> EvaluationRun:
    """The inverse of `run_to_json`.

    Raises:
        ValueError: no evaluation, one of another format, or results of another model among them.
    """
    if data.get("kind") != KIND:
        raise ValueError(f"not the JSON of an evaluation: expected kind {KIND!r}, got {data.get('kind')!r}")
    if data.get("format") != FORMAT:
        raise ValueError(f"an evaluation of format {data.get('format')!r}, this version reads {FORMAT}")
    fields = {name: value for name, value in data.items() if name not in ("kind", "format", "results")}
    try:
        run = EvaluationRun(**fields, results=tuple(from_json(result) for result in data["results"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the JSON of an evaluation: {type(error).__name__} {error}") from error
    strangers = [result.key.probe for result in run.results if result.key.fingerprint != run.fingerprint]
    if strangers:
        raise ValueError(f"results of another model than {run.fingerprint!r}: {', '.join(strangers)}")
    return run


def write_run(run: EvaluationRun, path: Path) -> None:
    """Whole or not at all.

    Raises:
        OSError: cannot be written.
    """
    write_whole(path, (json.dumps(run_to_json(run), indent=1, allow_nan=False) + "\n").encode())


def read_run(path: Path) -> EvaluationRun:
    """Raises:
    ValueError: the file's name and what is wrong with it.
    OSError: cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"not the JSON of an evaluation: {type(data).__name__} instead of an object")
        return run_from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
