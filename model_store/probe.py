"""Open and run a graph in a child process first: a native crash must cost a refused artifact, not a server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import GraphError
from model_store.graph import Arrays, Graph, SessionSettings, example_feeds
from model_store.manifest import GraphSpec

DEFAULT_TIMEOUT_S = 300.0


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
        GraphError: it does not load, does not match `spec`, crashes the process or does not end in `timeout_s`.
    """
    settings = settings or SessionSettings()
    return probe_all([(path, spec, feeds or example_feeds(spec))], settings=settings, timeout_s=timeout_s)[0]


def probe_all(
    graphs: Sequence[tuple[Path, GraphSpec, Arrays]],
    *,
    settings: SessionSettings,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[dict[str, NDArray[Any]]]:
    """As `probe`, for several graphs one after the other in one child process."""
    label = ", ".join(spec.file for _, spec, _ in graphs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (_, _, feeds) in enumerate(graphs):
            np.savez(folder / f"feeds{index}.npz", allow_pickle=False, **dict(feeds))
        request = {
            "graphs": [[str(path.absolute()), spec.model_dump(mode="json")] for path, spec, _ in graphs],
            "settings": asdict(settings),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "model_store.probe", name]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise GraphError(f"{label}: no answer within {timeout_s:g} s") from error
        if child.returncode < 0:
            raise GraphError(f"{label}: the process died of signal {-child.returncode} while opening or running it")
        if child.returncode:
            lines = child.stderr.strip().splitlines()
            raise GraphError(lines[-1] if lines else f"{label}: probe ended with status {child.returncode}")
        return [_load(folder / f"outputs{index}.npz") for index in range(len(graphs))]


def _main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    settings = SessionSettings(**request["settings"])
    try:
        for index, (path, entry) in enumerate(request["graphs"]):
            graph = Graph.open(Path(path), GraphSpec.model_validate(entry), settings)
            np.savez(
                folder / f"outputs{index}.npz", allow_pickle=False, **graph.run(_load(folder / f"feeds{index}.npz"))
            )
    except GraphError as error:
        sys.exit(str(error))


def _load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
