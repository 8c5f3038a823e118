"""Open and run a graph in a child process first: a native crash must cost a refused artifact, not a server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "feeds.npz", allow_pickle=False, **dict(feeds or example_feeds(spec)))
        request = {
            "path": str(path.absolute()),
            "spec": spec.model_dump(mode="json"),
            "settings": asdict(settings or SessionSettings()),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "model_store.probe", name]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise GraphError(f"{spec.file}: no answer within {timeout_s:g} s") from error
        if child.returncode < 0:
            raise GraphError(f"{spec.file}: the process died of signal {-child.returncode} while opening or running it")
        if child.returncode:
            lines = child.stderr.strip().splitlines()
            raise GraphError(lines[-1] if lines else f"{spec.file}: probe ended with status {child.returncode}")
        with np.load(folder / "outputs.npz", allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}


def _main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    spec = GraphSpec.model_validate(request["spec"])
    with np.load(folder / "feeds.npz", allow_pickle=False) as stored:
        feeds = {key: stored[key] for key in stored.files}
    try:
        graph = Graph.open(Path(request["path"]), spec, SessionSettings(**request["settings"]))
        outputs = graph.run(feeds)
    except GraphError as error:
        sys.exit(str(error))
    np.savez(folder / "outputs.npz", allow_pickle=False, **outputs)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
