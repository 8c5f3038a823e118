"""The engine alone: how many items a second one ONNX Runtime session gives with its inputs already prepared.

This is what a server's rate is compared with. It runs in a process of its own, which sleeps between measurements, so
that runs of the session and of a server can alternate. As a script it reads one JSON request a line and answers each
with a line.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.payloads import photographs, short_texts
from model_store.graph import SessionSettings, open_graph
from model_store.manifest import Precision, Role
from model_store.modality.image import decode, prepare
from model_store.store import Artifact, Store

_PICTURES = 16
_TEXTS = 64


class RawSession:
    """A session in a child process; use as a context manager."""

    def __init__(
        self,
        *,
        store: Path | None,
        model: str,
        role: Role,
        precision: Precision,
        threads: int = 0,
        spinning: bool = True,
    ) -> None:
        self._command = [sys.executable, __file__, "--model", model, "--role", role, "--precision", precision]
        self._command += ["--threads", str(threads)] + (["--store", str(store)] if store else [])
        self._command += ["--spinning"] if spinning else []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RawSession:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()  # open and warm
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def measure(self, *, batch: int, seconds: float) -> dict[str, float]:
        """{"rate": items a second, "cpu_ms": CPU milliseconds an item, "batch"} over about `seconds`."""
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("the session is not running")
        self._process.stdin.write(json.dumps({"batch": batch, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("the session is not running")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the raw session ended with status {self._process.wait()}")
        return json.loads(line)


def prepared_rows(artifact: Artifact, role: Role) -> NDArray[Any]:
    """Inputs as the server would stack them: photographs prepared, short texts cut to a common length."""
    if role == "image_encoder":
        if artifact.image_spec is None:
            raise ValueError(f"{artifact.reference} has no image encoder")
        return np.stack([prepare(decode(data), artifact.image_spec) for data in photographs(_PICTURES)])
    tokenizer = artifact.tokenizer()
    return tokenizer.pad([tokenizer.encode(text) for text in short_texts(_TEXTS)])


def run_session(options: argparse.Namespace) -> None:
    artifact = Store(options.store).open(options.model)
    found = artifact.graph_spec(options.role, options.precision)
    if found is None:
        sys.exit(f"{artifact.reference} has no {options.precision} {options.role}")
    owner, spec = found
    graph = open_graph(owner, spec, SessionSettings(intra_threads=options.threads, spinning=options.spinning))
    rows = prepared_rows(artifact, options.role)
    graph(rows[:1])
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_measure(graph, rows, request["batch"], request["seconds"])), flush=True)


def _measure(graph: Any, rows: NDArray[Any], batch: int, seconds: float) -> dict[str, float]:
    feed = np.resize(rows, (batch, *rows.shape[1:]))
    graph(feed)  # the first run of a shape plans its memory
    before, started, runs = _cpu_s(), time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        graph(feed)
        runs += 1
    elapsed = time.perf_counter() - started
    items = runs * batch
    return {"rate": items / elapsed, "cpu_ms": 1000 * (_cpu_s() - before) / items, "batch": batch}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--role", default="image_encoder")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--spinning", action="store_true")
    run_session(parser.parse_args())


if __name__ == "__main__":
    main()
