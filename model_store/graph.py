"""One ONNX graph as a function: opened with explicit threads and provider, checked against its manifest entry."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model_store.errors import GraphError, IntegrityError, ProviderError
from model_store.manifest import GraphSpec, TensorSpec
from model_store.session import SessionSettings, first_line, open_session, provider_names, session_options
from model_store.store import Artifact

Arrays = Mapping[str, NDArray[Any]]
_ORT_TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float32": "tensor(float)"}
_COMPUTE_OPS = ("MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv")


class Graph:
    """An open session for one GraphSpec. `run` may be called from several threads."""

    def __init__(self, session: ort.InferenceSession, spec: GraphSpec, settings: SessionSettings) -> None:
        self._session = session
        self._outputs = [o.name for o in spec.outputs]
        self.spec = spec
        self.settings = settings
        self.providers_requested = provider_names(settings.device)
        self.providers_active: tuple[str, ...] = tuple(session.get_providers())

    @classmethod
    def open(cls, path: Path, spec: GraphSpec, settings: SessionSettings | None = None) -> Graph:
        """Open the file at `path`; use `open_graph` for a published artifact.

        Raises:
            GraphError: it does not load, or its inputs and outputs are not those of `spec`.
            ProviderError: `settings.device` is not available in this ONNX Runtime.
        """
        settings = settings or SessionSettings()
        session = open_session(str(path), settings, spec.file)
        _check_tensors(session, spec)
        return cls(session, spec, settings)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name.

        Raises:
            GraphError: ONNX Runtime refused or failed (wrong shape, out of memory).
        """
        try:
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                raise GraphError(f"{self.spec.file}: {first_line(error)}") from error
            raise
        return dict(zip(self._outputs, [np.asarray(v) for v in values], strict=True))

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """First output of a graph with one input."""
        return self.run({self.spec.inputs[0].name: batch})[self._outputs[0]]


def open_graph(owner: Artifact, spec: GraphSpec, settings: SessionSettings | None = None) -> Graph:
    """Open a published graph through the descriptors whose digests were checked.

    Raises:
        IntegrityError: a file is not the one in the manifest, or files that it does not list lie beside them.
        GraphError, ProviderError: as `Graph.open`.
    """
    with ExitStack() as stack:
        streams = [stack.enter_context(owner.open_verified(path)) for path in spec.files]
        path = owner.path(spec.file)
        if not spec.external_files and Path("/proc/self/fd").is_dir():
            return Graph.open(Path(f"/proc/self/fd/{streams[0].fileno()}"), spec, settings)
        # External data is found by name beside the graph, so it is opened by path and must still be the same file.
        owner.refuse_unlisted()
        graph = Graph.open(path, spec, settings)
        for name, stream in zip(spec.files, streams, strict=True):
            if not Path(owner.folder / name).samefile(f"/proc/self/fd/{stream.fileno()}"):
                raise IntegrityError(f"{owner.reference}: {name} was replaced while it was being loaded")
        return graph


def compute_nodes_by_provider(path: Path, spec: GraphSpec, settings: SessionSettings, feeds: Arrays) -> Counter[str]:
    """Profile one run and count the matrix and convolution nodes that each execution provider really ran."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(settings)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(str(path), settings, spec.file, options)
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    for event in events:
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and arguments.get("op_name") in _COMPUTE_OPS and "provider" in arguments:
            counts[arguments["provider"]] += 1
    return counts


def require_device(owner: Artifact, graph: Graph, feeds: Arrays) -> None:
    """Raise unless every matrix and convolution node runs on the device that was asked for.

    Raises:
        ProviderError: names the providers that ran such nodes instead.
    """
    if graph.settings.device == "cpu":
        return
    wanted = graph.providers_requested[0]
    path = owner.path(graph.spec.file)
    counts = compute_nodes_by_provider(path, graph.spec, graph.settings, feeds)
    elsewhere = {name: n for name, n in counts.items() if name != wanted}
    if elsewhere or not counts[wanted]:
        raise ProviderError(f"{graph.spec.file}: {wanted} was asked for, but nodes ran as {dict(counts)}")


def example_feeds(spec: GraphSpec, free_axis: int = 1) -> dict[str, NDArray[Any]]:
    """Zeros of the graph's input shapes, each free axis set to `free_axis`."""
    feeds: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        shape = [free_axis if isinstance(axis, str) else axis for axis in tensor.shape]
        feeds[tensor.name] = np.zeros(shape, dtype=tensor.dtype)
    return feeds


def _check_tensors(session: ort.InferenceSession, spec: GraphSpec) -> None:
    for kind, found, expected in (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    ):
        actual = {node.name: (node.type, list(node.shape)) for node in found}
        for tensor in expected:
            if tensor.name not in actual:
                raise GraphError(f"{spec.file}: no {kind} {tensor.name!r}, it has {sorted(actual)}")
            if not _matches(tensor, *actual[tensor.name]):
                raise GraphError(
                    f"{spec.file}: {kind} {tensor.name!r} is {actual[tensor.name]}, "
                    f"expected {tensor.dtype} {tensor.shape}"
                )


def _matches(tensor: TensorSpec, ort_type: str, shape: list[int | str | None]) -> bool:
    if ort_type != _ORT_TYPES[tensor.dtype] or len(shape) != len(tensor.shape):
        return False
    return all(
        not isinstance(have, int) if isinstance(want, str) else have == want
        for want, have in zip(tensor.shape, shape, strict=True)
    )
