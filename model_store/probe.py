"""Probing of a graph in a child process: a native crash must cost a refused artifact, not a server."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.child import child_environment
from model_store.errors import GraphError, GraphHangs
from model_store.graph import Arrays, example_feeds
from model_store.manifest import GraphSpec
from model_store.session import SessionSettings, runtime_versions

DEFAULT_TIMEOUT_S = 300.0
_LOOK_EVERY_S = 0.2  # for a caller that does not want the answer any more


def probe(
    path: Path,
    spec: GraphSpec,
    *,
    settings: SessionSettings | None = None,
    feeds: Arrays | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> dict[str, NDArray[Any]]:
    """Run the graph once in a child process on `feeds` (zeros by default) and return its outputs.

    Raises:
        GraphError: it does not load, has other inputs or outputs, crashes the process or does not end in `timeout_s`.
    """
    settings = settings or SessionSettings()
    return probe_all([(path, spec, feeds or example_feeds(spec))], settings=settings, timeout_s=timeout_s)[0]


def probe_all(
    graphs: Sequence[tuple[Path, GraphSpec, Arrays]],
    *,
    settings: SessionSettings,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    abandoned: Event | None = None,
) -> list[dict[str, NDArray[Any]]]:
    """As `probe`, for several graphs one after the other in one child process.

    The child ends with this process, however that ends, and as soon as `abandoned` is set.
    """
    runs = [(path, spec.file, [o.name for o in spec.outputs], feeds) for path, spec, feeds in graphs]
    return _run_in_child(runs, settings, timeout_s, abandoned or Event())


def probe_outputs(
    path: Path, outputs: Sequence[str], feeds: Arrays, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> dict[str, NDArray[Any]]:
    """As `probe`, for a graph that no manifest describes: `outputs` by name.

    Raises:
        GraphError: it does not load, has no such input or output, crashes the process or does not end in `timeout_s`.
    """
    return _run_in_child([(path, path.name, outputs, feeds)], SessionSettings(), timeout_s, Event())[0]


def _run_in_child(
    runs: Sequence[tuple[Path, str, Sequence[str], Arrays]],
    settings: SessionSettings,
    timeout_s: float,
    abandoned: Event,
) -> list[dict[str, NDArray[Any]]]:
    """Outputs of (path, its name in errors, output names, feeds), one after the other in one child process."""
    label = ", ".join(name for _, name, _, _ in runs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (*_, feeds) in enumerate(runs):
            np.savez(folder / f"feeds{index}.npz", allow_pickle=False, **dict(feeds))
        request = {
            "graphs": [[str(path.absolute()), name, list(outputs)] for path, name, outputs, _ in runs],
            "settings": asdict(settings),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "model_store.probe_child", name, str(os.getpid())]
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=child_environment(),
        )  # fmt: skip
        said = _outcome(child, label, timeout_s, abandoned)
        if child.returncode < 0:
            raise GraphError(f"{label}: the process died of signal {-child.returncode} while opening or running it")
        if child.returncode:
            lines = said.strip().splitlines()
            raise GraphError(lines[-1] if lines else f"{label}: probe ended with status {child.returncode}")
        return [_load(folder / f"outputs{index}.npz") for index in range(len(runs))]


def _outcome(child: subprocess.Popen[str], label: str, timeout_s: float, abandoned: Event) -> str:
    """What the child wrote to stderr; afterwards it has ended, whatever happened."""
    end = time.monotonic() + timeout_s
    try:
        while True:
            try:
                return child.communicate(timeout=min(_LOOK_EVERY_S, max(end - time.monotonic(), 0.0)))[1]
            except subprocess.TimeoutExpired as error:
                if abandoned.is_set():
                    raise GraphError(f"{label}: opening it was given up") from error
                if time.monotonic() >= end:
                    raise GraphHangs(f"{label}: no answer within {timeout_s:g} s") from error
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()


class ProbeLog:
    """Remembers which files survived their first opening here, so that a restart need not repeat it.

    An entry is only valid for the same files, ONNX Runtime, session settings and kind of machine. A folder that cannot
    be written (a read-only image) costs the memory, nothing else.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def key(self, build: str, settings: SessionSettings) -> str:
        facts = [build, asdict(settings), runtime_versions(), platform.machine(), platform.processor()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def knows(self, key: str) -> bool:
        return self._folder is not None and (self._folder / key).is_file()

    def remember(self, key: str) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / key).touch()
        except OSError:
            return


def _load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}
