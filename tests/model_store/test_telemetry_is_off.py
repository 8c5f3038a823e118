"""ONNX Runtime sends nothing home: its telemetry starts a thread when it is imported, and here it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_THREADS = "; import os, onnxruntime; print(len(os.listdir('/proc/self/task')))"


def threads_after(imports: str) -> int:
    """Threads of a fresh process, as a user starts one: a CI's variables switch the telemetry off too."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", imports + _THREADS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_of_onnxruntimes_telemetry() -> None:
    if threads_after("import numpy") == 1:
        pytest.skip("this build of ONNX Runtime has no telemetry that would start a thread")
    for module in ("model_store.graph", "service.services", "clipworks.cli"):
        assert threads_after(f"import {module}, model_store") == 1, module
