"""Numbers and their circumstances: medians of interleaved runs, and what machine and versions made them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / ".runs" / "benchmarks"  # not in git; see marked.RECORDS for what is
PACKAGES = (
    "clipworks",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "Pillow",
    "tokenizers",
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "uvloop",
    "httptools",
    "orjson",
)
PEER_PACKAGES = ("infinity-emb", "torch", "transformers", "tokenizers", "numpy", "Pillow", "fastapi", "uvicorn")


def column(runs: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """One figure of repeated runs; a run that has none of it (no /metrics, no server process) counts as 0."""
    return [run[key] or 0.0 for run in runs]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and count of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def ratio_of_runs(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios of runs that were made side by side: the i-th of one over the i-th of the other.

    Raises:
        ValueError: the two lists are not of one length, so they were not interleaved.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"{len(numerators)} and {len(denominators)} runs cannot be paired")
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    return (
        f"{known.get('model name', platform.machine())} (family {known.get('cpu family')}, model {known.get('model')})"
    )


def cpu_flags(wanted: Sequence[str] = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")) -> list[str]:
    """Instruction sets that matter for matrix products, as the kernel lists them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return [flag for flag in wanted if flag in flags]


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of `packages` in this environment."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions_elsewhere(python: Path, packages: Sequence[str] = PEER_PACKAGES) -> dict[str, str]:
    """The same in another environment, asked through its interpreter."""
    code = (
        "import json, platform, sys\nfrom importlib import metadata\n"
        "out = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: out[name] = metadata.version(name)\n"
        "    except metadata.PackageNotFoundError: pass\n"
        "print(json.dumps(out))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def circumstances() -> dict[str, Any]:
    """Machine, versions and load at this moment; called before and after, because the load is the thing to doubt."""
    return {
        "at_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "git": _git_revision(),
        "versions": versions(),
    }


def _git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_record(record: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def read_record(path: Path) -> dict[str, Any]:
    """A record written before.

    Raises:
        SystemExit: there is none; the message says which command makes it.
    """
    if not path.exists():
        sys.exit(f"no record {path}: run the benchmark first")
    return json.loads(path.read_text(encoding="utf-8"))
