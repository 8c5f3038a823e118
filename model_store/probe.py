"""Probing of a graph in a child process: a native crash must cost a refused artifact, not a server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
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


@contextlib.contextmanager
def one_child() -> Generator[None]:
    """In this block, and in this thread, all graphs are probed in one child process, which costs .3 s to start.

    One that a graph ends is refused as ever, and the next graph has a new child.
    """
    with contextlib.closing(_Prober()) as prober:
        token = _SHARED.set(prober)
        try:
            yield
        finally:
            _SHARED.reset(token)


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
        prober = _SHARED.get()
        if prober is not None:
            prober.run(folder, label, timeout_s, abandoned)
        else:
            with contextlib.closing(_Prober()) as alone:
                alone.run(folder, label, timeout_s, abandoned)
        return [_load(folder / f"outputs{index}.npz") for index in range(len(runs))]


class _Prober:
    """A child process for one request after the other: started with the first, and anew after one that ended it."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def run(self, folder: Path, label: str, timeout_s: float, abandoned: Event) -> None:
        """Have `request.json` in `folder` answered.

        Raises:
            GraphError: as `probe_all`.
        """
        if self._child is None or self._child.ended():
            self.close()
            self._child = _Child()
        try:
            refusal = self._child.answer(folder, label, timeout_s, abandoned)
        except BaseException:  # it may still be at it
            self.close()
            raise
        if refusal is None:
            status, said = self._child.process.wait(), self.close()
            if status < 0:
                raise GraphError(f"{label}: the process died of signal {-status} while opening or running it")
            refusal = said.strip() or f"{label}: probe ended with status {status}"
        if refusal:
            raise GraphError(refusal.splitlines()[-1])

    def close(self) -> str:
        """End the child; what it wrote to stderr."""
        child, self._child = self._child, None
        return "" if child is None else child.end()


class _Child:
    """A running `model_store.probe_child`."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by end)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "model_store.probe_child", str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=child_environment(),
        )  # fmt: skip
        self._answers: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def answer(self, folder: Path, label: str, timeout_s: float, abandoned: Event) -> str | None:
        """Why the request was refused, "" when it was answered, None when the process ended over it.

        Raises:
            GraphError: it was given up, or not done in time.
        """
        end = time.monotonic() + timeout_s
        assert self.process.stdin
        with contextlib.suppress(OSError):  # it has ended: the reader says so
            self.process.stdin.write(json.dumps(str(folder)) + "\n")
            self.process.stdin.flush()
        while True:
            try:
                line = self._answers.get(timeout=min(_LOOK_EVERY_S, max(end - time.monotonic(), 0.0)))
            except Empty as error:
                if abandoned.is_set():
                    raise GraphError(f"{label}: opening it was given up") from error
                if time.monotonic() >= end:
                    raise GraphHangs(f"{label}: no answer within {timeout_s:g} s") from error
            else:
                return json.loads(line) if line else None

    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> str:
        """Kill it; what it wrote to stderr."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()


_SHARED: ContextVar[_Prober | None] = ContextVar("probing child", default=None)


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
