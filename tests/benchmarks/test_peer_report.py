"""What the comparison says follows from its record, and the docs say what the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import http_load, overload
from benchmarks.marked import PAGES, RECORDS, replace_blocks
from benchmarks.peer_report import markdown, short_markdown, target_rows, verdicts, where_time_goes

_LOAD = {"p50_ms": 100.0, "p95_ms": 120.0, "p99_ms": 130.0, "server_cpu_ms": 80.0, "loop_cpu_ms": 1.0, "batches": {}}
_LOAD |= {"own_cpu_share": 0.01, "foreign_cores": 0.0}


def _run(rate: float, **changed: Any) -> dict[str, Any]:
    return {**_LOAD, "items_per_s": rate, **changed}


def _record(ours: float, theirs: float, engine: float) -> dict[str, Any]:
    batches = {"m@1/image_encoder": {"runs": 10, "mean": 4.5, "sizes": {"<=8.0": 10}}}
    repetition = {
        "images_8/infinity/same": _run(theirs),
        "images_8/fp32/lean": _run(ours, batches=batches),
        "image_alone/infinity/same": _run(theirs),
        "image_alone/fp32/lean": _run(ours, p50_ms=71.0),
        "raw/fp32": {"rate": engine, "cpu_ms": 75.0, "batch": 8},
    }
    circumstances = {
        "at_utc": "2026-01-01T00:00:00Z",
        "cores": 2,
        "cpu": "cpu",
        "cpu_flags": ["avx2"],
        "load_average": [0.1, 0.1, 0.1],
        "git": "abc",
        "versions": {"python": "3.11", "onnxruntime": "1.31"},
    }
    memory = {
        "infinity": {"resident_mib": 1000.0, "peak_mib": 1200.0},
        "fp32": {"resident_mib": 500.0, "peak_mib": 601.0},
    }
    return {
        "before": circumstances,
        "after": circumstances,
        "peer_versions": {"python": "3.11", "infinity-emb": "0.0.78", "torch": "2", "transformers": "4"},
        "settings": {"seconds": 6.0, "repetitions": 5, "model": "m"},
        "cosines": {"photographs/fp32": [1.0, 0.999999]},
        "ready_s": {"infinity": [10.0, 12.0, 20.0], "fp32": [2.0, 3.0, 4.0]},
        "memory_mib": memory,
        "repetitions": [repetition] * 5,
    }


def test_verdicts_hold_each_figure_to_its_own_side() -> None:
    found = {verdict["what"]: (verdict["median"], verdict["met"]) for verdict in verdicts(_record(13.0, 10.0, 14.0))}
    assert found == {
        "images, 8 clients, fp32 (lean)": (1.3, True),
        "latency of one image alone, fp32 (lean)": (0.71, False),
        "server efficiency, fp32 (lean)": (13 / 14, True),
        "resident memory after load, fp32": (0.5, True),
        "peak memory, fp32": (601 / 1200, False),
        "time to the first answer, fp32": (0.2, True),
    }


def test_a_missed_rate_is_called_missed() -> None:
    rows = {row[0]: row[-1] for row in target_rows(_record(12.9, 10.0, 20.0))}
    assert rows["images, 8 clients, fp32 (lean)"] == "missed"
    assert rows["server efficiency, fp32 (lean)"] == "missed"


def test_time_table_sets_the_engine_beside_the_server() -> None:
    rows = {tuple(row[:3]): row[3:] for row in where_time_goes(_record(13.0, 10.0, 14.0))}
    assert rows["images, 8 clients", "fp32", "lean"] == ["80.0", "1.00", "75.0", "4.5", "1.0 %", "0.00"]


def test_markdown_names_versions_machine_and_every_target() -> None:
    text = markdown(_record(13.0, 10.0, 14.0))
    for expected in ("0.0.78", "2 cores of cpu", "load average [0.1, 0.1, 0.1]", "| met |", "| missed |"):
        assert expected in text
    assert "| images, 8 clients, fp32 | 13.0/s | 10.0/s | 1.30 |" in short_markdown(_record(13.0, 10.0, 14.0))


def loads() -> list[Path]:
    """Records of load over HTTP; those of other benchmarks have no kind, and their pages no blocks."""
    return [path for path in sorted(RECORDS.glob("*.json")) if "kind" in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", loads(), ids=lambda path: path.stem)
def test_docs_say_what_the_records_say(path: Path) -> None:
    """Numbers in the docs are never typed: they are what the script makes of the record beside them."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["kind"] == "peers":
        blocks = {"peers": markdown(record), "peers-short": short_markdown(record)}
    elif record["kind"] == "overload":
        blocks = {path.stem: overload.markdown(record)}
    else:
        blocks = {path.stem: http_load.markdown(record)}
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page.exists()]
    assert any(f"<!-- bench:{name} -->" in page for page in pages for name in blocks)
    for page in pages:
        assert replace_blocks(page, blocks) == page
